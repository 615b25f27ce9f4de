"""One training step as a cell: it compiles to one static graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, amp, nn, ops

from skipvit.engine.devices import AllSum
from skipvit.engine.state import TrainingState

_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")


@_sum_of_squares.register("Tensor")
def _(gradient):
    squares = ops.Square()(ops.Cast()(gradient, ms.float32))
    # Row by row: over all of a matrix at once MindSpore's CPU kernel takes ten times as long.
    return ops.ReduceSum()(ops.ReduceSum()(squares, -1) if gradient.ndim > 1 else squares)


def global_norm(gradients):
    """Euclidean norm of all gradients together: a float32 scalar."""
    return ops.Sqrt()(ops.AddN()(ops.HyperMap()(_sum_of_squares, gradients)))


_add = ops.MultitypeFuncGraph("add")
_clear = ops.MultitypeFuncGraph("clear")
move_average = ops.MultitypeFuncGraph("average")


@_add.register("Tensor", "Tensor")
def _(total, gradient):
    return ops.AssignAdd()(total, gradient)


@_clear.register("Tensor")
def _(total):
    return ops.Assign()(total, ops.ZerosLike()(total))


@move_average.register("Tensor", "Tensor", "Tensor")
def _(share, average, weight):
    return ops.AssignAdd()(average, (weight - average) * share)


class TrainStep(nn.Cell):
    """Forward, backward, and with the last of the batches that make an update: mean over the devices, finite check,
    unscaling, clipping, update, weight average.

    An update whose gradients are not finite is skipped: nothing changes but the counters and, where it is dynamic, the
    loss scale. Several steps (a forward each) may share one network, optimizer and state.

    Args:
        loss: a cell that gives the scaled loss of a batch, see `objectives.CrossEntropy`.
        optimizer: a cell that takes gradients and a factor for them, and returns the learning rate it used, see
            `optim.AdamW`.
        clip_norm: largest global norm of the unscaled gradients; 0 does not clip.
        reduce: a cell that averages gradients over the devices, or None on one device.
        world_size: how many there are.

    Its construct takes a batch and returns float32 (6,): see `state.REPORT`.
    """

    def __init__(
        self,
        loss: nn.Cell,
        optimizer: nn.Cell,
        state: TrainingState,
        clip_norm: float,
        reduce: nn.Cell | None = None,
        world_size: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.state, self.clip_norm, self.reduce = loss, optimizer, state, clip_norm, reduce
        self.weights: ParameterTuple = optimizer.parameters
        self.world_size, self.total = world_size, AllSum()
        self.accumulate = state.accumulate
        self.one = Tensor(1.0, ms.float32)
        self.largest = Tensor(np.finfo(np.float32).max, ms.float32)
        self.value_and_gradient = ms.value_and_grad(loss, grad_position=None, weights=self.weights)

    def construct(self, images, labels, noise, mix):
        state = self.state
        loss, gradients = self.value_and_gradient(images, labels, noise, mix, state.loss_scale)
        loss = loss / state.loss_scale
        if self.world_size > 1:
            loss = self.total(loss) / self.world_size
        if self.accumulate == 1:
            self.update(loss, gradients)
        else:
            ops.HyperMap()(_add, state.gradients, gradients)
            if ops.AssignAdd()(state.gathered, 1) >= self.accumulate:
                self.update(loss, state.gradients)
                ops.HyperMap()(_clear, state.gradients)
                ops.Assign()(state.gathered, 0)
        self.count(loss)
        return ops.Stack()(
            (loss, state.gradient_norm, state.rate, state.loss_scale, state.overflows, state.overflows_in_a_row)
        )

    def update(self, loss, gradients):
        """Update the weights with gradients that are loss scale x accumulate times too large, if they are finite."""
        state = self.state
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        unscale = 1.0 / (state.loss_scale * self.accumulate)
        norm = global_norm(gradients) * unscale
        ops.Assign()(state.gradient_norm, norm)
        # On Ascend 910A this reads the device's overflow register, elsewhere it looks at the two numbers.
        finite = ops.Cast()(amp.all_finite((norm, loss)), ms.float32)
        if self.world_size > 1:
            finite = ops.Floor()(self.total(finite) / self.world_size)
        if finite > 0.5:
            self.apply(gradients, norm, unscale)
        ops.AssignAdd()(state.overflows, 1.0 - finite)
        ops.Assign()(state.overflows_in_a_row, (state.overflows_in_a_row + 1.0) * (1.0 - finite))
        if state.dynamic:
            state.adjust(finite)
        return 0

    def apply(self, gradients, norm, unscale):
        clip = ops.Minimum()(self.clip_norm / (norm + 1e-6), 1.0) if self.clip_norm > 0 else self.one
        ops.Assign()(self.state.rate, self.optimizer(gradients, clip * unscale))
        if self.state.ema is not None:
            t = ops.Cast()(self.optimizer.step, ms.float32)
            decay = ops.Minimum()((1.0 + t) / (10.0 + t), self.state.decay)  # young weights are soon forgotten
            ops.HyperMap()(ops.Partial()(move_average, 1.0 - decay), self.state.ema, self.weights)
        return 0

    def count(self, loss):
        """The epoch's mean loss is over the finite ones; each update weighs the same, of however many batches it is."""
        finite = ops.LessEqual()(ops.Abs()(loss), self.largest)  # Ascend 910A has no IsFinite kernel on its AI cores
        share = 1.0 / self.accumulate
        ops.AssignAdd()(self.state.loss_sum, ops.Select()(finite, loss, ops.ZerosLike()(loss)) * share)
        ops.AssignAdd()(self.state.losses, ops.Cast()(finite, ms.float32) * share)
        return 0
