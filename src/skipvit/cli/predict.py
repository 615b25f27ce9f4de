"""`skipvit predict`: the most probable classes of images, and a sheet of what the network looked at."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.trained import add_trained, config_of, trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import replacing, resolved
from skipvit.util.text import printable

SHEET_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
EPILOG = """examples:
  skipvit predict runs/skipvit_mini_shapes cat.jpg holiday/            files and folders
  skipvit predict RUN images --top 1 --json > predictions.json
  skipvit predict RUN images --show sheet.png                        kept patches, [CLS] attention, predictions
  skipvit predict --config FILE --weights FILE.ckpt cat.jpg            without a run's folder

exit code 1: some of the images could not be read; they are named on stderr, the others are predicted
"""


def parser() -> OneLineParser:
    result = OneLineParser("skipvit predict", "Classify images.", EPILOG)
    add = result.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="folder of a run (unless --config), then images and folders of them")
    add_trained(result)
    add("--top", type=int, default=5, metavar="K", help="classes an image (default: 5)")
    add("--batch_size", type=int, default=16, metavar="N", help="images at a time; changes no answer (default: 16)")
    add("--show", metavar="FILE", help="draw the first 48 images into this .png")
    add("--json", action="store_true", help="print one JSON object")
    return result


def run_of_inputs(options: argparse.Namespace) -> str:
    """The configuration to read; the run's folder stands first among the inputs."""
    options.run = None if options.config else options.inputs.pop(0)
    if not options.inputs:
        raise UsageError("no images to predict: name the run's folder, then images or folders of them (see --help)")
    return config_of(options)


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words, run_of_inputs)
    show = Path(options.show) if options.show else None
    if show and show.suffix.lower() not in SHEET_ENDINGS:
        raise UsageError(f"--show: {show} does not end in one of {', '.join(SHEET_ENDINGS)}")
    if show and not show.absolute().parent.is_dir():
        raise UsageError(f"--show: {show.parent} is not a folder; create it first")
    if show and show.exists() and any(resolved(show).is_relative_to(resolved(name)) for name in options.inputs):
        raise UsageError(f"--show: {show} is among the images and would be overwritten; choose another file")
    from tqdm import tqdm

    from skipvit.insight.predict import MOST_SHOWN, as_dict, predict, sheet

    source = trained(config, options)
    found, shown, bad = [], [], {}
    classes, top = source.classes, min(options.top, config.model.num_classes)
    if not options.json:
        print(printable(source.describe()), flush=True)
    for prediction in predict(source, options.inputs, top, options.batch_size, bad):
        if show and len(shown) < MOST_SHOWN:
            shown.append(prediction)
        found.append(prediction._replace(image=None))
        if not options.json:
            answers = [f"{printable(classes[c])} {100 * p:.1f} %" for c, p in prediction.top]
            tqdm.write(f"{printable(prediction.path)}: {', '.join(answers)}")
    if options.json:
        print(json.dumps(as_dict(source, found, bad)))
    for path, reason in bad.items():
        print(f"{printable(path)}: {reason}", file=sys.stderr)
    if show and shown:
        with replacing(show) as partial:
            sheet(source, shown).savefig(partial, dpi=110)
        if not options.json:
            print(f"{len(shown)} of them are drawn in {printable(str(show))}")
    if bad:
        raise RunError(f"{len(bad)} of the inputs could not be read, see above; {len(found)} images were predicted")
