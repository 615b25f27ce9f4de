"""`skipvit eval`: top-1 and top-5 of a trained network, forward by forward."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from skipvit.cli.options import OneLineParser, from_words
from skipvit.config.config import Config
from skipvit.util.errors import UsageError
from skipvit.util.text import table

EPILOG = """examples:
  python eval.py runs/skipvit_mini_shapes                the newest checkpoint of a run
  python eval.py runs/skipvit_mini_shapes --weights best
  python eval.py --config FILE --weights FILE.ckpt       any checkpoint
  python eval.py RUN --data.path /other/images --json    any key can be overridden
"""


def parser() -> OneLineParser:
    result = OneLineParser(prog="eval.py", description="Evaluate a trained network.", epilog=EPILOG)
    result.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    add_weights(result)
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def add_weights(parser: OneLineParser) -> None:
    """What commands take to name weights."""
    parser.add_argument("--config", metavar="FILE", help="YAML file, instead of the run's")
    parser.add_argument("--weights", metavar="WHICH", help="last, best or a checkpoint's file (default: last)")


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words, config_of)
    path = checkpoint_of(options)
    from skipvit.engine.devices import rank
    from skipvit.runs.evaluation import evaluate_checkpoint

    scores = evaluate_checkpoint(config, path, classes=classes_of(options))
    if rank() == 0:
        result = {"checkpoint": str(path), "trained": config.trained()}
        result |= {name: found.as_dict() for name, found in scores.items()}
        print(json.dumps(result) if options.json else as_text(result))


def check(words: list[str]) -> Config:
    """Raise what an evaluation would raise before its first step, without a device."""
    from skipvit.data.open import open_source

    config, options = from_words(parser(), words, config_of)
    path = checkpoint_of(options)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    open_source(config, "val", classes=classes_of(options))
    return config


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


def classes_of(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Names of the network's classes, if a run is named that has noted them."""
    from skipvit.runs.run import Run

    return Run(options.run).classes if options.run else None


def as_text(result: dict) -> str:
    rows = []
    for name, row in result.items():
        if isinstance(row, dict):
            note = "trained last" if name == result["trained"] else None
            numbers = f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}"
            rows.append((name, *numbers, note))
    head = ("", "top-1 %", "top-5 %", "loss", "images/s", "")
    return f"{result['checkpoint']}\n{table(rows, head, '<>>>><')}"
