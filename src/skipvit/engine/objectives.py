"""What training minimises."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD


class Mixer(nn.Cell):
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of each image with its mirror in the batch.

    The batch's numbers come from outside (`data.augment.mix_numbers`): pixel weight, top, bottom, left, right, target
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


class CrossEntropy(nn.Cell):
    """Mean cross-entropy of a forward with mixed and smoothed targets, in float32, times a scale: a float32 scalar.

    Args:
        forward: gives logits (B, classes) of images and noise, see `routing.forward.Forward`.
        smoothing: share of the target spread evenly over all classes (arXiv 1512.00567).
        mixer: mixes images and targets, or None.
    """

    def __init__(self, forward: nn.Cell, smoothing: float, mixer: Mixer | None = None):
        super().__init__(auto_prefix=False)
        self.forward, self.smoothing, self.mixer = forward, smoothing, mixer
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, images, labels, noise, mix, scale):
        if self.mixer is not None:
            images = self.mixer.mixed_images(images, mix)
        log_p = ops.LogSoftmax()(ops.Cast()(self.forward(images, noise), ms.float32))
        classes = log_p.shape[1]
        target = ops.OneHot()(labels, classes, self.one, self.zero)
        if self.mixer is not None:
            target = self.mixer.targets(target, mix)
        target = target * (1.0 - self.smoothing) + self.smoothing / classes
        return -ops.ReduceMean()(ops.ReduceSum()(log_p * target, 1)) * scale
