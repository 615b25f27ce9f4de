"""`skipvit report`: what a sweep showed, as one HTML page and as Markdown with figures."""

from __future__ import annotations

import sys

from skipvit.cli.options import OneLineParser
from skipvit.lab.report.write import write_report

EPILOG = """Reads a folder that `skipvit sweep` filled, finished or not, and writes report.html (one file, no
network), report.md and its PNG figures into FOLDER/report. Speeds are never taken from the training's own logs:
--bench measures them side by side, in minutes, and leaves them in the folder for later reports; so does --weights.
Reports leave them out when the code, the device or the runs have changed since. What the report says and how:
docs/lab.md.

examples:
  skipvit report runs/mechanisms
  skipvit report runs/mechanisms --bench --weights
  skipvit report runs/mechanisms --target 90 --out docs/results/mechanisms
  skipvit report runs/mechanisms --baseline random --out reports/against_random
"""


def parser() -> OneLineParser:
    about = "What the runs of a sweep showed."
    result = OneLineParser(prog="skipvit report", description=about, epilog=EPILOG)
    add = result.add_argument
    add("folder", metavar="FOLDER", help="folder of a sweep")
    about = "measure training speed and memory of every method, in turns"
    add("--bench", action="store_true", help=about)
    about = "evaluate dense weights along the routes, and draw kept patches"
    add("--weights", action="store_true", help=about)
    add("--rounds", type=int, default=30, metavar="N", help="with --bench: turns of each (default: 30)")
    about = "with --bench: widest 95 %% interval, as a share, with which a ratio is reported (default: 0.05)"
    add("--widest", type=float, default=0.05, metavar="X", help=about)
    add("--target", type=float, metavar="TOP1", help="accuracy, %%, whose time is given (default: the plan's)")
    add("--baseline", metavar="METHOD", help="the method that all are compared to (default: the plan's)")
    add("--out", metavar="FOLDER", help="where the report is written (default: FOLDER/report)")
    return result


def main(words: list[str]) -> None:
    o = parser().parse_args(words)
    written = write_report(o.folder, o.out, o.baseline, o.target, o.bench, o.weights, o.rounds, o.widest)
    for line in written.left_out:
        print(f"warning: {line}", file=sys.stderr)
    study = written.study
    planned = len(study.about.runs)
    runs = f"{planned - len(study.missing)} of {planned} runs"
    print(f"{len(study.arms)} methods, {runs}: {written.html}, {written.markdown}")
