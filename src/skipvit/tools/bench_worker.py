"""One variant of `skipvit bench` in a process of its own: builds it, and runs some steps whenever it is asked."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

import mindspore as ms
from mindspore import Tensor

from skipvit.tools.bench_parts import Averaging, ForwardBackward, Routing, routing_inputs
from skipvit.config import Config
from skipvit.data.pipeline import Batch, Batches
from skipvit.tools.build import batches_of, open_source, uses_float16
from skipvit.tools.synthetic import Forward, network_of, random_batch, training_step
from skipvit.tools.turns import serve
from skipvit.training import distributed
from skipvit.training.step import EvalStep, TrainStep

WARM_UP_STEPS = 2  # after the compiling one


class Bench:
    """A config's forward, in training or in inference, and what of it can be timed, by name.

    `step`: the whole step on one batch that stays in memory. Of training also: `with_data`, the step fed by the config's own
    pictures; `forward` and `forward_backward`; `routing`, the routers alone, forward and backward; `average`, of the weights.
    """

    def build(self, config: Config, forward: Forward, training: bool, data: bool) -> str:
        """Build the network and a batch, and open the config's own pictures if they are needed; returns the device."""
        self.config, self.routed = config, forward == "routed"
        self.device, _ = distributed.start(config.device, config.deterministic)
        self.source = open_source(config, "train") if data else None
        self.base = _memory(self.device)
        network = network_of(config, self.device, forward)
        self.batch = random_batch(config, getattr(network, "noise_width", 1))
        self.train: TrainStep | None = None
        if training:
            self.train = training_step(config, self.device, network, self.routed)
        self.network = network
        self.jobs: dict[str, Callable[[], Tensor]] = {}
        return self.device

    def prepare(self, job: str) -> tuple[float, float, int]:
        """Compile a job and warm it up: seconds of its first and of its last step, and the peak memory of a step, bytes."""
        self.jobs[job] = getattr(self, f"_{job}")()
        first = self.turn(job, 1)
        _forget_peak(self.device)
        for _ in range(WARM_UP_STEPS * self.config.optim.accumulate):
            last = self.turn(job, 1)
        return first, last, _peak(self.device) - self.base

    def turn(self, job: str, steps: int) -> float:
        """Seconds of so many steps, with a wait for the device after the last one only, as in training."""
        run = self.jobs[job]
        begun = time.perf_counter()
        for _ in range(steps):
            result = run()
        ms.runtime.synchronize()
        result.asnumpy()  # waits on CPU too
        return time.perf_counter() - begun

    def skipped(self) -> int:
        """Updates that were skipped since the beginning because their gradients overflowed."""
        return int(self.train.state.overflows.asnumpy()) if self.train else 0

    def _step(self) -> Callable[[], Tensor]:
        if self.train is None:
            return partial(EvalStep(self.network, self.routed).set_train(False), *self.batch[:3])
        return partial(self._update, lambda: self.batch)

    def _update(self, batch: Callable[[], tuple]) -> Tensor:
        self.train(*batch())
        return self.train.optimizer.step  # written last

    def _with_data(self) -> Callable[[], Tensor]:
        batches = batches_of(self.config, self.source, self.batch[2].shape[1], training=True)()
        return partial(self._update, partial(next, _endless(batches)))

    def _forward(self) -> Callable[[], Tensor]:
        return partial(self.train.loss, *self.batch, Tensor(1.0, ms.float32))

    def _forward_backward(self) -> Callable[[], Tensor]:
        return partial(ForwardBackward(self.train).set_train(), *self.batch, Tensor(1.0, ms.float32))

    def _routing(self) -> Callable[[], Tensor]:
        dtype = ms.float16 if uses_float16(self.config, self.device) else ms.float32
        heads = self.config.model.shape().heads
        cell = Routing(self.network)
        inputs = routing_inputs(self.network, self.config.data.batch_size, heads, dtype)
        return lambda: cell(*inputs)[-1]

    def _average(self) -> Callable[[], Tensor]:
        return Averaging(self.train)


def _endless(batches: Batches) -> Iterator[Batch]:
    """A run's batches, fed as `mindspore.train.Model` does without data sink, epoch after epoch."""
    passes = batches.dataset().create_tuple_iterator()
    try:
        while True:
            yield from passes
    except RuntimeError as error:
        raise batches.explain(error) from None


def _memory(device: str) -> int:
    """Bytes in use: of the card, or of this process (resident)."""
    return ms.runtime.memory_allocated() if device == "ascend" else _of_process("VmRSS")


def _peak(device: str) -> int:
    """The most bytes in use since `_forget_peak`."""
    return ms.runtime.max_memory_allocated() if device == "ascend" else _of_process("VmHWM")


def _forget_peak(device: str) -> None:
    if device == "ascend":
        ms.runtime.reset_max_memory_allocated()
    else:
        with suppress(OSError):  # where it is not allowed, the peak may be that of compiling
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes VmRSS


def _of_process(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    serve(Bench(), sys.argv[1:])
