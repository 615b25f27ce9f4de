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
    parser.add_argument("--last", action="store_true", help="the weights themselves where a run has their average too")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--forward", metavar="NAME", help="which one to run, e.g. dense (default: the one that counts, see eval.main)")
    for name in ("dense", "routed"):
        add(f"--{name}", dest="forward", action="store_const", const=name, help=f"--forward {name}")


def config_of(options: argparse.Namespace) -> str:
    """The configuration to read when a run folder is named."""
    if options.config:
        return options.config
    if not options.run:
        raise UsageError("name a run folder, or --config and --weights (see --help)")
    if not (Path(options.run) / "config.yaml").is_file():
        raise UsageError(f"{options.run}: not a run folder, it has no config.yaml")
    return str(Path(options.run) / "config.yaml")


def weights_of(options: argparse.Namespace) -> tuple[Path, Run | None]:
    """The checkpoint that is named, and the run that is named or in whose folder it lies. Raises UsageError if there is
    no checkpoint."""
    from skipvit.runs.run import Run, run_of

    which = options.weights or "last"
    if options.run:
        run = Run(options.run)
        return run.checkpoint(which), run
    if which in ("last", "best"):
        raise UsageError("--config needs --weights FILE, or name a run folder (see --help)")
    return Path(which), run_of(Path(which))


def trained(config: Config, options: argparse.Namespace, device: str = "auto") -> Trained:
    """The network that a command line names. Raises as `Run.trained`."""
    from skipvit.runs.trained import Trained

    path, run = weights_of(options)
    return Trained(config, path, options.forward, not options.last, device, run)
