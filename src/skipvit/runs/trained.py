"""A network with trained weights: what prediction, export and importance work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.config.config import Config
from skipvit.data.open import open_source
from skipvit.data.sources.shapes import CLASSES
from skipvit.engine import checkpoint, devices
from skipvit.engine.build import build_forward, build_network
from skipvit.routing.forward import Forward
from skipvit.routing.program import Probe
from skipvit.util.errors import RunError, UsageError
from skipvit.util.log import log

if TYPE_CHECKING:
    from skipvit.runs.run import Run


class Trained:
    """One of a configuration's forwards with the weights of a checkpoint, which are read when they are first needed.

    Arguments as of `Run.trained`; `run`: whose checkpoint it is, None if it is not known.
    """

    def __init__(
        self,
        config: Config,
        checkpoint: Path,
        forward: str | None = None,
        averaged: bool = True,
        device: str = "auto",
        run: Run | None = None,
    ):
        self.config, self.checkpoint, self.run = config, checkpoint, run
        self.forward = forward or config.main()
        if self.forward not in config.forwards():
            raise UsageError(f"forward {self.forward!r} is not one of this run's: {', '.join(config.forwards())}")
        self._averaged, self._device = averaged, config.device if device == "auto" else device

    @cached_property
    def _loaded(self) -> tuple[str, nn.Cell, bool]:
        device, _ = devices.start(self._device, self.config.deterministic)
        network = build_network(self.config, device)
        averaged = checkpoint.restore_weights(self.checkpoint, network, self._averaged)
        return device, network.set_train(False), averaged

    @property
    def network(self) -> nn.Cell:
        """The backbone's cell. This and what follows raise what `engine.checkpoint.restore_weights` raises."""
        return self._loaded[1]

    @property
    def averaged(self) -> bool:
        """Whether its weights are averaged ones."""
        return self._loaded[2]

    def walk(
        self, outputs: Iterable[str] = ("logits",), forward: str | None = None, probes: Iterable[Probe] = ()
    ) -> Forward:
        """Its forward, or another one, ready to evaluate. What the arguments mean: `routing.forward.Forward`."""
        device, network, _ = self._loaded
        return build_forward(self.config, device, network, forward or self.forward, outputs, probes).set_train(False)

    @cached_property
    def probabilities(self) -> Probabilities:
        """Its forward with a softmax."""
        return Probabilities(self.walk()).set_train(False)

    def predict(self, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Probabilities, float32 (n, classes), of images (n, S, S, 3), uint8 or normalised float32, of its size."""
        cell: Any = self.probabilities
        return in_batches(lambda batch: cell(Tensor(batch)).asnumpy(), images, batch_size)

    @property
    def image_config(self) -> Config:
        """The configuration to prepare images by: with the size that the forward takes."""
        return self.config.at_size(self.config.forwards()[self.forward].image_size)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the network's outputs: those that the run has noted, or of its data; else numbers, with
        a warning. Raises RunError for notes that are damaged."""
        count = self.config.model.num_classes
        noted = self.run.classes if self.run else None
        if noted is not None and len(noted) == count:
            return noted
        if self.config.data.kind == "shapes":
            return CLASSES
        try:
            names = tuple(open_source(self.config, "val").classes)
            if len(names) == count:
                return names
            reason = f"the validation images have {len(names)} of {count} classes"
        except (UsageError, RunError, OSError) as error:
            reason = str(error)
        log.warning(f"classes are numbered, their names are not known ({reason})")
        return tuple(f"class {i}" for i in range(count))

    def describe(self) -> str:
        """One line: which weights, which forward."""
        last = len(self.config.forwards()) > 1 and self.forward == self.config.trained()
        kind = "averaged" if self.averaged else "last"
        return f"{self.checkpoint}: {kind} weights, {self.forward} forward{' (trained last)' if last else ''}"


class Probabilities(nn.Cell):
    """A forward with a softmax: float32 (B, classes); nothing in it depends on the other images of a batch."""

    def __init__(self, forward: Forward):
        super().__init__(auto_prefix=False)
        self.forward = forward

    def construct(self, images, noise=None):
        return ops.Softmax(-1)(ops.Cast()(self.forward(images, noise), ms.float32))


def in_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    """The outputs for images in batches of `size`; the last one is filled up with the last image."""
    results = []
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        filled = np.concatenate([batch, batch[-1:].repeat(size - len(batch), 0)])
        results.append(run(filled)[: len(batch)])
    return np.concatenate(results)
