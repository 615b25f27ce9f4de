"""Layers of a Vision Transformer (arXiv 2010.11929): the cells that `vit.ViT` is put together from.

Each takes `fused`: MindSpore's own kernels and gradients, right for Ascend; else the same functions written out
(`kernels`), which is faster on CPU. `dtype` is of the matrix products; the weights themselves are float32.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from skipvit.models.kernels import NORM_EPSILON, AddBias, Attend, AttendByHand, NormalizeRows, TanhGelu
from skipvit.routing.scorers import mean_received, of_patches

# Channel statistics of ImageNet on the 0..255 scale: the field's normalisation for uint8 images.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Dense(nn.Cell):
    """y = x W^T + b over the last axis: (B, N, in) -> (B, N, out) or (B, in) -> (B, out), of the compute dtype.

    Args:
        fused: MindSpore's gradient of the bias; else written out.
        dtype: of the product; the weights themselves are float32.
        init: of the weight. Xavier's scale follows the width, so that narrow networks learn from the start too.
        bias: whether there is b.
    """

    def __init__(
        self, inputs: int, outputs: int, fused: bool, dtype: ms.Type, init: Any = "XavierUniform", bias: bool = True
    ):
        super().__init__()
        self.inputs, self.outputs, self.dtype, self.has_bias = inputs, outputs, dtype, bias
        self.weight = Parameter(initializer(init, (outputs, inputs)), name="weight")
        if bias:
            self.bias = Parameter(initializer("zeros", (outputs,)), name="bias")
        self.add_bias = ops.BiasAdd() if fused else AddBias()

    def construct(self, x):
        rows = ops.Cast()(ops.Reshape()(x, (-1, self.inputs)), self.dtype)
        y = ops.MatMul(transpose_b=True)(rows, ops.Cast()(self.weight, self.dtype))
        if self.has_bias:
            y = self.add_bias(y, ops.Cast()(self.bias, self.dtype))
        return ops.Reshape()(y, x.shape[:-1] + (self.outputs,))


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis in float32, epsilon 1e-6 as in timm's ViT unless it is given."""

    def __init__(self, width: int, fused: bool, epsilon: float = NORM_EPSILON):
        super().__init__()
        self.width, self.fused = width, fused
        self.weight = Parameter(initializer("ones", (width,)), name="weight")
        self.bias = Parameter(initializer("zeros", (width,)), name="bias")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=epsilon)
        self.normalize_rows = NormalizeRows(epsilon)

    def construct(self, x):
        if self.fused:
            return self.norm(x, self.weight, self.bias)[0]
        y = self.normalize_rows(ops.Reshape()(x, (-1, self.width)), self.weight, self.bias)
        return ops.Reshape()(y, x.shape)


class Patches(nn.Cell):
    """Cut images into patches: (B, H, W, 3) -> float32 (B, patches, patch * patch * 3).

    uint8 images are normalised with the ImageNet mean and deviation here, in the graph; float images are taken as
    normalised.
    """

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch
        self.mean = Tensor(np.array(PIXEL_MEAN * patch * patch, np.float32))
        self.inverse_std = Tensor(1 / np.array(PIXEL_STD * patch * patch, np.float32))

    def construct(self, images):
        batch, rows, columns = images.shape[0], images.shape[1] // self.patch, images.shape[2] // self.patch
        x = ops.Reshape()(images, (batch, rows, self.patch, columns, self.patch * 3))
        x = ops.Transpose()(x, (0, 1, 3, 2, 4))  # (B, rows, columns, patch, patch * 3)
        x = ops.Reshape()(x, (batch, rows * columns, self.patch * self.patch * 3))
        if images.dtype == ms.uint8:
            x = (ops.Cast()(x, ms.float32) - self.mean) * self.inverse_std
        return x


class PatchEmbed(nn.Cell):
    """Cut images into patches and project each: (B, H, W, 3) -> (B, tokens, D).

    A reshape and a matrix product: the same arithmetic as a convolution whose stride is its kernel.
    """

    def __init__(self, patch: int, width: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.cut = Patches(patch)
        self.proj = Dense(patch * patch * 3, width, fused, dtype, Normal((patch * patch * 3) ** -0.5))

    def construct(self, images):
        return self.proj(self.cut(images))


class Attention(nn.Cell):
    """Multi-head self-attention: (B, N, D) -> (B, N, D), and its `q`, `k`, `v` (B, heads, N, d) for the scorers."""

    def __init__(self, width: int, heads: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.width, self.heads = width, heads
        self.attend = Attend() if fused else AttendByHand()
        self.head_width = width // heads
        # Three projections, not a fused one: cutting a fused product apart costs a slow strided slice.
        self.q = Dense(width, width, fused, dtype)
        self.k = Dense(width, width, fused, dtype)
        self.v = Dense(width, width, fused, dtype)
        self.proj = Dense(width, width, fused, dtype)

    def split(self, x):
        x = ops.Reshape()(x, (x.shape[0], x.shape[1], self.heads, self.head_width))
        return ops.Transpose()(x, (0, 2, 1, 3))

    def keys_values(self, x):
        return self.split(self.k(x)), self.split(self.v(x))

    def construct(self, x):
        q = self.split(self.q(x))
        k, v = self.keys_values(x)
        y = self.attend(q * (self.head_width**-0.5), k, v)
        y = self.proj(ops.Reshape()(ops.Transpose()(y, (0, 2, 1, 3)), x.shape))
        return y, {"q": q, "k": k, "v": v}


class Gelu(nn.Cell):
    """GELU: its tanh approximation (written out, unless fused: the packaged kernel is slow on CPU), or exact erf."""

    def __init__(self, exact: bool, fused: bool):
        super().__init__()
        self.exact, self.fused = exact, fused
        self.by_tanh = TanhGelu()

    def construct(self, x):
        if self.fused and not self.exact:
            return ops.GeLU()(x)
        x = ops.Cast()(x, ms.float32)
        if self.exact:
            return 0.5 * x * (1.0 + ops.Erf()(x * 0.7071067811865476))
        return self.by_tanh(x)


class Mlp(nn.Cell):
    """Two-layer perceptron, `ratio` times as wide inside: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, exact_gelu: bool, fused: bool, dtype: ms.Type, ratio: int = 4):
        super().__init__()
        self.fc1 = Dense(width, ratio * width, fused, dtype)
        self.act = Gelu(exact_gelu, fused)
        self.fc2 = Dense(ratio * width, width, fused, dtype)

    def construct(self, x):
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Cell):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per sample, scales the rest by 1 / (1 - rate)."""

    def __init__(self, rate: float, noise_column: int):
        super().__init__()
        self.rate, self.column = rate, noise_column

    def construct(self, x, noise):
        if not self.training or self.rate == 0:
            return x
        batch = x.shape[0]
        draw = ops.Slice()(noise, (0, self.column), (batch, 1))
        keep = ops.Cast()(ops.GreaterEqual()(draw, self.rate), x.dtype) / (1.0 - self.rate)
        return x * ops.Reshape()(keep, (batch, 1, 1))


class Block(nn.Cell):
    """Pre-norm transformer block: (B, N, D) -> (B, N, D). The residual stream is float32."""

    def __init__(
        self,
        width: int,
        attn: nn.Cell,
        mlp: nn.Cell,
        fused: bool,
        drop_path: float,
        noise_column: int,
        epsilon: float = NORM_EPSILON,
    ):
        super().__init__()
        self.norm1 = LayerNorm(width, fused, epsilon)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path, noise_column)
        self.norm2 = LayerNorm(width, fused, epsilon)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path, noise_column + 1)

    def construct(self, x, noise):
        x, _ = self.attend(x, noise)
        return self.feed(x, noise)

    def attend(self, x, noise, where=None):
        """The first half, in which tokens meet; and its attention's q, k, v.

        Args:
            where: the network's `locate` of the tokens, for blocks that have to know; None: all are there.
        """
        y, signals = self.attn(self.norm1(x))
        return x + self.drop_path1(ops.Cast()(y, x.dtype), noise), signals

    def feed(self, x, noise, where=None):
        """The second half, each token on its own."""
        return x + self.drop_path2(ops.Cast()(self.mlp(self.norm2(x)), x.dtype), noise)

    def received(self, signals, layout):
        """The attention that each patch receives of the patches: float32 (B, patches)."""
        return mean_received({"q": of_patches(signals["q"], layout), "k": of_patches(signals["k"], layout)})

    def signals_of(self, x, before, reads):
        """What a scorer reads of the tokens x (B, N, D), as this block would compute it; `before`: of those that took
        it. The query of [CLS], which took it, is the same."""
        normed = self.norm1(x)
        k, v = self.attn.keys_values(normed)
        new_queries = "q" in reads or "received" in reads
        q = self.attn.split(self.attn.q(normed)) if new_queries else before["q"]
        return {"q": q, "k": k, "v": v}
