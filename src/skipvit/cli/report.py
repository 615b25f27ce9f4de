"""`skipvit report`: what a sweep showed, as one HTML page and as Markdown with figures."""

from __future__ import annotations

import sys

from skipvit.cli.options import OneLineParser
from skipvit.lab.report.write import write_report

EPILOG = """Reads a folder that `skipvit sweep` filled, finished or not, and writes report.html (one file, no
network), report.md and its PNG figures into FOLDER/report. What --bench, --weights and --images measure, in minutes,
stays in the folder for later reports, until the code, the device or the runs change. What the report says:
docs/lab.md.

examples:
  skipvit report runs/mechanisms
  skipvit report runs/mechanisms --bench --weights
  skipvit report runs/mechanisms --target 90 --out docs/results/mechanisms
  skipvit report runs/mechanisms --baseline random --out reports/against_random
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit report", "What the runs of a sweep showed.", EPILOG)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of a sweep")
    add("--bench", action="store_true", help="measure training speed and memory of every method, in turns")
    add("--weights", action="store_true", help="evaluate dense weights along the routes, and draw kept patches")
    add("--images", action="store_true", help="compare each method with the baseline image by image")
    add("--rounds", type=int, default=30, metavar="N", help="with --bench: turns of each (default: 30)")
    widest = "with --bench: widest 95 %% interval, as a share, with which a ratio is reported (default: 0.05)"
    add("--widest", type=float, default=0.05, metavar="X", help=widest)
    add("--target", type=float, metavar="TOP1", help="accuracy, %%, whose time is given (default: the plan's)")
    add("--baseline", metavar="METHOD", help="the method that all are compared to (default: the plan's)")
    add("--out", metavar="FOLDER", help="where the report is written (default: FOLDER/report)")
    o = parser.parse_args(words)
    written = write_report(o.folder, o.out, o.baseline, o.target, o.bench, o.weights, o.images, o.rounds, o.widest)
    for line in written.left_out:
        print(f"warning: {line}", file=sys.stderr)
    study, planned = written.study, len(written.study.about.runs)
    runs = f"{planned - len(study.missing)} of {planned} runs"
    print(f"{len(study.arms)} methods, {runs}: {written.html}, {written.markdown}")
