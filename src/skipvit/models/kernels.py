"""Parts of a block with their gradients written out in few passes over memory, for CPU: what MindSpore's own kernels
take there is in docs/speed.md. On Ascend its kernels are used, see `vit.ViT`'s `fused_kernels`.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.util.compat import sigmoid_grad

SigmoidGrad = sigmoid_grad()

NORM_EPSILON = 1e-6  # as in timm's ViT


class AddBias(nn.Cell):
    """Rows (R, D) plus a bias (D,). Its gradient is a product with ones, many times faster than MindSpore's CPU
    kernel."""

    def construct(self, rows, bias):
        return ops.BiasAdd()(rows, bias)

    def bprop(self, rows, bias, out, dout):
        return dout, sum_of_rows(dout)


def sum_of_rows(x):
    """(R, D) -> (D,)."""
    return ops.Reshape()(ops.MatMul()(ops.Ones()((1, x.shape[0]), x.dtype), x), (x.shape[1],))


def across(column, width):
    """A column (R, 1) as wide as (R, width): MindSpore's CPU kernels are slow where one side of + - * is narrower."""
    return ops.Tile()(column, (1, width))


class NormalizeRows(nn.Cell):
    """Layer norm of rows x (R, D), weight and bias (D,), with its gradient written out: several times MindSpore's CPU
    kernel."""

    def __init__(self, epsilon: float = NORM_EPSILON):
        super().__init__()
        self.kernel = _NormalizeRows(epsilon)

    def construct(self, x, weight, bias):
        y, _, _ = self.kernel(x, weight, bias)
        return y


class _NormalizeRows(nn.Cell):
    """The rows, and what their gradient needs and nobody else may read: it asks for the first result's alone."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def construct(self, x, weight, bias):
        width = x.shape[1]
        centred = x - across(ops.ReduceMean(True)(x, 1), width)
        inverse_std = ops.Rsqrt()(ops.ReduceMean(True)(centred * centred, 1) + self.epsilon)
        scale = ops.MatMul()(inverse_std, ops.Reshape()(weight, (1, width)))
        return ops.BiasAdd()(centred * scale, bias), centred, inverse_std

    def bprop(self, x, weight, bias, out, dout):
        _, centred, inverse_std = out
        dy, row = dout[0], ops.Reshape()(weight, (1, x.shape[1]))
        product = dy * centred
        dweight = ops.Reshape()(ops.MatMul(transpose_a=True)(inverse_std, product), weight.shape)
        # With y the rows before weight and bias: dx = (dy w - mean(dy w) - y mean(dy w y)) / std
        dx = dy * ops.MatMul()(inverse_std, row)
        along = ops.MatMul(transpose_b=True)(product, row) * (inverse_std * inverse_std * inverse_std / x.shape[1])
        dx = dx - across(ops.ReduceMean(True)(dx, 1), x.shape[1]) - centred * across(along, x.shape[1])
        return dx, dweight, sum_of_rows(dy)


class Attend(nn.Cell):
    """softmax(q k^T) v over (B, heads, N, d). The products are of the compute dtype, the softmax is float32."""

    def construct(self, q, k, v):
        return ops.BatchMatMul()(attention_of(q, k, v.dtype), v)


class AttendByHand(nn.Cell):
    """The same with its gradient written out, which passes over the N x N map once where MindSpore's does several
    times."""

    def __init__(self):
        super().__init__()
        self.kernel = _AttendByHand()

    def construct(self, q, k, v):
        y, _ = self.kernel(q, k, v)
        return y


class AttendBiased(nn.Cell):
    """softmax(q k^T + bias) v. The bias, float32, is of any shape whose rows' end (B, heads, N, M) repeats it."""

    def construct(self, q, k, v, bias):
        logits = ops.Cast()(ops.BatchMatMul(transpose_b=True)(q, k), ms.float32)
        rows = ops.Reshape()(logits, (-1, bias.size)) + ops.Reshape()(bias, (1, bias.size))
        attention = ops.Cast()(ops.Softmax(-1)(ops.Reshape()(rows, logits.shape)), v.dtype)
        return ops.BatchMatMul()(attention, v)


class AttendBiasedByHand(nn.Cell):
    """The same with its gradient written out."""

    def __init__(self):
        super().__init__()
        self.kernel = _AttendBiasedByHand()

    def construct(self, q, k, v, bias):
        y, _ = self.kernel(q, k, v, bias)
        return y


def attention_of(q, k, dtype):
    """softmax(q k^T): (B, heads, N, N)."""
    logits = ops.Cast()(ops.BatchMatMul(transpose_b=True)(q, k), ms.float32)
    return ops.Cast()(ops.Softmax(-1)(logits), dtype)


class _AttendByHand(nn.Cell):
    """The values, and the attention, which their gradient needs and nobody else may read."""

    def construct(self, q, k, v):
        attention = attention_of(q, k, v.dtype)
        return ops.BatchMatMul()(attention, v), attention

    def bprop(self, q, k, v, out, dout):
        y, attention = out
        dlogits, dv = attention_gradients(attention, v, y, dout[0])
        return ops.BatchMatMul()(dlogits, k), ops.BatchMatMul(transpose_a=True)(dlogits, q), dv


class _AttendBiasedByHand(nn.Cell):
    """As `_AttendByHand`."""

    def construct(self, q, k, v, bias):
        logits = ops.Cast()(ops.BatchMatMul(transpose_b=True)(q, k), ms.float32)
        rows = ops.BiasAdd()(ops.Reshape()(logits, (-1, bias.size)), ops.Reshape()(bias, (bias.size,)))
        attention = ops.Cast()(ops.Softmax(-1)(ops.Reshape()(rows, logits.shape)), v.dtype)
        return ops.BatchMatMul()(attention, v), attention

    def bprop(self, q, k, v, bias, out, dout):
        y, attention = out
        dlogits, dv = attention_gradients(attention, v, y, dout[0])
        rows = ops.Reshape()(ops.Cast()(dlogits, ms.float32), (-1, bias.size))
        dbias = rows if rows.shape[0] == 1 else sum_of_rows(rows)
        dq, dk = ops.BatchMatMul()(dlogits, k), ops.BatchMatMul(transpose_a=True)(dlogits, q)
        return dq, dk, dv, ops.Reshape()(dbias, bias.shape)


def attention_gradients(attention, v, y, dy):
    """Of the logits and of v, where y = softmax(logits) v.

    The softmax's gradient is p (dp - sum(p dp)), and sum(p dp) = y dy (FlashAttention, arXiv 2205.14135, appendix B.2):
    so the difference is one product, of dy with that sum as another column and v with ones.
    """
    dv = ops.BatchMatMul(transpose_a=True)(attention, dy)
    # In float32: under a loss scale the product of two float16 overflows.
    terms = ops.Reshape()(ops.Cast()(dy, ms.float32) * ops.Cast()(y, ms.float32), (-1, y.shape[3]))
    sums = ops.Reshape()(ops.Cast()(ops.ReduceSum(True)(terms, 1), dy.dtype), y.shape[:3] + (1,))
    left = ops.Concat(-1)((dy, -sums))
    right = ops.Concat(-1)((v, ops.Ones()(v.shape[:3] + (1,), v.dtype)))
    return attention * ops.BatchMatMul(transpose_b=True)(left, right), dv


class Permute(nn.Cell):
    """The tokens of x (B, N, D) in another order, index int32 (N,); `inverse`, the way back, carries the gradient."""

    def construct(self, x, index, inverse):
        return ops.Gather()(x, index, 1)

    def bprop(self, x, index, inverse, out, dout):
        return ops.Gather()(dout, inverse, 1), ops.ZerosLike()(index), ops.ZerosLike()(inverse)


class Depthwise(nn.Cell):
    """A 3 x 3 convolution of each channel with zeros beyond the border: (B, C, H, W), weight (C, 1, 3, 3)."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolve = ops.Conv2D(channels, 3, pad_mode="pad", pad=1, group=channels)

    def construct(self, planes, weight):
        return self.convolve(planes, weight)


class DepthwiseByHand(Depthwise):
    """The same with its gradients written out: MindSpore's CPU kernels of them are several times the forward."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.backwards = Tensor(np.arange(9)[::-1].astype(np.int32))

    def construct(self, planes, weight):
        return self.convolve(planes, weight)

    def bprop(self, planes, weight, out, dout):
        batch, channels, rows, columns = planes.shape
        turned = ops.Gather()(ops.Reshape()(weight, (channels, 9)), self.backwards, 1)
        dplanes = self.convolve(dout, ops.Reshape()(turned, weight.shape))
        # dweight[r, s] sums dout[y, x] planes[y + r - 1, x + s - 1]: of each s all pairs of rows, then three diagonals.
        padded = ops.Pad(((0, 0), (0, 0), (0, 0), (1, 1)))(planes)
        dy, of_columns = ops.Reshape()(dout, (batch * channels, rows, columns)), ()
        for s in range(3):
            part = ops.Slice()(padded, (0, 0, 0, s), planes.shape)
            pairs = ops.BatchMatMul(transpose_b=True)(dy, ops.Reshape()(part, dy.shape))
            sums = ops.MatMul()(ops.Reshape()(pairs, (-1, rows * rows)), ops.Cast()(diagonals(rows), pairs.dtype))
            of_columns = of_columns + (ops.ReduceSum()(ops.Reshape()(sums, (batch, channels, 3, 1)), 0),)
        return dplanes, ops.Reshape()(ops.Concat(2)(of_columns), weight.shape)


@ops.constexpr
def diagonals(rows: int) -> Tensor:
    """Of a matrix (rows, rows), flat, the entries on the diagonals -1, 0 and 1: 0/1 float32 (rows * rows, 3)."""
    below = np.subtract.outer(np.arange(rows), np.arange(rows))
    return Tensor(np.stack([below == 1, below == 0, below == -1], -1).reshape(-1, 3).astype(np.float32))


class TanhGelu(nn.Cell):
    """The tanh approximation of GELU with its gradient written out, in float32 (the cube of a large float16
    overflows)."""

    def __init__(self):
        super().__init__()
        self.kernel = _TanhGelu()

    def construct(self, x):
        y, _ = self.kernel(x)
        return y


class _TanhGelu(nn.Cell):
    """It is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). Returns that and, for its gradient alone, its
    derivative: the backward pass is then one product, and keeps one array instead of all steps between."""

    def construct(self, x):
        slope = 1.5957691216057308 + 0.07135481627260025 * x * x  # 2 u / x
        sigmoid = ops.Sigmoid()(x * slope)
        inner = 3.0 * slope - 3.1915382432114616  # derivative of 2 u
        return x * sigmoid, SigmoidGrad()(sigmoid, x) * inner + sigmoid

    def bprop(self, x, out, dout):
        return (dout[0] * out[1],)
