"""From a configuration to images and batches."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from skipvit.config.config import Config
from skipvit.data.batches import Batches
from skipvit.data.broken import Bad, Broken
from skipvit.data.order import PADDING, Shard
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Arrays, Relabelled, Subset
from skipvit.data.sources.cifar import open_cifar
from skipvit.data.sources.image_folder import open_split
from skipvit.data.sources.mindrecord import open_mindrecord
from skipvit.data.sources.shapes import CLASSES, generate
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import printable

MOST_NAMED = 5  # classes in an error


def open_source(config: Config, split: str, index: Path | None = None, classes: Sequence[str] | None = None) -> Source:
    """Images of a split, `train` or `val`.

    Args:
        index: folder in which the list of an image folder's files is kept for the next start, or None.
        classes: names of the network's classes where they are known: labels are then theirs, by name.

    Raises:
        UsageError, RunError: a folder that is missing or not as it should be, a wrong number of classes, unknown ones.
    """
    source = _opened(config, split, index)
    if classes is not None:
        return relabelled(source, classes)
    refuse_other_count(config, source, split)
    return source


def open_sources(config: Config, index: Path | None = None) -> tuple[Source, Source]:
    """Training and validation images, of the same classes.

    Raises:
        UsageError, RunError: as `open_source`; classes that are in one of the two only.
    """
    train, val = (_opened(config, split, index) for split in ("train", "val"))
    refuse_other_classes(train, val)
    refuse_other_count(config, train, "train")
    return train, relabelled(val, train.classes)


def _opened(config: Config, split: str, index: Path | None) -> Source:
    data = config.data
    if data.kind == "shapes":
        count = data.train_size if split == "train" else data.val_size
        images = generate(count, seed=config.seed, split=split)
        return Arrays(images.images, images.labels, CLASSES)
    folder = Path(data.path or "")
    if data.kind == "image_folder":
        return open_split(folder, split, index)
    return open_mindrecord(folder, split) if data.kind == "mindrecord" else open_cifar(folder, data.kind, split)


def refuse_other_count(config: Config, source: Source, split: str) -> None:
    """Raises RunError if the network has not as many classes as the images."""
    wanted, found = config.model.num_classes, len(source.classes)
    if found != wanted:
        advice = f"set --model.num_classes {found}" if split == "train" else "it needs images of its own classes"
        raise RunError(
            f"model.num_classes: {wanted}, but the {split} images in {config.data.path} have {found} classes; {advice}"
        )


def refuse_other_classes(train: Source, val: Source) -> None:
    """Raises RunError if the training and the validation split do not have the same classes."""
    apart = sorted(set(map(_comparable, train.classes)) ^ set(map(_comparable, val.classes)))
    if apart:
        inside = apart[0] in map(_comparable, train.classes)
        where, other = ("train", "val") if inside else ("val", "train")
        raise RunError(f"class {printable(apart[0])!r} is in {where}/ but not in {other}/; both need the same classes")


def match_classes(source: Source, classes: Sequence[str]) -> np.ndarray:
    """Where each class of a source is among others, by name; a subset of them is fine.

    Classes that are called 0, 1, ... on one of the two sides have no known names: they are matched by their places.

    Returns:
        int32 (classes of the source,).

    Raises:
        UsageError: some are not among them, naming these.
    """
    if len(source.classes) == len(classes) and (_numbered(source.classes) or _numbered(classes)):
        return np.arange(len(classes), dtype=np.int32)
    places = {_comparable(name): i for i, name in enumerate(classes)}
    unknown = [name for name in source.classes if _comparable(name) not in places]
    if unknown:
        names = ", ".join(printable(name) for name in unknown[:MOST_NAMED])
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise UsageError(
            f"data.path: its classes {names}{more} are not among the {len(classes)} that the network was trained on; "
            f"rename their folders, or leave them out"
        )
    return np.array([places[_comparable(name)] for name in source.classes], np.int32)


def relabelled(source: Source, classes: Sequence[str]) -> Source:
    """The source with the numbers that these classes have. Raises UsageError as `match_classes`."""
    places = match_classes(source, classes)
    same = len(places) == len(classes) and (places == np.arange(len(classes))).all()
    return source if same else Relabelled(source, tuple(classes), places[source.labels])


def _numbered(classes: Sequence[str]) -> bool:
    return list(classes) == [str(i) for i in range(len(classes))]


def _comparable(name: str) -> str:
    """A name as MindRecord files and JSON keep it: bytes that are no UTF-8 are all alike."""
    return os.fsencode(name).decode("utf-8", "replace")


def fingerprints(train: Source, val: Source) -> tuple[int, int]:
    """Checksums of 32 bits: what they tell apart cannot continue a run.

    Returns:
        of both splits' classes, labels and images (names and sizes of files, or pixels), and, as older checkpoints have
        it, of the training split's classes and labels.
    """
    old = new = _labels_checksum(train, 0)
    for part in train.identity():
        new = zlib.crc32(part, new)
    new = _labels_checksum(val, new)
    for part in val.identity():
        new = zlib.crc32(part, new)
    return new, old


def _labels_checksum(source: Source, value: int) -> int:
    value = zlib.crc32("\0".join(source.classes).encode("utf-8", "surrogateescape"), value)
    return zlib.crc32(source.labels.tobytes(), value)


def batches_of(
    config: Config,
    source: Source,
    noise_width: int,
    training: bool,
    shard: Shard = Shard(),
    batch_size: int | None = None,
    listing: Path | None = None,
    broken: Broken | Bad | None = None,
) -> Callable[..., Batches]:
    """A function that makes the batches from an epoch and a step in it on (validation has but one epoch).

    Args:
        listing: text file for the broken images.
        broken: counts them instead of the limit and the list that a run has.
    """
    broken = broken or Broken(len(source), config.data.broken_share, listing)

    def make(epoch: int = 0, first_step: int = 0) -> Batches:
        return Batches(
            source,
            batch_size=batch_size or config.data.batch_size,
            image_size=config.model.side,
            noise_width=noise_width,
            training=training,
            seed=config.seed,
            augment=config.augment,
            eval_crop=config.data.eval_crop,
            workers=config.data.workers,
            accumulate=config.optim.accumulate,
            shard=shard,
            broken=broken,
            epoch=epoch,
            first_step=first_step,
        )

    return make


def sample(
    config: Config, source: Source, chosen: np.ndarray, noise_width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validation images by their positions: images, labels and noise, see `data.batches`. Those that cannot be decoded
    are black, and labelled as padding."""
    count = len(chosen)
    batches = batches_of(
        config, Subset(source, chosen.tolist()), noise_width, False, batch_size=count, broken=Broken(count, 1.0)
    )
    ((images, labels, noise, _),) = batches()
    return images, labels, noise


def whole_images(config: Config) -> bool:
    """Whether nothing is cropped in validation: the kinds of data whose images are small squares."""
    return config.data.kind in ("shapes", "cifar10", "cifar100")


def prepared(config: Config, source: Source, batch_size: int, bad: Bad) -> Iterator[tuple[list[int], np.ndarray]]:
    """Images prepared as for validation, of a run's source or `Files`.

    Yields:
        places of the good ones in the batch, and uint8 (batch_size, S, S, 3), in which the others are black.
    """
    if whole_images(config):
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval_crop": 1.0})})
    for images, labels, _, _ in batches_of(config, source, 1, False, batch_size=batch_size, broken=bad)():
        yield np.flatnonzero(labels != PADDING).tolist(), images
