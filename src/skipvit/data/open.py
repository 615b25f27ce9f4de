"""From a configuration to images and batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path

import numpy as np

from skipvit.config.config import Config
from skipvit.data.batches import Batches
from skipvit.data.broken import Bad, Broken
from skipvit.data.classes import refuse_other_classes, relabelled
from skipvit.data.order import PADDING, Shard
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Arrays, Subset
from skipvit.data.sources.cifar import open_cifar
from skipvit.data.sources.image_folder import open_split
from skipvit.data.sources.mindrecord import open_mindrecord
from skipvit.data.sources.shapes import CLASSES, generate
from skipvit.util.errors import RunError
from skipvit.util.files import expanded


def open_source(config: Config, split: str, classes: Sequence[str] | None = None) -> Source:
    """Images of a split, `train` or `val`.

    Args:
        classes: names of the network's classes where they are known: labels are then theirs, by name.

    Raises:
        UsageError, RunError: a folder that is missing or not as it should be, a wrong number of classes, unknown ones.
    """
    source = _opened(config, split)
    if classes is not None:
        return relabelled(source, classes)
    refuse_other_count(config, source, split)
    return source


def open_sources(config: Config, index: Path | None = None) -> tuple[Source, Source]:
    """Training and validation images, of the same classes.

    Args:
        index: folder in which the list of an image folder's files is kept for the next start, or None.

    Raises:
        UsageError, RunError: as `open_source`; classes that are in one of the two only.
    """
    train, val = (_opened(config, split, index) for split in ("train", "val"))
    refuse_other_classes(train, val)
    refuse_other_count(config, train, "train")
    return train, relabelled(val, train.classes)


def _opened(config: Config, split: str, index: Path | None = None) -> Source:
    data = config.data
    if data.kind == "shapes":
        count = data.train_size if split == "train" else data.val_size
        images = generate(count, seed=config.seed, split=split)
        return Arrays(images.images, images.labels, CLASSES)
    folder = expanded(data.path or "")
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


def fingerprints(train: Source, val: Source) -> tuple[int, int]:
    """Checksums of 32 bits: what they tell apart cannot continue a run.

    Returns:
        of both splits' classes, labels and images (names and sizes of files, or pixels), and, as older checkpoints have
        it, of the training split's classes and labels.
    """
    parts = [[_utf8(source.classes), source.labels.data, *source.identity()] for source in (train, val)]
    old = zlib.crc32(train.labels.data, zlib.crc32(_utf8(train.classes)))
    return reduce(lambda value, part: zlib.crc32(part, value), chain(*parts), 0), old


def _utf8(names: Sequence[str]) -> bytes:
    return "\0".join(names).encode("utf-8", "surrogateescape")


def batches_of(
    config: Config,
    source: Source,
    noise_width: int,
    training: bool,
    shard: Shard = Shard(),
    batch_size: int | None = None,
    listing: Path | None = None,
    broken: Broken | Bad | None = None,
    epoch: int = 0,
    first_step: int = 0,
) -> Batches:
    """The batches of a source as a run prepares them.

    Args:
        listing: text file for the broken images.
        broken: counts them instead of the limit and the list that a run has.
        epoch, first_step: where training begins.
    """
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
        broken=broken or Broken(len(source), config.data.broken_share, listing),
        epoch=epoch,
        first_step=first_step,
    )


def sample(
    config: Config, source: Source, chosen: np.ndarray, noise_width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validation images by their positions: images, labels and noise, see `data.batches`. Those that cannot be decoded
    are black, and labelled as padding."""
    count = len(chosen)
    part, broken = Subset(source, chosen.tolist()), Broken(count, 1.0)
    ((images, labels, noise, _),) = batches_of(config, part, noise_width, False, batch_size=count, broken=broken)
    return images, labels, noise


def whole_images(config: Config) -> bool:
    """Whether nothing is cropped in validation: the kinds of data whose images are small squares."""
    return config.data.kind in ("shapes", "cifar10", "cifar100")


def prepared(config: Config, source: Source, batch_size: int, bad: Bad) -> Iterator[tuple[list[int], np.ndarray]]:
    """Images prepared as for validation, of a run's source or `Files`. Yields places of the good ones in the batch, and
    uint8 (batch_size, S, S, 3), in which the others are black."""
    if whole_images(config):
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval_crop": 1.0})})
    for images, labels, _, _ in batches_of(config, source, 1, False, batch_size=batch_size, broken=bad):
        yield np.flatnonzero(labels != PADDING).tolist(), images
