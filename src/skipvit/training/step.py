"""One training step and one evaluation step as cells: each compiles to one static graph."""

from __future__ import annotations

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from skipvit.models.vit import ViT


class SmoothedLoss(nn.Cell):
    """Mean cross-entropy with label smoothing of a network's dense or routed forward, in float32.

    Args:
        routed: which forward.
        smoothing: share of the target spread evenly over all classes (arXiv 1512.00567).
    """

    def __init__(self, network: ViT, routed: bool, smoothing: float):
        super().__init__(auto_prefix=False)
        self.network, self.routed, self.smoothing = network, routed, smoothing
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, images, labels, noise):
        log_p = ops.LogSoftmax()(ops.Cast()(self.network(images, noise, self.routed), ms.float32))
        classes = log_p.shape[1]
        target = ops.OneHot()(labels, classes, self.one, self.zero)
        target = target * (1.0 - self.smoothing) + self.smoothing / classes
        return -ops.ReduceMean()(ops.ReduceSum()(log_p * target, 1))


_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")


@_sum_of_squares.register("Tensor")
def _(gradient):
    return ops.ReduceSum()(ops.Square()(ops.Cast()(gradient, ms.float32)))


def global_norm(gradients):
    """Euclidean norm of all gradients together: a float32 scalar."""
    return ops.Sqrt()(ops.AddN()(ops.HyperMap()(_sum_of_squares, gradients)))


class TrainStep(nn.Cell):
    """Forward, backward, mean over the cards, clipping, update.

    Several steps (dense, routed) may share one network and one optimizer.

    Args:
        optimizer: a cell that takes gradients and a factor for them, and returns the learning rate it used, see `optim.AdamW`.
        clip_norm: largest global norm of the gradients; 0 does not clip.
        reduce: a cell that averages gradients over the cards, or None on one card.

    Its construct takes a batch and returns float32 scalars: loss, gradient norm before clipping, learning rate.
    """

    def __init__(self, loss: SmoothedLoss, optimizer: nn.Cell, clip_norm: float, reduce: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer, self.clip_norm, self.reduce = loss, optimizer, clip_norm, reduce
        self.weights: ParameterTuple = optimizer.parameters
        self.one = Tensor(1.0, ms.float32)
        self.value_and_gradient = ms.value_and_grad(loss, grad_position=None, weights=self.weights)

    def construct(self, images, labels, noise):
        loss, gradients = self.value_and_gradient(images, labels, noise)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        norm = global_norm(gradients)
        scale = ops.Minimum()(self.clip_norm / (norm + 1e-6), 1.0) if self.clip_norm > 0 else self.one
        rate = self.optimizer(gradients, scale)
        return loss, norm, rate


class EvalStep(nn.Cell):
    """Sums over a batch of the dense or routed forward: float32 (4,), loss, top-1 hits, top-5 hits, pictures.

    Pictures with a negative label are padding and count for nothing.
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
