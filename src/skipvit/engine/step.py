"""One training step and one evaluation step as cells: each compiles to one static graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, amp, nn, ops

from skipvit.engine.distributed import AllSum
from skipvit.engine.state import TrainingState
from skipvit.models.vit import PIXEL_MEAN, PIXEL_STD, ViT


class Mixer(nn.Cell):
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of each image with its mirror in the batch.

    The batch's numbers come from outside (`data.mixing.mix_numbers`): pixel weight, top, bottom, left, right, target
    weight. Pixels inside the box are the partner's, outside they are weighted; targets have a weight of their own.
    """

    def __init__(self, image_size: int):
        super().__init__(auto_prefix=False)
        self.rows = Tensor(np.arange(image_size, dtype=np.float32).reshape(1, -1, 1))
        self.columns = Tensor(np.repeat(np.arange(image_size, dtype=np.float32), 3).reshape(1, 1, -1))
        self.mean = Tensor(np.tile(np.array(PIXEL_MEAN, np.float32), image_size))
        self.inverse_std = Tensor(1 / np.tile(np.array(PIXEL_STD, np.float32), image_size))

    def number(self, mix, i):
        return ops.Reshape()(ops.Slice()(mix, (i,), (1,)), (1, 1, 1))

    def mixed_images(self, images, mix):
        """Mixed and normalised: float32 (B, H, W, 3) of uint8 ones and float32 (6,)."""
        batch, height, width, channels = images.shape
        x = ops.Cast()(ops.Reshape()(images, (batch, height, width * channels)), ms.float32)
        below = ops.LogicalAnd()(
            ops.GreaterEqual()(self.rows, self.number(mix, 1)), ops.Less()(self.rows, self.number(mix, 2))
        )
        right = ops.LogicalAnd()(
            ops.GreaterEqual()(self.columns, self.number(mix, 3)), ops.Less()(self.columns, self.number(mix, 4))
        )
        inside = ops.Cast()(ops.LogicalAnd()(below, right), ms.float32)  # (1, H, W * 3)
        weight = (1.0 - inside) * self.number(mix, 0)
        mixed = x * weight + mirrored(x) * (1.0 - weight)
        return ops.Reshape()((mixed - self.mean) * self.inverse_std, images.shape)

    def targets(self, target, mix):
        """Mixed targets, float32 (B, classes)."""
        weight = ops.Slice()(mix, (5,), (1,))
        return target * weight + mirrored(target) * (1.0 - weight)


def mirrored(x):
    """x with its first axis in reverse order."""
    return ops.Gather()(x, Tensor(tuple(range(x.shape[0] - 1, -1, -1)), ms.int32), 0)


class TrainingLoss(nn.Cell):
    """Mean cross-entropy of a network's dense or routed forward with mixed and smoothed targets, in float32, times a scale.

    Args:
        routed: which forward.
        smoothing: share of the target spread evenly over all classes (arXiv 1512.00567).
        mixer: mixes images and targets, or None.
    """

    def __init__(self, network: ViT, routed: bool, smoothing: float, mixer: Mixer | None = None):
        super().__init__(auto_prefix=False)
        self.network, self.routed, self.smoothing, self.mixer = network, routed, smoothing, mixer
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, images, labels, noise, mix, scale):
        if self.mixer is not None:
            images = self.mixer.mixed_images(images, mix)
        log_p = ops.LogSoftmax()(ops.Cast()(self.network(images, noise, self.routed), ms.float32))
        classes = log_p.shape[1]
        target = ops.OneHot()(labels, classes, self.one, self.zero)
        if self.mixer is not None:
            target = self.mixer.targets(target, mix)
        target = target * (1.0 - self.smoothing) + self.smoothing / classes
        return -ops.ReduceMean()(ops.ReduceSum()(log_p * target, 1)) * scale


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
    loss scale. Several steps (dense, routed) may share one network, optimizer and state.

    Args:
        optimizer: a cell that takes gradients and a factor for them, and returns the learning rate it used, see `optim.AdamW`.
        clip_norm: largest global norm of the unscaled gradients; 0 does not clip.
        reduce: a cell that averages gradients over the devices, or None on one device.
        devices: how many there are.

    Its construct takes a batch and returns float32 (6,): see `state.REPORT`.
    """

    def __init__(
        self,
        loss: TrainingLoss,
        optimizer: nn.Cell,
        state: TrainingState,
        clip_norm: float,
        reduce: nn.Cell | None = None,
        devices: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.state, self.clip_norm, self.reduce = loss, optimizer, state, clip_norm, reduce
        self.weights: ParameterTuple = optimizer.parameters
        self.devices, self.total = devices, AllSum()
        self.accumulate = state.accumulate
        self.one = Tensor(1.0, ms.float32)
        self.largest = Tensor(np.finfo(np.float32).max, ms.float32)
        self.value_and_gradient = ms.value_and_grad(loss, grad_position=None, weights=self.weights)

    def construct(self, images, labels, noise, mix):
        state = self.state
        loss, gradients = self.value_and_gradient(images, labels, noise, mix, state.loss_scale)
        loss = loss / state.loss_scale
        if self.devices > 1:
            loss = self.total(loss) / self.devices
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
        if self.devices > 1:
            finite = ops.Floor()(self.total(finite) / self.devices)
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


class EvalStep(nn.Cell):
    """Sums over a batch of the dense or routed forward: float32 (4,), loss, top-1 hits, top-5 hits, images.

    Images with a negative label are padding and count for nothing.
    """

    def __init__(self, network: ViT, routed: bool):
        super().__init__(auto_prefix=False)
        self.network, self.routed = network, routed
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, images, labels, noise):
        log_p = ops.LogSoftmax()(ops.Cast()(self.network(images, noise, self.routed), ms.float32))
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
