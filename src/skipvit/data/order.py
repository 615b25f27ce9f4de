"""Which images come in which place: pure arithmetic on seed, epoch, rank and world size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skipvit.util.errors import RunError

PADDING = -1  # index, and label, of an image that only fills up the last validation batch


@dataclass(frozen=True)
class Shard:
    """The part of every epoch that one of `world_size` devices sees."""

    rank: int = 0
    world_size: int = 1


def training_steps(images: int, batch: int, shard: Shard, accumulate: int = 1) -> int:
    """Steps of all devices in an epoch: whole batches, and whole updates of `accumulate` batches. Raises RunError:
    there is none."""
    steps = images // (batch * shard.world_size * accumulate) * accumulate
    if not steps:
        times = f"{batch} x {shard.world_size}" + (f" x {accumulate}" if accumulate > 1 else "")
        raise RunError(
            f"data.batch_size: one update takes {times} images and the training set has {images}; use a smaller batch"
        )
    return steps


def training_order(
    images: int, count: int, shard: Shard, seed: int, epoch: int, repeats: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the `count` images that a device sees in an epoch, and numbers of their copies: int64 (count,) each.

    A new permutation each epoch, each image `repeats` times in a row, cut to what all devices take; the copies of an
    image go to different devices where there are several (repeated augmentation, arXiv 1902.05509).
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    places = np.arange(shard.rank, count * shard.world_size, shard.world_size)
    return order[places // repeats], places % repeats


def validation_order(images: int, count: int, shard: Shard) -> np.ndarray:
    """A device's share of all images in order, filled up with `PADDING`: int64 (count,)."""
    indices = np.concatenate([np.arange(images), np.full(count * shard.world_size - images, PADDING)])
    return indices[shard.rank :: shard.world_size]
