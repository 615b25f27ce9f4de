"""Damage checkpoints in every way, and read each through every door: the right result, or one line that refuses it.

    python benchmarks/damaged_checkpoints.py --count 200

A tiny run is trained. Then a damaged copy of its last checkpoint stands in for a newer one, while the run is resumed
and evaluated, and is itself named to be evaluated, predicted with, exported, converted and started from. What ends with
exit code 0 must give what the undamaged one gives, bit by bit; anything else must end with code 1 or 2 and one short
line of error. All but a few of the resumed and evaluated runs stop where the first graph would be compiled. A process
of its own reads them; its death, or a minute without a word, is a fault of that case. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import yaml
from safetensors.numpy import load_file

from skipvit import training
from skipvit.cli import exit_code, run
from skipvit.config.reading import load_config
from skipvit.engine.build import build_network, build_optimizer, build_state
from skipvit.engine.checkpoint import read, saved, weights_of
from skipvit.engine.checkpoint_file import read_entries
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import Run
from support.damaged_checkpoints import damages, writing
from support.runs import TINY

CONFIG = {
    "name": "run",
    "model": TINY["model"] | {"width": 8, "depth": 1, "patch": 16},
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 32, "val_size": 16},
    "optim": {"epochs": 2, "warmup_epochs": 0},
    "ema": {"decay": 0.9},
}
NEWEST = "epoch_0003_step_000002.ckpt"
LONGEST_LINE, HANGS_AFTER_S, WHOLE_EVERY = 600, 60, 25


class Doors:
    """A trained run, and what its commands make of a file in the place of a checkpoint."""

    def __init__(self, root: Path):
        self.root, self.config = root, root / "run.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        self.words = ["--config", str(self.config), "--runs"]
        assert run("train", [*self.words, str(root / "whole")]) == 0
        self.whole = root / "whole" / "run"
        for path in saved(self.whole / "checkpoints")[:-1]:
            path.unlink()
        self.last = saved(self.whole / "checkpoints")[-1]
        assert run("convert", [str(self.last), str(root / "whole.safetensors")]) == 0
        self.timm = (root / "whole.safetensors").read_bytes()
        from PIL import Image

        Image.new("RGB", (32, 32), (200, 40, 90)).save(root / "image.png")
        self.place = root / "runs" / "run" / "checkpoints" / NEWEST
        self.run_config = load_config(self.config)
        self.splits = training.open_splits(self.run_config, root / "runs")
        network = build_network(self.run_config, "cpu")
        optimizer = build_optimizer(self.run_config, network, 2)
        state = build_state(self.run_config, optimizer, "cpu")
        self.parameters = [*network.get_parameters(), *optimizer.get_parameters(), *state.saved()]
        self.put(writing(self.last.read_bytes()))
        self.expected = {door: self.asked(door, self.place)[2] for door in self.doors()}
        self.back = self.asked("convert", root / "whole.safetensors")[2]

    def put(self, make: Callable[[Path], object]) -> None:
        shutil.rmtree(self.root / "runs", ignore_errors=True)
        shutil.copytree(self.whole, self.root / "runs" / "run")
        make(self.place)

    def doors(self, whole: bool = True) -> dict[str, Callable[[Path, Path], int]]:
        """What takes the file's path, and one to write to, and returns an exit code.

        Args:
            whole: commands that compile graphs are among them.
        """
        run_folder, image, runs = str(self.root / "runs" / "run"), str(self.root / "image.png"), str(self.root / "runs")
        start, target = ["--check", "--init.weights"], str(self.root / "out")
        doors = {
            "eval": lambda path, out: run("eval", [run_folder, "--weights", str(path), "--json"]),
            "predict": lambda path, out: run("predict", [run_folder, image, "--weights", str(path), "--json"]),
            "export": lambda path, out: run(
                "export", [run_folder, "--weights", str(path), "--to", "safetensors", "--out", target]
            ),
            "convert": lambda path, out: run("convert", [str(path), str(out)]),
            "start from": lambda path, out: run("train", [*self.words, target, *start, str(path)]),
            "choose": lambda path, out: exit_code(lambda: self.choose(out)),
            "go on from": lambda path, out: exit_code(lambda: self.go_on_from(out)),
        }
        if whole:
            doors["eval a run"] = lambda path, out: run("eval", [run_folder, "--json"])
            doors["resume"] = lambda path, out: run("train", [*self.words, runs, "--resume", "auto"])
        return doors

    def choose(self, out: Path) -> None:
        """What evaluates a run, up to the first graph."""
        found = weights_of(read_entries(Run(self.root / "runs" / "run").checkpoint("last")), averaged=True)
        out.write_bytes(pickle.dumps([(name, bytes(r.data)) for name, r in sorted(found.items())]))

    def go_on_from(self, out: Path) -> None:
        """What resumes a run, up to the first graph."""
        found = training.newest_checkpoint(RunFolder(self.root / "runs" / "run"), self.run_config, self.splits)
        if found is not None:
            found.restore(self.parameters)
            out.write_bytes(pickle.dumps([(p.name, p.asnumpy()) for p in self.parameters]))

    def asked(self, door: str, path: Path) -> tuple[int, str, object]:
        """Exit code, what was said on stderr, and the result."""
        shutil.rmtree(self.root / "out", ignore_errors=True)
        target = self.root / ("out.ckpt" if path.suffix == ".safetensors" else "out.safetensors")
        target.unlink(missing_ok=True)
        with captured(self.root) as said:
            code = self.doors()[door](path, target)
        return code, said["err"], self.result(door, said["out"], target) if code == 0 else None

    def result(self, door: str, out: str, target: Path) -> object:
        if door in ("eval", "eval a run"):
            found = json.loads(out.splitlines()[-1])
            return {name: (row["top1"], row["loss"]) for name, row in found.items() if isinstance(row, dict)}
        if door == "predict":
            return json.loads(out.splitlines()[-1])["predictions"]
        if door == "resume":
            path = Run(self.root / "runs" / "run").checkpoint("last")
            return {name: value.tobytes() for name, value in read(path).items()}
        if door == "export":
            target = next((self.root / "out").glob("*.safetensors"))
        if door in ("export", "convert") and target.suffix == ".safetensors":  # whose header has no order
            return {name: value.tobytes() for name, value in load_file(target).items()}
        return target.read_bytes() if door != "start from" and target.exists() else None

    def fault(self, door: str, path: Path) -> str:
        """What is wrong with how a door takes a file; "" where nothing is."""
        try:
            code, said, result = self.asked(door, path)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        lines = [line for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        if any("Traceback" in line or len(line) > LONGEST_LINE for line in lines):
            return f"a traceback or a long line: {said[-300:]}"
        if code == 0:
            expected = self.back if (door, path.suffix) == ("convert", ".safetensors") else self.expected[door]
            return "" if result == expected else "another result, silently"
        return "" if code in (1, 2) and len(errors) == 1 else f"exit code {code}: {said[-300:]}"


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[dict[str, str]]:
    """What is written to stdout and stderr, by libraries too."""
    said, before = {}, {number: os.dup(number) for number in (1, 2)}
    sys.stdout.flush()
    for number in before:
        with open(folder / f"said_{number}", "wb") as file:
            os.dup2(file.fileno(), number)
    try:
        yield said
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(before[number], number)
            os.close(before[number])
            said[name] = (folder / f"said_{number}").read_text(errors="replace")


def work(count: int, seed: int, first: int) -> None:
    """Read the cases from a number on; say on stdout, a line of JSON each, what is about to be read and what was."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as name:
        doors = Doors(Path(name))
        files = {".ckpt": doors.place, ".safetensors": doors.root / "bad.safetensors"}
        for number, (what, ending, make) in enumerate(damages(doors.last, doors.timm, doors.root, count, seed)):
            if number < first:
                continue
            path = files[ending]
            usual = doors.doors(whole=number % WHOLE_EVERY == 0)
            for door in usual if path.suffix == ".ckpt" else ("convert", "start from"):
                print(json.dumps([number, what, door, None]), file=out)
                path.unlink(missing_ok=True) if path.suffix != ".ckpt" else None
                doors.put(make) if path.suffix == ".ckpt" else make(path)
                print(json.dumps([number, what, door, doors.fault(door, path)]), file=out)
    print(json.dumps([count, "", "", ""]), file=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.count, options.seed, options.worker)
        return 0
    faults, reads, number = Counter(), 0, 0
    while number < options.count:
        number, read_now = follow(options.count, options.seed, number, faults)
        reads += read_now
    print(f"{options.count} damaged checkpoints, {reads} times read; {faults.total()} wrongly", flush=True)
    return 1 if faults else 0


def follow(count: int, seed: int, first: int, faults: Counter) -> tuple[int, int]:
    """Follow a worker from a case on to its end, or the case that ends it: the next case, and how often it has read."""
    words = [sys.executable, __file__, "--count", str(count), "--seed", str(seed), "--worker", str(first)]
    number, what, door, reads = first, "the run itself", "train", 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as worker:
        assert worker.stdout is not None
        patience = 10 * HANGS_AFTER_S  # to train the run
        while select.select([worker.stdout], [], [], patience)[0] and (line := worker.stdout.readline()):
            number, what, door, fault = json.loads(line)
            patience = HANGS_AFTER_S
            if number == count:
                return number, reads
            reads += fault is not None
            if fault:
                faults[what] += 1
                print(f"{number:3d} {what}, {door}: {fault}", flush=True)
        hangs = worker.poll() is None
        worker.kill()
        faults[what] += 1
        how = f"no word for {HANGS_AFTER_S} s" if hangs else f"ends the process with {worker.wait()}"
        print(f"{number:3d} {what}, {door}: {how}", flush=True)
    if door == "train":
        raise SystemExit("the run that is to be damaged could not be trained")
    return number + 1, reads


if __name__ == "__main__":
    sys.exit(main())
