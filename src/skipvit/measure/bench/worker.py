"""One variant in a process of its own: builds it, and runs some steps whenever it is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import Tensor

from skipvit.config.config import Config
from skipvit.data.batches import Batches
from skipvit.data.open import batches_of, open_source
from skipvit.engine import devices
from skipvit.engine.build import build_forward, build_network, uses_float16
from skipvit.engine.metrics import Accuracy
from skipvit.engine.synthetic import random_batch, training_step
from skipvit.measure.bench.parts import Averaging, ForwardBackward, Routing, routing_inputs
from skipvit.measure.bench.timed import Timed, serve


class Bench(Timed):
    """A run's forward, in training or in inference, and what of it can be timed, by name.

    `step`: the whole step on one batch that stays in memory. Of training also: `with_data`, the step fed by the run's
    own images; `forward` and `forward_backward`; `routing`, the routes alone, both ways; `average`, of the weights.
    """

    def build(self, values: dict[str, Any], name: str, training: bool, data: bool) -> str:
        """Build a network and a batch, and open the run's own images if they are needed; returns the device."""
        config = Config(**values)
        self.config, self.name = config, name
        self.warm_up *= config.optim.accumulate
        self.device, _ = devices.start(config.device, config.deterministic)
        self.source: Any = open_source(config, "train") if data else None
        self.base = self.memory()
        network, self.batch = build_network(config, self.device), random_batch(config, name)
        self.train: Any = training_step(config, self.device, network, name) if training else None
        self.forward = build_forward(config, self.device, network, name)
        return self.device

    def wait(self, result: Tensor) -> None:
        ms.runtime.synchronize()
        result.asnumpy()  # waits on CPU too

    def memory(self, peak: bool = False) -> int:
        if self.device != "ascend":
            return super().memory(peak)
        return ms.runtime.max_memory_allocated() if peak else ms.runtime.memory_allocated()

    def forget_peak(self) -> None:
        if self.device != "ascend":
            return super().forget_peak()
        return ms.runtime.reset_max_memory_allocated()

    def skipped(self) -> int:
        """Updates that were skipped since the beginning because their gradients overflowed."""
        return int(self.train.state.overflows.asnumpy()) if self.train else 0

    def _step(self) -> Callable[[], Tensor]:
        if self.train is None:
            return partial(Accuracy(self.forward).set_train(False), *self.batch[:3])
        return partial(self._update, lambda: self.batch)

    def _update(self, batch: Callable[[], tuple]) -> Tensor:
        self.train(*batch())
        return self.train.optimizer.step  # written last

    def _with_data(self) -> Callable[[], Tensor]:
        # A phase may have images of its own.
        trained = [phase.config for phase in self.config.resolved_phases() if phase.forward == self.name]
        config, noise_width = (trained or [self.config])[0], self.batch[2].shape[1]
        return partial(self._update, partial(next, _endless(batches_of(config, self.source, noise_width, True))))

    def _forward(self) -> Callable[[], Tensor]:
        return partial(self.train.loss, *self.batch, Tensor(1.0, ms.float32))

    def _forward_backward(self) -> Callable[[], Tensor]:
        return partial(ForwardBackward(self.train).set_train(), *self.batch, Tensor(1.0, ms.float32))

    def _routing(self) -> Callable[[], Tensor]:
        dtype = ms.float16 if uses_float16(self.config, self.device) else ms.float32
        cell: Any = Routing(self.forward)
        inputs = routing_inputs(self.forward, self.config.data.batch_size, dtype)
        return lambda: cell(*inputs)[-1]

    def _average(self) -> Callable[[], Tensor]:
        return Averaging(self.train)


def _endless(batches: Batches) -> Iterator[Any]:
    """A run's batches, fed as `mindspore.train.Model` does without data sink, epoch after epoch."""
    passes = batches.dataset().create_tuple_iterator()
    try:
        while True:
            yield from passes
    except RuntimeError as error:
        raise batches.explain(error) from None


if __name__ == "__main__":
    serve(Bench(), sys.argv[1:])
