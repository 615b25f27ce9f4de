"""`skipvit predict`: the most probable classes of images, and a sheet of what the network looked at."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from mindspore import Tensor
from tqdm import tqdm

from skipvit.cli.eval import default_config
from skipvit.config import config as configuration
from skipvit.data.broken import Bad
from skipvit.data.open import prepared
from skipvit.data.sources.files import Files, find_images
from skipvit.engine import distributed
from skipvit.insight.figures import prediction_figure
from skipvit.models.vit import Activations
from skipvit.routing.routing import Span
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import printable
from skipvit.weights.trained import Trained, add_options, load

MOST_SHOWN = 48  # images of a sheet
BY_ATTENTION = ("cls_attention", "sampled_cls_attention", "mixed_cls_attention")  # outside training
SHEET_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
EPILOG = """examples:
  skipvit predict runs/skipvit_mini_shapes cat.jpg holiday/            files and folders
  skipvit predict RUN images --top 1 --json > predictions.json
  skipvit predict RUN images --show sheet.png                        kept patches, [CLS] attention, predictions
  skipvit predict --config FILE --weights FILE.ckpt cat.jpg            without a run's folder

exit code 1: some of the images could not be read; they are named on stderr, the others are predicted
"""


class Prediction(NamedTuple):
    """An image's path and its most probable classes: numbers and probabilities, most probable first."""

    path: str
    top: list[tuple[int, float]]


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="skipvit predict", description="Classify images.", epilog=EPILOG)
    result.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="folder of a run (unless --config), then images and folders of them"
    )
    add_options(result)
    result.add_argument("--top", type=int, default=5, metavar="K", help="classes an image (default: 5)")
    result.add_argument(
        "--batch_size", type=int, default=16, metavar="N", help="images at a time; changes no answer (default: 16)"
    )
    result.add_argument("--show", metavar="FILE", help=f"draw the first {MOST_SHOWN} images into this .png")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words, config_of)
    check(options)
    device, _ = distributed.start(config.device, config.deterministic)
    trained = load(config, options, device)
    paths, reasons = find_images(options.inputs)
    top, shown, found = min(options.top, len(trained.classes)), [], []
    if not options.json:
        print(trained.describe(), flush=True)
    for prediction, image in predict(trained, paths, min(options.batch_size, max(1, len(paths))), top, Bad(reasons)):
        found.append(prediction)
        if options.show and len(shown) < MOST_SHOWN:
            shown.append(image)
        if not options.json:
            tqdm.write(as_line(prediction, trained.classes))
    if options.json:
        print(json.dumps(as_dict(trained, found, reasons)))
    for path, reason in reasons.items():
        print(f"{printable(path)}: {reason}", file=sys.stderr)
    if shown:
        save(sheet(trained, np.stack(shown), found), Path(options.show))
        if not options.json:
            print(f"{len(shown)} of them are drawn in {options.show}")
    if reasons:
        raise RunError(f"{len(reasons)} of the inputs could not be read, see above; {len(found)} images were predicted")


def config_of(options: argparse.Namespace) -> str:
    """The configuration to read; without --config the first input is a run's folder."""
    options.run = None if options.config else options.inputs.pop(0)
    if not options.inputs:
        raise UsageError("no images to predict: name the run's folder, then images or folders of them (see --help)")
    return default_config(options)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for an option that cannot be followed."""
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}: {getattr(options, name)} is not possible; use 1 or more")
    if options.show:
        path = Path(options.show)
        if path.suffix.lower() not in SHEET_ENDINGS:
            raise UsageError(f"--show: {path} does not end in one of {', '.join(SHEET_ENDINGS)}")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--show: {path.parent} is not a folder; create it first")


def predict(
    trained: Trained, paths: list[str], batch_size: int, top: int, bad: Bad
) -> Iterator[tuple[Prediction, np.ndarray]]:
    """The predictions of those files that can be read, in order, each with its pixels, uint8 (S, S, 3).

    Raises:
        RunError: the network's outputs are not finite.
    """
    predictor = trained.predictor()
    with tqdm(total=len(paths), desc="predicting", unit=" images", leave=False, disable=None) as bar:
        for step, (good, images) in enumerate(prepared(trained.config, Files(paths), batch_size, bad)):
            probabilities = predictor(Tensor(images)).asnumpy()
            if not np.isfinite(probabilities[good]).all():
                raise RunError(
                    f"{trained.checkpoint}: its weights give no finite probabilities; use an older checkpoint"
                )
            for place in good:
                best = np.argsort(-probabilities[place], kind="stable")[:top]
                classes = [(int(c), float(probabilities[place, c])) for c in best]
                yield Prediction(paths[step * batch_size + place], classes), images[place]
            bar.update(min(batch_size, len(paths) - step * batch_size))


def as_line(prediction: Prediction, classes: tuple[str, ...]) -> str:
    return f"{printable(prediction.path)}: " + ", ".join(
        f"{printable(classes[c])} {100 * p:.1f} %" for c, p in prediction.top
    )


def as_dict(trained: Trained, found: list[Prediction], reasons: dict[str, str]) -> dict:
    """All answers for `--json`; probabilities are 0 to 1."""
    return {
        "checkpoint": str(trained.checkpoint),
        "weights": "averaged" if trained.averaged else "last",
        "forward": trained.forward,
        "predictions": [
            {"path": path, "top": [{"class": trained.classes[c], "index": c, "probability": p} for c, p in top]}
            for path, top in found
        ],
        "bad": [{"path": path, "reason": reason} for path, reason in reasons.items()],
    }


def sheet(trained: Trained, images: np.ndarray, found: list[Prediction]) -> Figure:
    """Figure of images, uint8 (n, S, S, 3), with kept patches, [CLS] attention and the first n predictions."""
    network, routed = trained.network, trained.routed
    spans = network.spans if routed else ()
    names = ["cls_attention"] + [f"routes.{r}.{what}" for r in range(len(spans)) for what in ("kept", "ranking")]
    noise = np.broadcast_to(trained.predictor().noise.asnumpy(), (len(images), network.noise_width))
    seen = Activations(network, names, routed).by_name(Tensor(images), Tensor(noise.copy()))
    attention, where = attention_of(seen, spans, network.tokens, network.depth)
    views = "image, kept patches (bypassed ones dimmed)" if spans else "image"
    names = [_short(printable(name), 24) for name in trained.classes]
    captions = [
        (_short(printable(Path(path).name), 34), "\n".join(f"{names[c]} {100 * p:.1f} %" for c, p in top[:2]))
        for path, top in found
    ]
    title = f"{views}, attention of [CLS] in {where} (bright: most)"
    kept = [seen[f"routes.{r}.kept"] for r in range(len(spans))]
    grid = trained.config.model.image_size // trained.config.model.patch
    return prediction_figure(images, kept, attention, captions, grid, title)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def attention_of(
    seen: dict[str, np.ndarray], spans: tuple[Span, ...], tokens: int, depth: int
) -> tuple[np.ndarray, str]:
    """What [CLS] attends to, float (n, tokens), and the block that it is of.

    Where the first route is scored by attention, that is what it selects by; else the last block's, and 0 for patches that
    have not come so far.
    """
    if spans and spans[0].scorer in BY_ATTENTION:
        block = spans[0].start - spans[0].reads_before
        return seen["routes.0.ranking"], f"block {block}, by which patches are kept"
    row, attention = seen["cls_attention"][:, 1:], np.zeros((len(seen["cls_attention"]), tokens), np.float32)
    places = np.broadcast_to(np.arange(tokens), attention.shape)
    for r, span in enumerate(spans):
        gone = not span.restore and span.first_block < depth  # before the last block's attention
        places = seen[f"routes.{r}.kept"] if gone else places
    np.put_along_axis(attention, places, row[:, : places.shape[1]], 1)
    return attention, f"block {depth - 1}, the last"


def save(figure: Figure, path: Path) -> None:
    """Write a figure so that a failure leaves no half of it. Raises OSError."""
    partial = path.with_name(f".partial.{path.name}")
    try:
        figure.savefig(partial, dpi=110)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
