"""`skipvit importance`: how well what a route keeps is chosen, measured on a trained network for any scorer and block."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skipvit.cli.eval import checkpoint_of, default_config
from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.data.crops import validation_image
from skipvit.data.decode import BrokenImage
from skipvit.data.open import open_source, sample
from skipvit.data.order import PADDING
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.data.sources.image_folder import ImageFolder
from skipvit.data.sources.shapes import generate
from skipvit.engine import checkpoint, distributed
from skipvit.engine.build import build_network
from skipvit.insight.importance_figures import figure_of_kept, figure_of_measures
from skipvit.insight.rankings import measure
from skipvit.models.vit import PIXEL_MEAN
from skipvit.routing.scorers import SCORERS
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import make_folder

EPILOG = """examples:
  skipvit importance runs/skipvit_mini_shapes
  skipvit importance RUN --scorers cls_attention,random --images 100
  skipvit importance RUN --masks masks/ --data.path /data/birds   masks/<class>/<image>.png, white on the object
  skipvit importance RUN --routes '[{start: 2, end: 5}]' --phases.dense_warmup_epochs 0 --phases.evaluate dense
                                                      of a dense run: where a route would begin

Writes RUN/importance/: importance.json, importance.txt, importance.png, kept.png. docs/importance.md says what is measured.
"""

USUAL = ("cls_attention", "cls_attention_value", "inverse_cls_attention", "grid")
MASK_TYPES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit importance", description="Measure what a trained network's routes keep.", epilog=EPILOG
    )
    result.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    result.add_argument("--config", metavar="FILE", help="YAML file, instead of the run's")
    result.add_argument("--weights", metavar="FILE", help="checkpoint, instead of the run's newest")
    result.add_argument("--scorers", metavar="A,B", help="scorers to measure; the usual ones if not given")
    result.add_argument(
        "--masks", metavar="FOLDER", help="masks of the validation images (an image folder's), as <class>/<image>.png"
    )
    result.add_argument(
        "--images", type=int, default=200, metavar="N", help="validation images, evenly spaced (default: 200)"
    )
    result.add_argument("--out", metavar="FOLDER", help="where to write, instead of RUN/importance")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words, default_config)
    path = checkpoint_of(options)
    if options.images < 1:
        raise UsageError("--images: use 1 or more")
    if not options.out and not options.run:
        raise UsageError("--out: name the folder to write, or a run folder (see --help)")
    if not config.routes:
        raise UsageError(
            f"{config.name} has no routes; say where one would begin, e.g. --routes '[{{start: 2, end: 5}}]' "
            f"--phases.dense_warmup_epochs 0 --phases.evaluate dense"
        )
    scorers = chosen_scorers(options.scorers, config.routes[0].scorer)
    out = Path(options.out or Path(options.run) / "importance")
    shown = images_of(config, options.images, options.masks)
    make_folder(out, "folder", "--out")
    device, _ = distributed.start(config.device, config.deterministic)
    earlier = [] if options.weights or not options.run else checkpoint.saved(Path(options.run) / "checkpoints")[:-1]
    result, kept = measure(config, build_network(config, device), scorers, shown, [*earlier, path])
    (out / "importance.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "importance.txt").write_text(as_text(result) + "\n")
    figure_of_measures(result).savefig(out / "importance.png", dpi=110)
    figure_of_kept(shown.images, shown.masks, kept).savefig(out / "kept.png", dpi=110)
    print(as_text(result))
    print(f"numbers and images: {out}")


def chosen_scorers(text: str | None, own: str) -> list[str]:
    """Those asked for, else the route's own and the usual ones; `random` is always there to compare with.

    Raises:
        UsageError: one does not exist.
    """
    names = text.split(",") if text else [own, *USUAL]
    for name in names:
        if name not in SCORERS:
            raise UsageError(f"--scorers: {name!r} is not one of {', '.join(SCORERS)}")
    return list(dict.fromkeys([*names, "random"]))


@dataclass(frozen=True)
class Shown:
    """Validation images to measure on.

    Attributes:
        images: uint8 (n, S, S, 3); labels: int32 (n,).
        fill: uint8 (n, S, S, 3), what is where a patch is taken away.
        filled_with: its name.
        masks: bool (n, S, S), where the object is, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    fill: np.ndarray
    filled_with: str
    masks: np.ndarray | None


def images_of(config: Config, count: int, masks: str | None) -> Shown:
    """Validation images, evenly spaced over the set; those that cannot be decoded are left out.

    Raises:
        UsageError, RunError: masks that are missing or no images; no image at all.
    """
    source = open_source(config, "val")
    chosen = evenly_spaced(source, count)
    images, labels, _ = sample(config, source, chosen, 1)
    whole = labels != PADDING
    images, labels, chosen = images[whole], labels[whole], chosen[whole]
    if not len(labels):
        raise RunError("no image of the validation set can be decoded")
    if config.data.kind == "shapes":
        if masks:
            raise UsageError("--masks: the built-in images have masks of their own; leave it out")
        truth = generate(len(source), seed=config.seed, split="val")
        return Shown(images, labels, truth.backgrounds[chosen], "the background", truth.masks[chosen])
    fill = np.broadcast_to(np.round(PIXEL_MEAN).astype(np.uint8), images.shape)
    return Shown(
        images, labels, fill, "the mean colour", read_masks(config, source, chosen, Path(masks)) if masks else None
    )


def read_masks(config: Config, source: Source, chosen: np.ndarray, folder: Path) -> np.ndarray:
    """Masks of images of an image folder, resized and cropped as they are: bool (n, S, S), true where brighter than half.

    Raises:
        UsageError: the images have no file names; a mask is missing.
        RunError: a mask cannot be decoded.
    """
    if not isinstance(source, ImageFolder):
        raise UsageError(
            f"--masks: images of kind {config.data.kind} have no names to find masks by; use data.kind image_folder"
        )
    result = []
    for i in chosen.tolist():
        name = Path(source.relative(i))
        path = next((p for p in (folder / name.with_suffix(t) for t in MASK_TYPES) if p.is_file()), None)
        if path is None:
            raise UsageError(f"--masks: {folder / name.with_suffix('.png')} is not there; every image needs a mask")
        try:
            mask = validation_image(path.read_bytes(), config.model.image_size, config.data.eval_crop)
        except BrokenImage as error:
            raise RunError(f"{path}: not an image that can be decoded ({error})") from None
        result.append(mask.mean(2) > 127.5)
    return np.stack(result)


COLUMNS = {
    "object_kept": "object",
    "background_kept": "backgr.",
    "separation": "separat.",
    "deletion": "deletion",
    "insertion": "insert.",
    "last_block_overlap": "overlap",
    "last_block_correlation": "correl.",
    "flip_overlap": "flip",
    "shift_overlap": "shift",
    "checkpoint_overlap": "before",
}


def as_text(result: dict) -> str:
    """The measures as a table."""
    chance = result["kept"] / result["tokens"]
    lines = [
        f"{result['checkpoint']}, {result['images']} images, {result['predicts']} forward; of {result['tokens']} patches "
        f"{result['kept']} are kept, by the attention of block {result['site']}",
        f"{'':32}{'kept of':>16}{'':9}{'area under':>18}{'with last block':>18}{'stable under':>27}",
        f"{'':32}" + "".join(f"{title:>9}" for title in COLUMNS.values()),
    ]
    for group in ("scorers", "blocks", "routes"):
        for name, row in result[group].items():
            lines.append(f"{name:32}" + "".join(f"{_last(row.get(key)):>9}" for key in COLUMNS))
    lines.append(
        f"two random sets overlap by {chance:.3f}; what is taken away shows {result['filled_with']}; before: the checkpoint before the last"
    )
    return "\n".join(lines)


def _last(value: float | list[float] | None) -> str:
    value = value[-1] if isinstance(value, list) and value else value
    return "-" if value is None or value == [] else f"{value:.3f}"
