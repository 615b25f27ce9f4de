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
    """Steps of all devices in an epoch: whole batches, and whole updates of `accumulate` batches.

    Raises:
        RunError: there is none.
    """
    steps = images // (batch * shard.world_size * accumulate) * accumulate
    if not steps:
        times = f"{batch} x {shard.world_size}" + (f" x {accumulate}" if accumulate > 1 else "")
        raise RunError(
            f"data.batch_size: one update takes {times} images and the training set has {images}; use a smaller batch"
        )
    return steps


@dataclass(frozen=True)
class Order:
    """Which images a device sees in an epoch.

    Training: a new permutation each epoch, each image `repeats` times in a row and the whole cut to `steps` batches;
    the copies of an image go to different devices where there are several (repeated augmentation, arXiv 1902.05509).
    Validation: every image once, in order, filled up to whole batches with `PADDING`.
    """

    images: int
    batch: int
    shard: Shard
    seed: int
    repeats: int
    steps: int

    def training(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the images and numbers of their copies: int64 (steps * batch,) each."""
        total = self.steps * self.batch * self.shard.world_size
        order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
        places = np.arange(self.shard.rank, total, self.shard.world_size)
        return order[places // self.repeats], places % self.repeats

    def validation(self) -> np.ndarray:
        """int64 (steps * batch,)."""
        total = self.steps * self.batch * self.shard.world_size
        indices = np.concatenate([np.arange(self.images), np.full(total - self.images, PADDING)])
        return indices[self.shard.rank :: self.shard.world_size]
