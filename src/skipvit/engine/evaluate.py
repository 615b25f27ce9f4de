"""Top-1 and top-5 over a validation set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from skipvit.data.batches import Batches
from skipvit.data.order import Shard
from skipvit.engine.distributed import sum_over_devices
from skipvit.engine.step import EvalStep
from skipvit.util.errors import RunError, Stopped


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation: accuracies in percent, mean loss in nats, throughput without the first (compiling) batch."""

    top1: float
    top5: float
    loss: float
    images: int
    images_per_s: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate(
    step: EvalStep,
    batches: Batches,
    shard: Shard = Shard(),
    label: str = "eval",
    interrupted: Callable[[], bool] = lambda: False,
) -> Scores:
    """Run a whole validation set through one forward.

    Raises:
        Stopped: `interrupted` says so, between two batches.
        RunError: too many broken images.
    """
    training = step.network.training
    step.set_train(False)
    sums, timed, begun = np.zeros(4), 0, time.perf_counter()
    bar = tqdm(batches, total=batches.steps, desc=label, leave=False, disable=None, unit="batch")
    for i, (images, labels, noise, _) in enumerate(bar):
        if interrupted():
            step.set_train(training)
            raise Stopped("stopped while evaluating")
        sums += step(Tensor(images), Tensor(labels), Tensor(noise)).asnumpy()
        if i == 0:
            begun = time.perf_counter()
        else:
            timed += len(labels)
    elapsed = time.perf_counter() - begun
    step.set_train(training)
    loss, top1, top5, count = sum_over_devices(sums, shard)
    if not count:
        raise RunError("no image of the validation set can be decoded")
    speed = timed * shard.world_size / elapsed if timed else 0.0
    return Scores(100 * top1 / count, 100 * top5 / count, loss / count, int(count), speed)
