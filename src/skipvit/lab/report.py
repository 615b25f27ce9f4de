"""`skipvit report`: what a sweep showed, as one HTML page and as Markdown with figures."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.config.config import nearest
from skipvit.lab import report_bench, report_weights
from skipvit.lab.page import to_html, to_markdown
from skipvit.lab.report_blocks import blocks
from skipvit.lab.report_runs import Sweep, read_sweep
from skipvit.lab.sweep import claimed
from skipvit.measure.bench.timing import FEWEST_ROUNDS
from skipvit.util.errors import UsageError
from skipvit.util.files import make_folder

EPILOG = """Reads a folder that `skipvit sweep` filled, finished or not, and writes report.html (one file, no network), report.md and its PNG
figures into FOLDER/report. Speeds are never taken from the training's own logs: --bench measures them side by side, in minutes, and
leaves them in the folder for later reports; so does --weights. What the report says and how: docs/lab.md.

examples:
  skipvit report runs/mechanisms
  skipvit report runs/mechanisms --bench --weights
  skipvit report runs/mechanisms --target 90 --out docs/results/mechanisms
  skipvit report runs/mechanisms --baseline random --out reports/against_random
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit report", description="What the runs of a sweep showed.", epilog=EPILOG
    )
    result.add_argument("folder", metavar="FOLDER", help="folder of a sweep")
    result.add_argument(
        "--bench", action="store_true", help="measure training speed and memory of every method, in turns"
    )
    result.add_argument(
        "--weights", action="store_true", help="evaluate dense weights along the routes, and draw kept patches"
    )
    result.add_argument("--rounds", type=int, default=30, metavar="N", help="with --bench: turns of each (default: 30)")
    result.add_argument(
        "--widest",
        type=float,
        default=0.05,
        metavar="X",
        help="with --bench: widest 95 %% interval, as a share, with which a ratio is reported (default: 0.05)",
    )
    result.add_argument(
        "--target", type=float, metavar="TOP1", help="accuracy, %%, whose time is given (default: the plan's)"
    )
    result.add_argument(
        "--baseline", metavar="METHOD", help="the method that all are compared to (default: the plan's)"
    )
    result.add_argument("--out", metavar="FOLDER", help="where the report is written (default: FOLDER/report)")
    return result


def main(words: list[str]) -> None:
    options = parser().parse_args(words)
    check(options)
    sweep = read_sweep(Path(options.folder))
    if options.target is not None:
        sweep.target = options.target
    if options.baseline is not None:
        sweep.baseline = known_method(sweep, options.baseline)
    out = Path(options.out or sweep.folder / "report")
    make_folder(out, "report's folder", "--out")
    if options.bench:
        with claimed(sweep.folder):  # beside a running sweep nothing can be timed
            report_bench.measure(sweep, options)
    if options.weights:
        report_weights.measure(sweep)
    title, content = blocks(
        sweep, report_bench.read(sweep), report_weights.read_matrix(sweep), report_weights.read_kept(sweep)
    )
    (out / "report.html").write_text(to_html(title, content), encoding="utf-8")
    (out / "report.md").write_text(to_markdown(title, content, out), encoding="utf-8")
    print(
        f"{len(sweep.variants)} methods, {sweep.planned - len(sweep.missing)} of {sweep.planned} runs: {out / 'report.html'}, "
        f"{out / 'report.md'}"
    )


def known_method(sweep: Sweep, name: str) -> str:
    """The name, if a single finished variant has it in every cell. Raises UsageError."""
    labels = [variant.label for variant in sweep.variants if variant.method == name]
    if not labels:
        raise UsageError(
            f"--baseline: {name} is not a finished method of this sweep"
            + nearest(name, [v.method for v in sweep.variants])
        )
    if len(labels) > len({variant.cell for variant in sweep.variants if variant.method == name}):
        raise UsageError(
            f"--baseline: {name} is several methods ({', '.join(labels)}), by a grid of its own; choose another"
        )
    return name


def check(options: argparse.Namespace) -> None:
    """What can be refused before anything is read. Raises UsageError."""
    if options.rounds < FEWEST_ROUNDS:
        raise UsageError(f"--rounds: {options.rounds} rounds have no 95 % interval; use {FEWEST_ROUNDS} or more")
    if not 0 < options.widest < math.inf:
        raise UsageError(f"--widest: {options.widest:g} is not a share above 0; 0.05 allows 1.45 to 1.52")
    if options.target is not None and not 0 < options.target < 100:
        raise UsageError(f"--target: {options.target:g} is not an accuracy between 0 and 100 %")
