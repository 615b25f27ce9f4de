"""What commands take to name a trained network: a run or a checkpoint, which of its weights, which forward."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from skipvit.cli.options import OneLineParser
from skipvit.config.config import Config
from skipvit.util.errors import UsageError

if TYPE_CHECKING:
    from skipvit.runs.run import Run
    from skipvit.runs.trained import Trained


def add_weights(parser: OneLineParser) -> None:
    """Options that name weights."""
    parser.add_argument("--config", metavar="FILE", help="YAML file, instead of the run's")
    parser.add_argument("--weights", metavar="WHICH", help="last, best or a checkpoint's file (default: last)")


def add_trained(parser: OneLineParser) -> None:
    """Options that name weights and a forward."""
    add_weights(parser)
    about = "the weights themselves where the run also has their average"
    parser.add_argument("--last", action="store_true", help=about)
    forward = parser.add_mutually_exclusive_group()
    about = "which one to run, e.g. dense (default: the one that counts, see eval.main)"
    forward.add_argument("--forward", metavar="NAME", help=about)
    for name in ("dense", "routed"):
        forward.add_argument(f"--{name}", dest="forward", action="store_const", const=name, help=f"--forward {name}")


def config_of(options: argparse.Namespace) -> str:
    """The configuration to read when a run folder is named."""
    if options.config:
        return options.config
    if not options.run:
        raise UsageError("name a run folder, or --config and --weights (see --help)")
    if not (Path(options.run) / "config.yaml").is_file():
        raise UsageError(f"{options.run}: not a run folder, it has no config.yaml")
    return str(Path(options.run) / "config.yaml")


def checkpoint_of(options: argparse.Namespace) -> Path:
    """The checkpoint that is named. Raises UsageError if there is none."""
    from skipvit.runs.run import Run

    which = options.weights or "last"
    if which not in ("last", "best"):
        return Path(which)
    if not options.run:
        raise UsageError("--config needs --weights FILE, or name a run folder (see --help)")
    return Run(options.run).checkpoint(which)


def run_of(options: argparse.Namespace, path: Path) -> Run | None:
    """The run that is named, or in whose folder the checkpoint lies."""
    from skipvit.runs import run

    return run.Run(options.run) if options.run else run.run_of(path)


def trained(config: Config, options: argparse.Namespace, device: str = "auto") -> Trained:
    """The network that a command line names. Raises as `Run.trained`."""
    from skipvit.runs.trained import Trained

    path = checkpoint_of(options)
    return Trained(config, path, options.forward, not options.last, device, run_of(options, path))
