"""Damage the side files of a sweep's and of a run's folder, and read them with every command that does.

    python benchmarks/hostile_run_folders.py

Each file is cut, replaced by JSON of another shape, by deep nesting, by huge numbers, NaN and surrogates, by a folder,
a pipe, a device or a link, and has single values replaced (those with a checksum: with the right one). Each command
must then do its work or be refused in one line (`one_line.py`), and change nothing else. Exit code 1 if one did
neither.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from one_line import WRONG, End, attempt, chosen, run_all, untouched

from skipvit.lab.report import page, speed
from skipvit.lab.report.origin import save
from skipvit.lab.study import read_study
from skipvit.runs.run import Run
from support.damage import CONTENTS, PLACES, damage, mutated
from support.hostile import encoded, scene
from support.runs import write_run

RUN = "routed-s0"
OF_SWEEP = ("sweep.json", "failed.json", "bench.json", "weights.json")
OF_RUN = ("config.yaml", "classes.json", "metrics.jsonl", "summary.json", "versions.json", "broken_images.txt", ".lock")
CHECKED = ("bench.json", "weights.json")  # by a checksum of their own
VALUES = 12  # times that a value is replaced, in each file
REPORT = ["report", "{sweep}", "--out", "{out}"]
READ = {
    "report": REPORT,
    "eval": ["eval", "{run}"],
    "predict": ["predict", "{run}", "{image}"],
    "export": ["export", "{run}", "--to", "safetensors", "--out", "{out}"],
    "resume": ["train", "--config", "{config}", "--runs", "{sweep}", "--name", RUN, "--resume", "auto", "--check"],
    "start from": ["train", "--config", "{config}", "--runs", "{out}", "--init.weights", "{run}", "--check"],
    "sweep": ["sweep", "{plan}", "--runs", "{runs}", "--dry-run"],
}
READERS = {
    "config.yaml": ("report", "eval", "predict", "export", "resume", "start from", "sweep"),
    "classes.json": ("eval", "predict", "export", "start from"),
    "metrics.jsonl": ("report", "export"),
    "summary.json": ("report", "sweep"),
    "versions.json": ("report", "export"),
    "broken_images.txt": ("resume",),
    ".lock": ("resume", "sweep"),
}
PLAN = """
base: base.yaml
methods: {dense: {}, routed: {routes: [{start: 1, end: 3, keep_ratio: 0.5}], phases: [{epochs: 1, routes: []}, {}]}}
seeds: 1
"""


def build(folder: Path) -> None:
    """A sweep of two runs with everything that is ever in its folder, and what belongs to it."""
    sweep = folder / "runs" / "plan"
    runs = []
    for method in ("dense", "routed"):
        path = sweep / f"{method}-s0"
        routes = {} if method == "routed" else {"routes": [], "phases": []}
        write_run(path, name=path.name, seed=17, **routes)
        run = Run(path)
        forwards = {name: {"top1": 12.5} for name in run.records()[-1]["val"]}
        about = {"epochs": 2, "forwards": forwards, "best": {"forward": run.config.main()}}
        (path / "summary.json").write_text(json.dumps(about))
        (path / "versions.json").write_text(json.dumps([{"skipvit": "1", "mindspore": "2", "started": "today"}]))
        (path / "broken_images.txt").write_text("a.jpg\tcut\n")
        (path / ".lock").touch()
        entry = {"name": path.name, "method": method, "variant": method, "cell": "", "seed": 0}
        runs.append(entry | {"point": {"optim.lr": 1e-3}})
    about = {"plan": "plan", "baseline": "dense", "target": 10.0, "command": "skipvit sweep", "runs": runs}
    (sweep / "sweep.json").write_text(json.dumps(about))
    (sweep / "failed.json").write_text(json.dumps({"other-s0": "no images"}))
    _write_measurements(sweep)
    (folder / "plan.yaml").write_text(PLAN)
    base = sweep / "dense-s0" / "config.yaml"
    lines = [line for line in base.read_text().splitlines(True) if not line.startswith(("name:", "seed:"))]
    (folder / "base.yaml").write_text("".join(lines))
    shutil.copy(sweep / RUN / "config.yaml", folder / "config.yaml")
    (folder / "image.png").write_bytes(encoded(scene(np.random.default_rng(0)), "PNG"))


def _write_measurements(sweep: Path) -> None:
    """`bench.json` and `weights.json`, with made-up numbers."""
    study, groups = read_study(sweep), []
    for network, steps in speed.groups(study).items():
        step = {"median_s": 0.1, "speedup": 1.4, "speedup_interval": [1.3, 1.5]}
        row = {"batch_size": 10, "step": step, "peak_memory_bytes": 2**30, "ideal_speedup": 1.4}
        rows = {"device": "cpu", "baseline": "dense", "variants": [row] * len(steps)}
        groups.append({"network": network, "steps": list(steps)[1:], **rows})
    about = {"mode": "training", "rounds": 30, "widest": 0.05, "cores": 2, "load_before": 0.0}
    save(sweep / "bench.json", "cpu", about | {"groups": groups})
    png = {"png": "aGVsbG8=", "seed": 0, "checkpoint": "gone.ckpt", "weights": "0"}
    routed = [{"top1": 10.0, "seed": 0, "checkpoint": "gone.ckpt", "weights": "0"}]
    save(sweep / "weights.json", "cpu", {"dense_weights_routed": {"routed": routed}, "kept": {"routed": png}})


def cases() -> list[tuple[str, str, str, int]]:
    """File, how it is damaged, who reads it, a number to draw by."""
    result, ways = [], [*CONTENTS, *PLACES]
    for name in OF_SWEEP:
        numbered = [*((how, 0) for how in ways), *(("value", number) for number in range(2 * VALUES))]
        result += [(name, how, "report", number) for how, number in numbered]
    for name in OF_RUN:
        valued = name.endswith((".json", ".jsonl", ".yaml"))
        numbered = [*((how, 0) for how in ways), *(("value", number) for number in range(VALUES * valued))]
        for place, (how, number) in enumerate(numbered):  # the readers in turn
            result.append((name, how, READERS[name][place % len(READERS[name])], number))
    return result


def damaged(sweep: Path, name: str, how: str, number: int) -> None:
    path, rng = (sweep if name in OF_SWEEP else sweep / RUN) / name, np.random.default_rng(number)
    if how == "value" and name in CHECKED:
        found = json.loads(path.read_text())
        values = mutated({key: found[key] for key in found if key not in ("origin", "date", "checksum")}, rng)
        try:
            save(path, "cpu", values if isinstance(values, dict) else {})
            return
        except ValueError:  # a number that JSON has not
            found["groups"] = values
            path.write_text(json.dumps(found))
    else:
        damage(path, how, rng)


def run_case(whole: Path, name: str, how: str, reader: str, number: int) -> End:
    """Damage a copy, read it, and look whether anything but the report and the lock has changed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(whole, folder)
        sweep = folder / "runs" / "plan"
        damaged(sweep, name, how, number)
        words = {"sweep": sweep, "run": sweep / RUN, "out": folder / "out", "runs": folder / "runs"}
        words |= {"image": folder / "image.png", "config": folder / "config.yaml", "plan": folder / "plan.yaml"}
        with untouched(folder) as changed:
            end = attempt([word.format(**words) for word in READ[reader]])
        changed = [path for path in changed if Path(path).name != ".lock"]
        return End(WRONG, f"changed {changed}") if changed else end


def ends(whole: Path, some: list) -> Iterator[tuple[str, End]]:
    for name, how, reader, number in some:
        yield f"{name}, {how} {number}, {reader}", run_case(whole, name, how, reader, number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="so many of them by lot (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every refusal")
    parser.add_argument("--draw", action="store_true", help="also draw the figures, which takes most of the time")
    options = parser.parse_args()
    if not options.draw:
        page.to_png = lambda figure: b"png"
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        build(whole)
        os.chdir(name)
        some = chosen(cases(), options.count, options.seed)
        return run_all(ends(whole, some), len(some), "damaged folders", options.show)


if __name__ == "__main__":
    sys.exit(main())
