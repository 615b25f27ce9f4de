"""`skipvit doctor`: what this machine has, whether it will train, and what to do about each thing that is missing.

Nothing here imports MindSpore, which may be what is broken: it is tried by `tools.probe` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from skipvit.ascend import machine as facts
from skipvit.ascend import probe
from skipvit.ascend.checks import ASCEND, GENERAL, GUIDE, HOST, JOB, Row, Visit, size_of
from skipvit.ascend.machine import Machine
from skipvit.util.errors import RunError, UsageError

EPILOG = """Each line is ok, a warning or fails, and says what to do. Exit code 0: it will do; 1: a line fails.

examples:
  skipvit doctor
  skipvit doctor --device ascend --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
"""


class Parser(argparse.ArgumentParser):
    """Refuses in one line. `config.OneLineParser` would import MindSpore."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def parser() -> Parser:
    result = Parser(
        prog="skipvit doctor",
        description="Check this machine.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--device", choices=["auto", "cpu", "ascend"], default="auto", help="what is to train (default: auto)"
    )
    result.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)")
    result.add_argument(
        "--config", metavar="FILE", help="also check a run: its data, the size of its checkpoints; its keys may follow"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str], machine: Machine | None = None) -> None:
    options, keys = parser().parse_known_args(words)
    if keys and not options.config:
        raise UsageError(f"{keys[0]} is not an option (see --help); keys of a run need --config")
    run = ["--config", options.config, *keys] if options.config else []
    visit = Visit(machine or Machine(), options.device, Path(options.runs), run)
    rows = []
    for row in look(visit):
        rows.append(row)
        if not options.json:
            print(as_text(row), flush=True)
    pairs = [asdict(pair) for pair in facts.PAIRS] if options.device == "ascend" or visit.has_ascend() else []
    failing = [row.name for row in rows if row.state == "fails"]
    if options.json:
        print(json.dumps({"ok": not failing, "rows": [asdict(row) for row in rows], "versions": pairs}))
    elif pairs:
        print(pairs_as_text())
    if failing:
        raise RunError(f"this machine will not do: {', '.join(failing)}")


def as_text(row: Row) -> str:
    return f"{row.state:9}{row.name:20}{row.found}" + (f"\n{'':29}to do: {row.do}" if row.do else "")


def pairs_as_text() -> str:
    """Versions that belong together, as their makers say."""
    lines = [f"\n{'MindSpore':11}{'CANN':15}{'driver':10}published in"]
    return "\n".join(lines + [f"{p.mindspore:11}{p.cann:15}{p.driver:10}{p.source}" for p in facts.PAIRS])


def look(visit: Visit) -> Iterator[Row]:
    """All checks in turn, each row as soon as it is known. A check that goes wrong is a row too."""
    checks = (*GENERAL, *(ASCEND if visit.device != "cpu" else ()), *HOST, mindspore)
    for check in checks:
        try:
            yield from check(visit)
        except Exception as error:  # whatever is broken here, the other lines are still of use
            reason = (str(error).splitlines() or [""])[0]
            yield Row(
                check.__name__.replace("_", " "),
                f"could not be checked ({type(error).__name__}: {reason})",
                "warning",
                "look at it by hand",
            )


def mindspore(visit: Visit) -> Iterator[Row]:
    """What `tools.probe` finds."""
    # Not part of a job that this shell may have been set up for; and quiet, for the answer is read.
    environment = {
        name: value for name, value in visit.machine.environment.items() if name not in (*JOB, "RANK_TABLE_FILE")
    }
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"GLOG_v": "4", "ASCEND_SLOG_PRINT_TO_STDOUT": "0", "PYTHONPATH": os.pathsep.join(paths)}
    words = [visit.machine.python, "-m", "skipvit.ascend.probe", visit.device, *visit.run]
    answer = visit.machine.run(words, visit.machine.probe_patience, environment)
    found = probe.results(answer.text)
    last = facts.said(answer.text.splitlines()[::-1]) or "nothing"
    lost = {"error": answer.problem or f"it ended early and printed {last}"}
    yield from _loaded(visit, found.get("mindspore", lost))
    if "error" in found.get("mindspore", lost):
        return
    yield from _data_engine(found.get("dataset", lost))
    if visit.run:
        yield from _run(visit, found.get("run", lost))
    yield from _step(visit, found.get("step", lost))


def _loaded(visit: Visit, result: dict) -> Iterator[Row]:
    if "error" in result:
        do = "run `python -c 'import mindspore'`; then pip install -r requirements.txt in a new environment"
        yield Row("import MindSpore", result["error"], "fails", do)
        return
    seconds = f"{result['version']} in {result['seconds']:.1f} s"
    if visit.device == "cpu" or result["devices"]:
        devices = f", sees {result['devices']} devices" if result["devices"] else ""
        yield Row("import MindSpore", seconds + devices)
    else:
        row = visit.missing(
            "devices in MindSpore", result["reason"] or "MindSpore sees none", f"mend the lines above; see {GUIDE}"
        )
        yield Row("import MindSpore", seconds)
        yield row


def _data_engine(result: dict) -> Iterator[Row]:
    if "error" in result:
        do = 'pip install "numpy<2" and the other packages of requirements.txt'
        yield Row("data engine", result["error"], "fails", do)
    else:
        yield Row("data engine", f"{result['images']} images in {result['seconds']:.1f} s")


def _run(visit: Visit, result: dict) -> Iterator[Row]:
    if "error" in result:
        yield Row("run", result["error"], "fails", "correct the file, the keys or the data that it names")
        return
    sizes = (
        f"{result['train']:,} + {result['val']:,} images in {result['classes']} classes, {result['decoded']} decoded"
    )
    if result["broken"]:
        state = "warning" if result["decoded"] else "fails"
        yield Row(
            "data",
            f"{sizes}; broken: {result['broken'][0]}",
            state,
            "replace broken images; data.broken_share allows some",
        )
    else:
        yield Row("data", sizes)
    one, keep = result["checkpoint_bytes"] / 2**20, result["keep"]
    need, free = one * (keep + 2), facts.free_mib(visit.runs)  # those kept, the best one and the one being written
    found = f"{keep} kept, the best and one being written, of {size_of(one)} each: {size_of(need)}"
    if free is not None and free < need:
        do = "free some space, or choose another --runs or checkpoint.keep"
        yield Row("checkpoints", f"{found}; {size_of(free)} free", "fails", do)
    else:
        yield Row("checkpoints", found)


def _step(visit: Visit, result: dict) -> Iterator[Row]:
    if "error" in result:
        do = "mend the lines above; GLOG_v=2 skipvit train shows MindSpore's own log"
        yield Row("training step", result["error"], "fails", do)
        return
    first, last = result["losses"][0], result["losses"][-1]
    found = (
        f"{result['device']}: compiled in {result['first_s']:.1f} s, then {result['later_s']:.3f} s; "
        f"{len(result['losses'])} steps, loss {_loss(first)} to {_loss(last)}, {result['skipped']:.0f} skipped, "
        f"{size_of(result['peak_mib'])} of memory"
    )
    falls = all(isinstance(loss, float) for loss in result["losses"]) and last < first - 0.1
    if not falls:
        yield Row(
            "training step", found, "fails", "the loss must fall: driver, CANN and MindSpore may not fit each other"
        )
    elif visit.has_ascend() and result["device"] == "cpu" and visit.device != "cpu":
        yield Row(
            "training step", found, "warning", "it would train on the CPU: mend the lines above, or say --device cpu"
        )
    else:
        yield Row("training step", found)


def _loss(value: float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else value
