"""Top-1 and top-5 over a validation set."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from skipvit.data.batches import Batches
from skipvit.data.order import Shard
from skipvit.engine.devices import sum_over_devices
from skipvit.util.errors import RunError, Stopped


class Accuracy(nn.Cell):
    """Sums over a batch of a forward: float32 (4,), loss, top-1 hits, top-5 hits, images.

    Images with a negative label are padding and count for nothing.
    """

    def __init__(self, forward: nn.Cell):
        super().__init__(auto_prefix=False)
        self.forward = forward
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, images, labels, noise):
        log_p = ops.LogSoftmax()(ops.Cast()(self.forward(images, noise), ms.float32))
        batch, classes = log_p.shape
        counts = ops.Cast()(ops.GreaterEqual()(labels, 0), ms.float32)
        target = ops.OneHot()(ops.Maximum()(labels, 0), classes, self.one, self.zero)
        of_label = ops.ReduceSum(keep_dims=True)(log_p * target, 1)
        # Rank of the true class, by the classes that it beats: a tie and a NaN count against the network.
        beaten = ops.ReduceSum()(ops.Cast()(ops.Less()(log_p, of_label), ms.float32), 1)
        better = classes - 1.0 - beaten
        top1 = ops.Cast()(ops.Less()(better, 1.0), ms.float32)
        top5 = ops.Cast()(ops.Less()(better, 5.0), ms.float32)
        loss = -ops.Reshape()(of_label, (batch,))
        sums = ops.Stack()((loss, top1, top5, ops.OnesLike()(loss))) * ops.Reshape()(counts, (1, batch))
        return ops.ReduceSum()(sums, 1)


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation: accuracies in percent, mean loss in nats, throughput without the first (compiling)
    batch."""

    top1: float
    top5: float
    loss: float
    images: int
    images_per_s: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate(step: Accuracy, batches: Batches, shard: Shard = Shard(), label: str = "eval") -> Scores:
    """Run a whole validation set through one forward. Raises Stopped: `batches.interrupted` says so, between two
    batches; RunError: too many broken images."""
    training = step.forward.network.training  # that of the steps that share it
    step.set_train(False)
    sums, timed, begun = np.zeros(4), 0, time.perf_counter()
    bar = tqdm(batches, total=batches.steps, desc=label, leave=False, disable=None, unit="batch")
    for i, (images, labels, noise, _) in enumerate(bar):
        if batches.interrupted():
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
