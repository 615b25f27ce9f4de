"""From images to batches: order, reading, decoding and augmentation.

A batch is uint8 NHWC images, int32 labels, the float32 noise of the step's random parts (drop path, random routes) and
the numbers of mixup and CutMix. Everything is a function of seed, epoch and image (mixing: of seed, epoch, step and
device), so an epoch can be repeated, or entered in the middle, and the number of threads changes nothing.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import mindspore.dataset as ds
import numpy as np

from skipvit.data.augment import Augment, BrokenImage, Mix, mix_numbers, training_image, validation_image
from skipvit.util.errors import DamagedRecord, RunError

# What the operating system says about a file that is bad; anything else it says about the storage.
FILE_IS_BAD = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
RETRY_AFTER_S = (1, 4, 15)
PADDING = -1  # label of an image that only fills up the last validation batch
COLUMNS = ("image", "label", "noise", "mix")

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Source(Protocol):
    """Images by index; may be read by several threads at once."""

    classes: tuple[str, ...]
    labels: np.ndarray  # int32 (n,)

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """An encoded file, or uint8 (H, W, 3)."""

    def name(self, i: int) -> str:
        """What to call image i in a message."""


@dataclass(frozen=True)
class Arrays:
    """A source in memory: images uint8 (n, S, S, 3), labels int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]

    def name(self, i: int) -> str:
        return f"image {i}"


class Subset:
    """Some images of a source, by their indices there."""

    def __init__(self, source: Source, indices: list[int]):
        self.source, self.indices = source, indices
        self.classes, self.labels = source.classes, source.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> bytes | np.ndarray:
        return self.source.read(self.indices[i])

    def name(self, i: int) -> str:
        return self.source.name(self.indices[i])


def fingerprint(source: Source) -> int:
    """A checksum of classes, labels and their order: images that it tells apart cannot continue a run."""
    return zlib.crc32(source.labels.tobytes(), zlib.crc32("\0".join(source.classes).encode("utf-8", "surrogateescape")))


def printable(name: str) -> str:
    """A file's name for a line of text: without line breaks and bytes that are no UTF-8."""
    return name if name.isprintable() else ascii(name)


@dataclass(frozen=True)
class Shard:
    """The part of every epoch that one of `count` devices sees."""

    rank: int = 0
    count: int = 1


def training_steps(images: int, batch: int, shard: Shard, accumulate: int = 1) -> int:
    """Steps of all devices in an epoch: whole batches, and whole updates of `accumulate` batches.

    Raises:
        RunError: there is none.
    """
    steps = images // (batch * shard.count * accumulate) * accumulate
    if not steps:
        times = f"{batch} x {shard.count}" + (f" x {accumulate}" if accumulate > 1 else "")
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
        total = self.steps * self.batch * self.shard.count
        order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
        places = np.arange(self.shard.rank, total, self.shard.count)
        return order[places // self.repeats], places % self.repeats

    def validation(self) -> np.ndarray:
        """int64 (steps * batch,)."""
        total = self.steps * self.batch * self.shard.count
        indices = np.concatenate([np.arange(self.images), np.full(total - self.images, PADDING)])
        return indices[self.shard.rank :: self.shard.count]


class Broken:
    """The images of a split that could not be read: listed once each, and not more than a share of them all.

    Args:
        images: how many the split has.
        share: the largest share of them that may be broken; 0: the first one ends the run.
        path: a text file that gets a line an image, name and reason; what it lists already counts. None: no list.
    """

    def __init__(self, images: int, share: float, path: Path | None = None):
        self.limit, self.share, self.path = math.floor(share * images), share, path
        self.lock = threading.Lock()
        self.names: set[str] = set()
        self.size = 0  # of the list when it was read last
        self._read()

    def add(self, name: str, reason: str) -> None:
        """Raises RunError if there are too many now."""
        name = printable(name)
        with self.lock:
            if name not in self.names:
                self._read()  # other devices may have listed it
            if name not in self.names:
                self.names.add(name)
                self._list(f"{name}\t{reason}\n")
            count = len(self.names)
        if self.limit == 0:
            raise RunError(
                f"{name}: not an image that can be decoded ({reason}); replace it, remove it or allow data.broken_share"
            )
        if count > self.limit:
            raise RunError(
                f"{name}: not an image that can be decoded ({reason}), number {count}; data.broken_share {self.share} allows "
                f"{self.limit}" + (f"; they are listed in {self.path}: mend them and remove it" if self.path else "")
            )

    def _read(self) -> None:
        try:
            if self.path is not None and self.path.stat().st_size != self.size:
                text = self.path.read_text(encoding="utf-8", errors="replace")
                self.names |= {line.split("\t")[0] for line in text.splitlines()}
                self.size = self.path.stat().st_size
        except OSError:
            pass  # there is none yet

    def _list(self, line: str) -> None:
        if self.path is not None:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError:
                pass  # a full disk is no reason to stop; the count goes on


@dataclass
class Batches:
    """The batches of a split on this device.

    Attributes:
        batch_size: images a step on this device.
        image_size: side of the square images that leave, pixels.
        noise_width: columns of noise, see `models.vit.ViT`.
        eval_crop: share of the resized image's side that validation keeps.
        workers: threads that decode and augment; each makes a batch at a time.
        accumulate: batches that make an update; an epoch has whole updates.
        repeats: how often an image that an epoch draws occurs in it, see `Order`.
        epoch, first_step: where training begins. A data set that begins within an epoch is for this epoch alone.

    Raises:
        RunError: as `training_steps`.
    """

    source: Source
    batch_size: int
    image_size: int
    noise_width: int
    training: bool
    seed: int
    augment: Augment = Augment()
    mix: Mix = Mix()
    eval_crop: float = 0.875
    workers: int = 1
    accumulate: int = 1
    repeats: int = 1
    shard: Shard = Shard()
    broken: Broken | None = None
    epoch: int = 0
    first_step: int = 0
    problem: RunError | None = field(default=None, init=False)

    def __post_init__(self):
        images, per_step = len(self.source), self.batch_size * self.shard.count
        if self.training:
            self.steps = training_steps(images, self.batch_size, self.shard, self.accumulate)
        else:
            self.steps = -(-images // per_step)
        self.order = Order(images, self.batch_size, self.shard, self.seed, self.repeats, self.steps)
        self.broken = self.broken or Broken(images, 0.0)

    def dataset(self) -> ds.GeneratorDataset:
        """For `mindspore.train.Model`: one pass is an epoch, and each pass the next one."""
        return ds.GeneratorDataset(_Passes(self), list(COLUMNS), shuffle=False)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch of NumPy batches: uint8 (B, S, S, 3), int32 (B,), float32 (B, noise_width), float32 (6,)."""
        return self.of_epoch(self.epoch, self.first_step)

    def of_epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on, made by threads, in order."""
        make = self._training_maker(epoch) if self.training else self._validation_maker()
        waiting: deque = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                for step in range(first_step, self.steps):
                    waiting.append(threads.submit(make, step))
                    if len(waiting) > self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _training_maker(self, epoch: int):
        indices, copies = self.order.training(epoch)

        def make(step: int) -> Batch:
            here = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images, labels, noise = self._empty()
            for place, (i, copy) in enumerate(zip(indices[here].tolist(), copies[here].tolist())):
                rng = np.random.default_rng([self.seed, epoch, i, copy])
                noise[place] = rng.random(self.noise_width, np.float32)
                images[place], labels[place] = self._readable(i, rng)
            # Five numbers, so that no image has the same seed.
            rng = np.random.default_rng([self.seed, epoch, step, self.shard.rank, 1])
            return images, labels, noise, mix_numbers(self.mix, self.image_size, rng)

        return make

    def _validation_maker(self):
        indices = self.order.validation()

        def make(step: int) -> Batch:
            images, labels, noise = self._empty()
            for place, i in enumerate(indices[step * self.batch_size : (step + 1) * self.batch_size].tolist()):
                labels[place] = PADDING
                if i == PADDING:
                    continue
                noise[place] = np.random.default_rng([self.seed, 0, i]).random(self.noise_width, np.float32)
                image = self._attempt(i, self._for_validation)
                if image is not None:
                    images[place], labels[place] = image, self.source.labels[i]
            return images, labels, noise, mix_numbers(Mix(), self.image_size, np.random.default_rng(0))

        return make

    def _for_validation(self, data: bytes | np.ndarray) -> np.ndarray:
        # Images that come as arrays are squares already: nothing is cropped.
        return validation_image(data, self.image_size, 1.0 if isinstance(data, np.ndarray) else self.eval_crop)

    def _empty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = np.zeros((self.batch_size, self.image_size, self.image_size, 3), np.uint8)
        return images, np.zeros(self.batch_size, np.int32), np.zeros((self.batch_size, self.noise_width), np.float32)

    def _readable(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
        """Image and label of index i; if it is broken, of the next that is not."""
        for _ in range(len(self.source)):
            image = self._attempt(i, lambda data: training_image(data, self.image_size, self.augment, rng))
            if image is not None:
                return image, self.source.labels[i]
            i = (i + 1) % len(self.source)
        raise RunError("no image of the training set can be decoded")

    def _attempt(self, i: int, make) -> np.ndarray | None:
        """What `make` makes of image i, or None and a line in the list of broken images."""
        try:
            try:
                return make(self._read(i))
            except (BrokenImage, DamagedRecord) as error:
                reason = str(error)
            except FILE_IS_BAD as error:
                reason = error.strerror or str(error)
            self.broken.add(self.source.name(i), reason)
        except RunError as error:
            self.problem = error  # the dataset engine hands on a text at best
            raise
        return None

    def _read(self, i: int) -> bytes | np.ndarray:
        """Read an image; a storage that fails for a moment gets some time.

        Raises:
            RunError: it goes on failing.
        """
        for pause in (*RETRY_AFTER_S, None):
            try:
                return self.source.read(i)
            except FILE_IS_BAD:
                raise
            except OSError as error:
                if pause is None:
                    raise RunError(
                        f"{self.source.name(i)}: cannot be read ({error.strerror or error}); is the storage there?"
                    ) from None
                time.sleep(pause)
        raise AssertionError  # the last turn returns or raises

    def explain(self, error: RuntimeError) -> RunError:
        """After a step failed: why."""
        text = " ".join(word for word in str(error).split() if not set(word) <= set("-"))
        return self.problem or RunError(f"a training step failed: {text[:400]}")


class _Passes:
    """What the dataset engine iterates over. It reads ahead, so all passes must have the length of the first."""

    def __init__(self, batches: Batches):
        self.batches, self.epoch = batches, batches.epoch

    def __len__(self) -> int:
        return self.batches.steps - self.batches.first_step

    def __iter__(self) -> Iterator[Batch]:
        # The engine also asks for an iterator to see whether there is one, and for a batch to see its shapes: only a pass
        # that ends is an epoch.
        epoch = self.epoch
        yield from self.batches.of_epoch(epoch, self.batches.first_step)
        self.epoch = epoch + 1
