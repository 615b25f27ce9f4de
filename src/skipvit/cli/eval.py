"""`skipvit eval`: top-1 and top-5 of a trained network, forward by forward."""

from __future__ import annotations

from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.trained import add_weights, config_of, weights_of
from skipvit.util.errors import UsageError
from skipvit.util.text import as_json, printable, table

EPILOG = """examples:
  python eval.py runs/skipvit_mini_shapes                the newest checkpoint of a run
  python eval.py runs/skipvit_mini_shapes --weights best
  python eval.py --config FILE --weights FILE.ckpt       any checkpoint
  python eval.py RUN --data.path /other/images --json    any key can be overridden
"""


def parser() -> OneLineParser:
    result = OneLineParser("eval.py", "Evaluate a trained network.", EPILOG)
    result.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    add_weights(result)
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words, config_of)
    from skipvit.engine.devices import rank
    from skipvit.runs.evaluation import evaluate_checkpoint

    path, run = weights_of(options)
    scores = evaluate_checkpoint(config, path, classes=run.classes if run else None)
    if rank() == 0:
        result = {"checkpoint": str(path), "trained": config.trained()}
        result |= {name: found.as_dict() for name, found in scores.items()}
        print(as_json(result) if options.json else as_text(result))


def check(words: list[str]) -> None:
    """Raise what an evaluation would raise before its first step, without a device."""
    from skipvit.data.open import open_source

    config, options = from_words(parser(), words, config_of)
    path, run = weights_of(options)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; name a file, or last or best of a run")
    open_source(config, "val", classes=run.classes if run else None)


def as_text(result: dict) -> str:
    rows = []
    for name, row in result.items():
        if isinstance(row, dict):
            note = "trained last" if name == result["trained"] else None
            numbers = f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.3f}", f"{row['images_per_s']:.0f}"
            rows.append((name, *numbers, note))
    head = ("", "top-1 %", "top-5 %", "loss", "images/s", "")
    return f"{printable(result['checkpoint'])}\n{table(rows, head, '<>>>><')}"
