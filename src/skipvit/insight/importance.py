"""How well what a route keeps is chosen, measured on a trained network for any scorer and block."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skipvit.config.config import Config
from skipvit.data.crops import validation_image
from skipvit.data.decode import BrokenImage
from skipvit.data.open import open_source, sample
from skipvit.data.order import PADDING
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.data.sources.image_folder import ImageFolder
from skipvit.data.sources.shapes import generate
from skipvit.insight.importance_figures import figure_of_kept, figure_of_measures
from skipvit.insight.rankings import measure
from skipvit.models.layers import PIXEL_MEAN
from skipvit.routing.program import routed_stage
from skipvit.routing.scorers import SCORERS
from skipvit.runs.run import Run, trained_of
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import make_folder, read_bytes, replacing, write_whole
from skipvit.util.log import log
from skipvit.util.text import as_json, nearest, table

USUAL = ("cls_attention", "cls_attention_value", "attention_received", "inverse_cls_attention", "grid")
MASK_TYPES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def importance(
    run: Run | Trained | str | Path,
    scorers: Iterable[str] | None = None,
    images: int = 200,
    masks: str | Path | None = None,
    out: str | Path | None = None,
    **chosen: Any,
) -> dict[str, Any]:
    """Measure what a trained network's routes keep; docs/importance.md says what is measured.

    Writes importance.json, importance.txt, importance.png and kept.png.

    Args:
        run: a run or its folder.
        scorers: names; None: the first route's own and the usual ones. `random` is always there to compare with.
        images: validation images, evenly spaced over the set.
        masks: folder with masks of an image folder's images, <class>/<image>.png, white on the object.
        out: folder to write; None: importance/ in the run's.
        chosen: which weights and forward: `which`, `forward`, `averaged`, as of `Run.trained`.

    Returns:
        what importance.json holds.

    Raises:
        UsageError: no routes, no such scorer, masks that are missing; as `Run.trained`.
        RunError: no images; as `Run.trained`.
    """
    trained = trained_of(run, **chosen)
    config = trained.config
    if images < 1:
        raise UsageError("images: use 1 or more")
    if out is None:
        if trained.run is None:
            raise UsageError("out: name the folder to write, as these weights belong to no run")
        out = trained.run.path / "importance"
    if not config.routes:
        example = "--routes '[{start: 2, end: 5}]' --eval.main dense"
        raise UsageError(f"{config.name} has no routes; say where one would begin, e.g. {example}")
    size = config.program(trained.forward).image_size
    if size != config.model.side:
        why = f"takes images of {size} pixels, scorers are read at {config.model.side}"
        raise UsageError(f"forward {trained.forward} {why}; name another forward")
    signals = routed_stage(config.model.spec()).signals
    usual = [name for name in USUAL if set(SCORERS[name].reads) <= set(signals)]
    names = [config.routes[0].scorer, *usual] if scorers is None else list(scorers)
    for name in names:
        if name not in SCORERS:
            raise UsageError(f"scorers: {name!r} is not one of {', '.join(SCORERS)}{nearest(name, SCORERS)}")
        missing = [signal for signal in SCORERS[name].reads if signal not in signals]
        if missing:
            raise UsageError(f"scorers: {name} reads {missing[0]}, which {config.model.name} does not give")
    shown = images_of(trained, images, Path(masks) if masks else None)
    folder = Path(out)
    make_folder(folder, "folder", "--out")
    saved = trained.run.checkpoints() if trained.run else []
    earlier = saved[: saved.index(trained.checkpoint)] if trained.checkpoint in saved else []
    result, kept = measure(trained, list(dict.fromkeys([*names, "random"])), shown, earlier)
    write_whole(folder / "importance.json", as_json(result, 2) + "\n")
    write_whole(folder / "importance.txt", as_text(result) + "\n")
    with replacing(folder / "importance.png") as partial:
        figure_of_measures(result).savefig(partial, dpi=110)
    with replacing(folder / "kept.png") as partial:
        figure_of_kept(shown.images, shown.masks, kept).savefig(partial, dpi=110)
    log.info(f"{as_text(result)}\nnumbers and images: {folder}")
    return result


class Shown(NamedTuple):
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


def images_of(trained: Trained, count: int, masks: Path | None = None) -> Shown:
    """Validation images, evenly spaced over the set, without those that cannot be decoded. Raises as `importance`."""
    config = trained.config
    source = open_source(config, "val", classes=trained.classes)
    chosen = evenly_spaced(source, count)
    images, labels, _ = sample(config, source, chosen, 1)
    whole = labels != PADDING
    images, labels, chosen = images[whole], labels[whole], chosen[whole]
    if not len(labels):
        raise RunError("no image of the validation set can be decoded")
    if config.data.kind == "shapes":
        if masks:
            raise UsageError("masks: the built-in images have masks of their own; leave it out")
        truth = generate(len(source), seed=config.seed, split="val")
        return Shown(images, labels, truth.backgrounds[chosen], "the background", truth.masks[chosen])
    fill = np.broadcast_to(np.round(PIXEL_MEAN).astype(np.uint8), images.shape)
    found = read_masks(config, source, chosen, masks) if masks else None
    return Shown(images, labels, fill, "the mean colour", found)


def read_masks(config: Config, source: Source, chosen: np.ndarray, folder: Path) -> np.ndarray:
    """Masks of images of an image folder, resized and cropped as they are: bool (n, S, S), brighter than half."""
    if not isinstance(source, ImageFolder):
        why = f"images of kind {config.data.kind} have no names to find them by"
        raise UsageError(f"masks: {why}; use data.kind image_folder")
    result = []
    for i in chosen.tolist():
        name = Path(source.relative(i))
        path = next((p for p in (folder / name.with_suffix(t) for t in MASK_TYPES) if p.is_file()), None)
        if path is None:
            raise UsageError(f"masks: {folder / name.with_suffix('.png')} is not there; every image needs a mask")
        try:
            mask = validation_image(read_bytes(path), config.model.spec().image_size, config.data.eval_crop)
        except (BrokenImage, OSError) as error:
            raise RunError(f"{path}: not an image that can be decoded ({error})") from None
        result.append(mask.mean(2) > 127.5)
    return np.stack(result)


COLUMNS = {
    "object_kept": "kept of\nobject",
    "background_kept": "kept of\nbackground",
    "separation": "separation",
    "deletion": "area under\ndeletion",
    "insertion": "area under\ninsertion",
    "last_block_overlap": "last block:\noverlap",
    "last_block_correlation": "last block:\ncorrelation",
    "flip_overlap": "stable:\nflip",
    "shift_overlap": "stable:\nshift",
    "checkpoint_overlap": "stable:\nbefore",
}


def as_text(result: dict[str, Any]) -> str:
    """The measures as a table."""
    rows = []
    for name, row in (result["scorers"] | result["blocks"] | result["means"] | result["routes"]).items():
        values = row | {"checkpoint_overlap": (row["checkpoint_overlap"] or [None])[-1]}
        cells = (values.get(key) for key in COLUMNS)
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in cells)])
    kept, tokens = result["kept"], result["tokens"]
    head = f"{result['checkpoint']}, {result['images']} images, {result['predicts']} forward; of {tokens} patches"
    foot = f"two random sets overlap by {kept / tokens:.3f}; what is taken away shows {result['filled_with']}; before:"
    return (
        f"{head} {kept} are kept, by the attention of block {result['site']}\n"
        f"{table(rows, ('', *COLUMNS.values()), '<' + '>' * len(COLUMNS))}\n{foot} the checkpoint before the last"
    )
