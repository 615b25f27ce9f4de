"""From a configuration to images and batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from skipvit.config.config import Config
from skipvit.data.batches import Batches
from skipvit.data.broken import Bad, Broken
from skipvit.data.order import PADDING, Shard
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Arrays, Subset
from skipvit.data.sources.cifar import open_cifar
from skipvit.data.sources.image_folder import open_split
from skipvit.data.sources.mindrecord import open_mindrecord
from skipvit.data.sources.shapes import CLASSES, generate
from skipvit.util.errors import RunError


def open_source(config: Config, split: str, index: Path | None = None) -> Source:
    """Images of a split, `train` or `val`.

    Args:
        index: folder in which the list of an image folder's files is kept for the next start, or None.

    Raises:
        UsageError, RunError: a folder that is missing or not as it should be, a wrong number of classes.
    """
    data = config.data
    if data.kind == "shapes":
        count = data.train_size if split == "train" else data.val_size
        images = generate(count, seed=config.seed, split=split)
        return Arrays(images.images, images.labels, CLASSES)
    if data.kind == "image_folder":
        source = open_split(Path(data.path), split, index)
    elif data.kind == "mindrecord":
        source = open_mindrecord(Path(data.path), split)
    else:
        source = open_cifar(Path(data.path), data.kind, split)
    if len(source.classes) != config.model.num_classes:
        raise RunError(
            f"model.num_classes: {config.model.num_classes}, but the {split} images in {data.path} have "
            f"{len(source.classes)} classes; set --model.num_classes {len(source.classes)}"
        )
    return source


def refuse_other_classes(train: Source, val: Source) -> None:
    """Raises RunError if the training and the validation split do not have the same classes."""
    if train.classes != val.classes:
        name = sorted(set(train.classes) ^ set(val.classes))[0]
        where, other = ("train", "val") if name in train.classes else ("val", "train")
        raise RunError(f"class {name!r} is in {where}/ but not in {other}/; both need the same classes")


def fingerprint(source: Source) -> int:
    """A checksum of classes, labels and their order: images that it tells apart cannot continue a run."""
    return zlib.crc32(source.labels.tobytes(), zlib.crc32("\0".join(source.classes).encode("utf-8", "surrogateescape")))


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
            image_size=config.model.image_size,
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
