"""`skipvit eval`: top-1 and top-5 of a trained network, forward by forward."""

from __future__ import annotations

import argparse
from pathlib import Path

from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.trained import add_weights, checkpoint_of, config_of, run_of
from skipvit.config.config import Config
from skipvit.util.errors import UsageError
from skipvit.util.text import as_json, printable, table

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


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words, config_of)
    path = checkpoint_of(options)
    from skipvit.engine.devices import rank
    from skipvit.runs.evaluation import evaluate_checkpoint

    scores = evaluate_checkpoint(config, path, classes=classes_of(options, path))
    if rank() == 0:
        result = {"checkpoint": str(path), "trained": config.trained()}
        result |= {name: found.as_dict() for name, found in scores.items()}
        print(as_json(result) if options.json else as_text(result))


def check(words: list[str]) -> Config:
    """Raise what an evaluation would raise before its first step, without a device."""
    from skipvit.data.open import open_source

    config, options = from_words(parser(), words, config_of)
    path = checkpoint_of(options)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; name a file, or last or best of a run")
    open_source(config, "val", classes=classes_of(options, path))
    return config


def classes_of(options: argparse.Namespace, path: Path) -> tuple[str, ...] | None:
    """Names of the network's classes, if the checkpoint's run is known and has noted them."""
    run = run_of(options, path)
    return run.classes if run else None


def as_text(result: dict) -> str:
    rows = []
    for name, row in result.items():
        if isinstance(row, dict):
            note = "trained last" if name == result["trained"] else None
            numbers = f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}"
            rows.append((name, *numbers, note))
    head = ("", "top-1 %", "top-5 %", "loss", "images/s", "")
    return f"{printable(result['checkpoint'])}\n{table(rows, head, '<>>>><')}"
