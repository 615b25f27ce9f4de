"""From images to batches: reading, decoding and augmentation by threads.

A batch is uint8 NHWC images, int32 labels, the float32 noise of the step's random parts (drop path, random routes) and
the numbers of mixup and CutMix. Everything is a function of seed, epoch and image (mixing: of seed, epoch, step and
device), so an epoch can be repeated, or entered in the middle, and the number of threads changes nothing.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from skipvit.config.groups import AugmentConfig
from skipvit.data.augment import training_image
from skipvit.data.broken import Broken
from skipvit.data.crops import validation_image
from skipvit.data.decode import BrokenImage
from skipvit.data.mixing import UNMIXED, mix_numbers
from skipvit.data.order import PADDING, Shard, training_order, training_steps, validation_order
from skipvit.data.sources import Source
from skipvit.data.threads import Threads
from skipvit.util.errors import DamagedRecord, RunError, Stopped
from skipvit.util.text import printable

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset

# What the operating system says about a file that is bad, a pipe and a link into itself among them; anything else it
# says is about the storage.
FILE_IS_BAD = {
    getattr(errno, name) for name in "ENOENT EISDIR ENOTDIR EACCES EPERM ELOOP ENAMETOOLONG EINVAL ENXIO".split()
}
RETRY_AFTER_S = (1, 4, 15)
LOOK_EVERY_S = 0.2  # whether a stop was asked for, while the storage does not answer
ALONE_AFTER_S = 30
COLUMNS = ("image", "label", "noise", "mix")

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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
        broken: a `Broken` or `Bad`; None: no image may be broken.
        epoch, first_step: where training begins. A data set that begins within an epoch is for this epoch alone.
        interrupted: asked, by any thread, while a batch is waited for.
        problem: what ended the iteration.

    Raises:
        RunError: as `training_steps`.
    """

    source: Source
    batch_size: int
    image_size: int
    noise_width: int
    training: bool
    seed: int
    augment: AugmentConfig = AugmentConfig()
    eval_crop: float = 0.875
    workers: int = 1
    accumulate: int = 1
    shard: Shard = Shard()
    broken: Any = None
    epoch: int = 0
    first_step: int = 0
    interrupted: Callable[[], bool] = lambda: False
    problem: BaseException | None = field(default=None, init=False)

    def __post_init__(self):
        images = len(self.source)
        if self.training:
            self.steps = training_steps(images, self.batch_size, self.shard, self.accumulate)
        else:
            self.steps = -(-images // (self.batch_size * self.shard.world_size))
        self.broken = self.broken or Broken(images, 0.0)

    def dataset(self) -> GeneratorDataset:
        """For `mindspore.train.Model`: one pass is an epoch, and each pass the next one."""
        import mindspore.dataset as ds  # here, so that what only reads images does not wait for MindSpore

        return ds.GeneratorDataset(_Passes(self), list(COLUMNS), shuffle=False)

    def __iter__(self) -> Iterator[Batch]:
        """One epoch of NumPy batches: uint8 (B, S, S, 3), int32 (B,), float32 (B, noise_width), float32 (6,)."""
        return self.of_epoch(self.epoch, self.first_step)

    def of_epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on, made by threads, in order. Raises RunError: too many broken images,
        or storage that fails; Stopped: `interrupted` says so while a batch is not there yet."""
        make = self._training_maker(epoch) if self.training else self._validation_maker()
        threads, waiting, wait_for_all = Threads(self.workers), deque(), True
        try:
            for step in range(first_step, self.steps):
                waiting.append(threads.submit(make, step))
                if len(waiting) > self.workers:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        except (Exception, KeyboardInterrupt) as error:
            self.problem = error  # the dataset engine hands on a text at best
            wait_for_all = not isinstance(error, (Stopped, KeyboardInterrupt))
            raise
        finally:
            for future in waiting:
                future.cancel()
            threads.end(wait_for_all)

    def _result(self, future: Future) -> Batch:
        # One of several devices that stops alone leaves the others waiting: only when nothing else is left.
        patience, begun = ALONE_AFTER_S if self.shard.world_size > 1 else 0.0, time.monotonic()
        while not wait([future], LOOK_EVERY_S).done:
            if time.monotonic() - begun > patience and self.interrupted():
                raise Stopped("stopped while waiting for images")
        return future.result()

    def _training_maker(self, epoch: int):
        indices, copies = training_order(
            len(self.source), self.steps * self.batch_size, self.shard, self.seed, epoch, self.augment.repeats
        )

        def make(step: int) -> Batch:
            here = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images, labels, noise = self._empty()
            for place, (i, copy) in enumerate(zip(indices[here].tolist(), copies[here].tolist())):
                rng = np.random.default_rng([self.seed, epoch, i, copy])
                noise[place] = rng.random(self.noise_width, np.float32)
                images[place], labels[place] = self._readable(i, rng)
            # Five numbers, so that no image has the same seed.
            rng = np.random.default_rng([self.seed, epoch, step, self.shard.rank, 1])
            return images, labels, noise, mix_numbers(self.augment, self.image_size, rng)

        return make

    def _validation_maker(self):
        indices = validation_order(len(self.source), self.steps * self.batch_size, self.shard)

        def prepare(data: bytes | np.ndarray) -> np.ndarray:
            # Images that come as arrays are squares already: nothing is cropped.
            return validation_image(data, self.image_size, 1.0 if isinstance(data, np.ndarray) else self.eval_crop)

        def make(step: int) -> Batch:
            images, labels, noise = self._empty()
            for place, i in enumerate(indices[step * self.batch_size : (step + 1) * self.batch_size].tolist()):
                labels[place] = PADDING
                if i == PADDING:
                    continue
                noise[place] = np.random.default_rng([self.seed, 0, i]).random(self.noise_width, np.float32)
                image = self._attempt(i, prepare)
                if image is not None:
                    images[place], labels[place] = image, self.source.labels[i]
            return images, labels, noise, UNMIXED.copy()

        return make

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

    def _attempt(self, i: int, make: Callable) -> np.ndarray | None:
        """What `make` makes of image i, or None and a line in the list of broken images."""
        try:
            return make(self._read(i))
        except (BrokenImage, DamagedRecord) as error:
            assert self.broken is not None  # see __post_init__
            self.broken.add(self.source.name(i), str(error))
        return None

    def _read(self, i: int) -> bytes | np.ndarray:
        """Read an image; a storage that fails for a moment gets some time. Raises BrokenImage: the file is bad;
        RunError: the storage goes on failing."""
        for pause in (*RETRY_AFTER_S, None):
            try:
                return self.source.read(i)
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno in FILE_IS_BAD:
                    raise BrokenImage(reason) from None
                if pause is None:
                    name = printable(self.source.name(i))
                    raise RunError(f"{name}: cannot be read ({reason}); is the storage there?") from None
                time.sleep(pause)
        raise AssertionError  # the last turn returns or raises

    def explain(self, error: RuntimeError) -> BaseException:
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
        # The engine also asks for an iterator to see whether there is one, and for a batch to see its shapes: only a
        # pass that ends is an epoch.
        epoch = self.epoch
        yield from self.batches.of_epoch(epoch, self.batches.first_step)
        self.epoch = epoch + 1
