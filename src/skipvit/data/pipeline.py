"""From pictures to batches: order, reading, decoding and augmentation, on MindSpore's dataset engine.

A batch is uint8 NHWC pictures, int32 labels and the float32 noise of the step's random parts (drop path, random
routes). Order and noise are functions of seed, epoch and picture alone, so an epoch can be repeated, or entered in the
middle, on any number of cards.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Protocol

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image

from skipvit.errors import RunError

PADDING = -1  # label of a picture that only fills up the last validation batch


class Source(Protocol):
    """Pictures by index: encoded files, or uint8 (H, W, 3) arrays."""

    encoded: bool
    classes: tuple[str, ...]
    labels: np.ndarray  # int32 (n,)

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Arrays:
    """A source in memory: images uint8 (n, S, S, 3), labels int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    encoded: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]


class Subset:
    """Some pictures of a source, by their indices there."""

    def __init__(self, source: Source, indices: list[int]):
        self.source, self.indices = source, indices
        self.encoded, self.classes = source.encoded, source.classes
        self.labels = source.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> np.ndarray:
        return self.source.read(self.indices[i])

    def path(self, i: int) -> Path:
        return self.source.path(self.indices[i])


@dataclass(frozen=True)
class Shard:
    """The part of every epoch that one of `count` cards sees."""

    rank: int = 0
    count: int = 1


def training_steps(pictures: int, batch: int, shard: Shard) -> int:
    """Whole steps of all cards in an epoch.

    Raises:
        RunError: there is none.
    """
    steps = pictures // (batch * shard.count)
    if not steps:
        raise RunError(
            f"data.batch_size: one step takes {batch} x {shard.count} pictures and the training set has {pictures}; "
            f"use a smaller batch"
        )
    return steps


class Order(ds.Sampler):
    """The pictures of one card, epoch after epoch, as ids `epoch * pictures + index`.

    Training: a new permutation each epoch, cut to whole batches. Validation: every picture once, in order, filled up
    to whole batches with ids of an epoch of their own (negative), which `Samples` turns into padding.
    """

    def __init__(self, pictures: int, batch: int, shard: Shard, seed: int, training: bool, epoch: int = 0):
        self.pictures, self.batch, self.shard, self.seed = pictures, batch, shard, seed
        self.training, self.epoch = training, epoch
        self.steps = training_steps(pictures, batch, shard) if training else -(-pictures // (batch * shard.count))
        super().__init__(num_samples=None)

    def ids(self, epoch: int) -> np.ndarray:
        """int64 (steps * batch,): what this card sees in an epoch."""
        total = self.steps * self.batch * self.shard.count
        if self.training:
            ids = np.random.default_rng([self.seed, epoch]).permutation(self.pictures)[:total] + epoch * self.pictures
        else:
            ids = np.concatenate([np.arange(self.pictures), np.full(total - self.pictures, PADDING)])
        return ids[self.shard.rank :: self.shard.count].astype(np.int64)

    def __iter__(self) -> Iterator[int]:
        ids = self.ids(self.epoch)
        self.epoch += 1
        return iter(ids.tolist())


class Samples:
    """Random access by `Order`'s ids: picture, label, noise."""

    def __init__(self, source: Source, noise_width: int, seed: int):
        self.source, self.noise_width, self.seed = source, noise_width, seed
        self.recent: deque[int] = deque(maxlen=4096)  # indices read lately: where to look when decoding fails
        self.problem: RunError | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, identity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if identity == PADDING:
            return self.source.read(0), np.array(PADDING, np.int32), np.zeros(self.noise_width, np.float32)
        epoch, i = divmod(int(identity), len(self.source))
        self.recent.append(i)
        noise = np.random.default_rng([self.seed, epoch, i]).random(self.noise_width, np.float32)
        try:
            return self.source.read(i), np.array(self.source.labels[i], np.int32), noise
        except OSError as error:
            self.problem = RunError(f"{error.filename}: cannot be read ({error.strerror}); restore or remove it")
            raise

    def explain(self, error: RuntimeError) -> RunError:
        """After the engine failed: the picture that it failed on, if one of those read lately is the reason."""
        if self.problem:
            return self.problem
        for i in reversed(tuple(self.recent)) if self.source.encoded else ():
            path: Path = self.source.path(i)
            try:
                vision.Decode()(np.fromfile(path, np.uint8))
            except (RuntimeError, OSError, ValueError):
                return RunError(f"{path}: not a picture that can be decoded ({_reason(path)}); replace or remove it")
        text = " ".join(line for line in str(error).split() if not set(line) <= set("-"))
        return RunError(f"a training or evaluation step failed: {text[:400]}")


def _reason(path: Path) -> str:
    """Why a file is no picture, in Pillow's words."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except Exception as error:  # Pillow raises many kinds for a broken file
        return str(error).split(":")[0].split(" '/")[0]
    return "its format is not supported"


class Batches:
    """A data set for `mindspore.train.Model`, and what is needed to explain its failures.

    Args:
        source: the pictures.
        batch_size: pictures a step on this card.
        image_size: side of the square pictures that leave, pixels.
        noise_width: columns of noise, see `models.vit.ViT`.
        augment: none, flip, crop_flip or resized_crop_flip; training only.
        eval_crop: share of the resized picture's side that validation keeps.
        epoch: which epoch this is, or begins with.

    Raises:
        RunError: as `training_steps`.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        noise_width: int,
        training: bool,
        seed: int,
        augment: str = "none",
        eval_crop: float = 0.875,
        workers: int = 1,
        shard: Shard = Shard(),
        epoch: int = 0,
    ):
        self.samples, self.batch_size = Samples(source, noise_width, seed), batch_size
        order = Order(len(source), batch_size, shard, seed, training, epoch)
        self.steps = order.steps
        # The engine's augmentations draw in order, so the cards need seeds of their own.
        ds.config.set_seed(int(np.random.SeedSequence([seed, epoch, shard.rank]).generate_state(1)[0] & 0x7FFFFFFF))
        data = ds.GeneratorDataset(self.samples, ["image", "label", "noise"], sampler=order, num_parallel_workers=1)
        operations = _training(source.encoded, image_size, augment) if training else _validation(source.encoded, image_size, eval_crop)
        if operations:
            data = data.map(operations, ["image"], num_parallel_workers=workers)
        self.dataset = data.batch(batch_size, drop_remainder=True)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """One epoch of NumPy batches: uint8 (B, S, S, 3), int32 (B,), float32 (B, noise_width)."""
        try:
            yield from self.dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        except RuntimeError as error:
            raise self.samples.explain(error) from None


def _training(encoded: bool, size: int, augment: str) -> list:
    if augment == "resized_crop_flip":
        crop = vision.RandomCropDecodeResize if encoded else vision.RandomResizedCrop
        return [crop(size, (0.08, 1.0), (3 / 4, 4 / 3), Inter.BICUBIC), vision.RandomHorizontalFlip()]
    operations = [vision.Decode(), vision.Resize((size, size), Inter.BICUBIC)] if encoded else []
    if augment == "crop_flip":
        operations.append(vision.RandomCrop(size, padding=size // 8))
    if augment in ("flip", "crop_flip"):
        operations.append(vision.RandomHorizontalFlip())
    return operations


def _validation(encoded: bool, size: int, crop: float) -> list:
    if not encoded:
        return []
    return [vision.Decode(), vision.Resize(round(size / crop), Inter.BICUBIC), vision.CenterCrop(size)]
