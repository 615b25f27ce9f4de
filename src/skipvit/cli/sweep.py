"""`skipvit sweep`: train all runs of a plan, a process each."""

from __future__ import annotations

import shlex
import sys

from pydantic_settings import CliSettingsSource
from tqdm import tqdm

from skipvit.cli.options import OneLineParser
from skipvit.config.config import Config
from skipvit.lab.sweep import Sweep

EPILOG = """A run that is finished is never done again; one that was begun goes on. So after Ctrl-C, a kill or a
failure the same command completes the sweep. Each run has its folder RUNS/<plan>/<method>-s<seed>, its output is in
RUNS/<plan>/logs. Keys such as --optim.epochs 2 are for all runs. What a plan holds: docs/lab.md.

examples:
  skipvit sweep configs/studies/mechanisms.yaml
  skipvit sweep configs/studies/mechanisms.yaml --dry-run
  skipvit sweep configs/studies/places.yaml --reuse runs/mechanisms
  skipvit sweep configs/studies/cifar10.yaml --data.path /path/to/cifar10
  skipvit sweep configs/studies/places.yaml --base configs/studies/base_imagenet.yaml --runs runs/imagenet

exit codes: 0 all runs are finished, 1 some failed, 2 refused before it began, 3 stopped by SIGTERM, SIGHUP or Ctrl-C
(a second one kills)
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit sweep", "Train all runs of a plan.", EPILOG)
    add = parser.add_argument
    add("plan", metavar="PLAN", help="YAML file: base, methods, grid, seeds")
    add("--runs", default="runs", metavar="FOLDER", help="where the plan's folder is made (default: runs)")
    add("--base", metavar="FILE", help="YAML file of a run to begin with, instead of the plan's base and `common`")
    reuse = "copy the runs that another sweep has finished and this one needs, e.g. dense ones; may be repeated"
    add("--reuse", metavar="FOLDER", action="append", default=[], help=reuse)
    jobs = "runs at the same time (default: one a core as far as memory goes, or a device)"
    add("--jobs", type=int, metavar="N", help=jobs)
    add("--dry-run", action="store_true", help="only list the runs, with their ideal gains")
    source = CliSettingsSource(Config, root_parser=parser)
    options = parser.parse_args(words)
    sweep = Sweep(options.plan, options.runs, source(parsed_args=options)(), options.base)
    if options.dry_run:
        print(sweep.table())
        return
    command = " ".join(["skipvit sweep", *map(shlex.quote, words)])
    sweep.run(options.jobs, options.reuse, command, say)


def say(text: str) -> None:
    """A line above the progress bar, at once also where the output is a file."""
    tqdm.write(text)
    sys.stdout.flush()
