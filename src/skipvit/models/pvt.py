"""Pyramid Vision Transformers v1 (arXiv 2102.12122) and v2 (2106.13797), top-down. Along routes they are walked by
`routing.forward.Forward`.

Parameter names are timm's except that blocks count through all stages, q, k and v are three projections and kernels
that do not overlap are matrices (`skipvit convert` translates). A stage's tokens are stored cell after cell: each cell
becomes one key and value.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal, Normal, initializer

from skipvit.models.kernels import Depthwise, DepthwiseByHand, Permute
from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD, Attention, Block, Dense, Gelu, LayerNorm, Mlp, Patches
from skipvit.models.positions import resize_weights
from skipvit.models.pvt_spec import POOLED, PVTSpec, cell_order, overlapping
from skipvit.models.stages import StagedNetwork, both_ways, quarters, side_of
from skipvit.routing.select import Leading

EPSILON = 1e-5  # of the layer norms behind convolutions; those of the blocks have 1e-6


class PVT(StagedNetwork):
    """A Pyramid Vision Transformer.

    Initial weights: Xavier uniform, convolutions He normal; zeros for head, biases and [CLS]; position embeddings with
    deviation width^-0.5.

    Args: as of `models.vit.ViT`.
    """

    def __init__(self, spec: PVTSpec, fused_kernels: bool = False, dtype: Any = None):
        super().__init__()
        fused, dtype, stages = fused_kernels, dtype or ms.float32, range(len(spec.depths))
        make = TokenEmbed if spec.version == 1 else OverlapEmbed
        self.spec = spec
        self.patch_embed = make(spec, 0, fused, dtype)
        self.downsample = nn.CellList([make(spec, s, fused, dtype) for s in stages[1:]])
        self.blocks = nn.CellList([PVTBlock(spec, i, fused, dtype) for i in range(spec.depth)])
        self.second = spec.version == 2
        if self.second:
            self.norms = nn.CellList([LayerNorm(width, fused) for width in spec.widths[:-1]])
        self.norm = LayerNorm(spec.widths[-1], fused)
        self.cls = Leading(1)
        self.head = Dense(spec.widths[-1], spec.num_classes, fused, dtype, init="zeros")

    def embed(self, images):
        """Patch tokens in the order of the first stage: (B, patches, D)."""
        return self.patch_embed(images)

    def to_stage(self, stage, x):
        """The tokens of a stage, of those that leave the stage before, (B, N, D)."""
        if self.second:
            x = self.norms[stage - 1](x)
        return self.downsample[stage - 1](x)

    def locate(self, select, mask):
        """What blocks have to know of the tokens that a route keeps: how to put them into the grid and take them out.

        Args:
            select: the route's, see `routing.select.Selector`; mask: of its tokens, float32 0/1 (B, N).
        """
        return select, mask

    def classify(self, y):
        """Logits (B, classes) of the last norm's tokens (B, N, D): the head reads [CLS], in version 2 the mean."""
        if self.second:
            return self.head(ops.ReduceMean()(y, 1))
        return self.head(ops.Reshape()(self.cls(y), (y.shape[0], y.shape[2])))


class TokenEmbed(nn.Cell):
    """Version 1's tokens of a stage: patches of images (B, S, S, 3), or each 2 x 2 tokens of (B, N, D), projected, a
    norm, their positions; [CLS] in front in the last stage. Float32 (B, tokens, D)."""

    def __init__(self, spec: PVTSpec, stage: int, fused: bool, dtype: ms.Type):
        super().__init__()
        width, self.stage, self.grid, self.prefix = spec.widths[stage], stage, spec.grid(stage), spec.prefix(stage)
        self.pooled, self.reduction = pooled(spec), spec.reductions[stage]
        self.reduction_before = spec.reductions[stage - 1]
        if self.prefix:
            self.cls_token = Parameter(initializer("zeros", (1, 1, width)), name="cls_token")
        positions = (1, self.prefix + self.grid**2, width)
        self.pos_embed = Parameter(initializer(Normal(width**-0.5), positions), name="pos_embed")
        inputs = spec.patch**2 * 3 if stage == 0 else 4 * spec.widths[stage - 1]
        self.cut = Patches(spec.patch)
        self.proj = Dense(inputs, width, fused, dtype)
        self.norm = LayerNorm(width, fused, EPSILON)
        self.permute, self.front = Permute(), Leading(1)

    def construct(self, x):
        if self.stage == 0:
            rows = self.cut(x)
            grid = side_of(rows.shape[1])
            index, inverse = into_cells(grid, cell_of(self.reduction, self.pooled, grid))
            rows = self.permute(rows, index, inverse)
        else:
            batch, tokens, width = x.shape
            grid = side_of(tokens) // 2
            index, inverse = into_quarters(
                grid, cell_of(self.reduction_before, self.pooled, 2 * grid), cell_of(self.reduction, self.pooled, grid)
            )
            rows = ops.Reshape()(self.permute(x, index, inverse), (batch, grid * grid, 4 * width))
        x = self.norm(ops.Cast()(self.proj(rows), ms.float32))
        if self.prefix:
            x = ops.Concat(1)((ops.BroadcastTo((x.shape[0], 1, x.shape[2]))(self.cls_token), x))
        return x + self.positions(grid)

    def positions(self, grid):
        """The position embedding for a grid, in the order of the stage; resized where it is not the network's own."""
        width, cell = self.pos_embed.shape[2], cell_of(self.reduction, self.pooled, grid)
        if grid == self.grid and cell == 1:
            return self.pos_embed
        patches = self.pos_embed
        if self.prefix:
            patches = ops.Slice()(patches, (0, self.prefix, 0), (1, self.grid * self.grid, width))
        if grid != self.grid:
            patches = ops.MatMul()(resize_weights(self.grid, grid), ops.Reshape()(patches, (-1, width)))
            patches = ops.Reshape()(patches, (1, grid * grid, width))
        index, inverse = into_cells(grid, cell)
        patches = self.permute(patches, index, inverse)
        if self.prefix == 0:
            return patches
        return ops.Concat(1)((self.front(self.pos_embed), patches))


class OverlapEmbed(nn.Cell):
    """Version 2's tokens of a stage: a convolution of images (B, S, S, 3), or of the tokens (B, N, D) of the stage
    before, whose kernel is wider than its stride, and a norm. Float32 (B, tokens, D)."""

    def __init__(self, spec: PVTSpec, stage: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.stage, self.pooled, stride = stage, pooled(spec), spec.patch if stage == 0 else 2
        self.reduction, self.reduction_before = spec.reductions[stage], spec.reductions[stage - 1]
        inputs, width = 3 if stage == 0 else spec.widths[stage - 1], spec.widths[stage]
        side = overlapping(stride)
        convolve = ops.Conv2D(width, side, pad_mode="pad", pad=side // 2, stride=stride)
        self.proj = Convolution((width, inputs, side, side), convolve, dtype)
        self.norm = LayerNorm(width, fused, EPSILON)

    def construct(self, x):
        if self.stage == 0:
            planes = ops.Transpose()(normalised(x), (0, 3, 1, 2))
        else:
            planes = into_planes(x, cell_of(self.reduction_before, self.pooled, side_of(x.shape[1])))
        planes = self.proj(planes)
        x = from_planes(planes, cell_of(self.reduction, self.pooled, planes.shape[2]))
        return self.norm(ops.Cast()(x, ms.float32))


class Convolution(nn.Cell):
    """Planes (B, C, H, W) to planes, of the compute dtype.

    Args:
        shape: of the weight.
        convolve: takes planes and weight.
    """

    def __init__(self, shape: tuple[int, ...], convolve: Any, dtype: ms.Type):
        super().__init__()
        self.dtype, self.convolve, self.add_bias = dtype, convolve, ops.BiasAdd()
        self.weight = Parameter(initializer(HeNormal(mode="fan_out"), shape), name="weight")
        self.bias = Parameter(initializer("zeros", shape[:1]), name="bias")

    def construct(self, planes):
        y = self.convolve(ops.Cast()(planes, self.dtype), ops.Cast()(self.weight, self.dtype))
        return self.add_bias(y, ops.Cast()(self.bias, self.dtype))


class PVTBlock(Block):
    """Pre-norm block whose tokens attend to one key of each cell: (B, N, D) -> (B, N, D)."""

    def __init__(self, spec: PVTSpec, index: int, fused: bool, dtype: ms.Type):
        stage = spec.stage_of_block(index)
        width, ratio, exact = spec.widths[stage], spec.mlp_ratios[stage], spec.gelu == "erf"
        attn = ReducedAttention(spec, stage, fused, dtype)
        if spec.version == 1:
            mlp = Mlp(width, exact, fused, dtype, ratio)
        else:
            mlp = ConvolvedMlp(width, exact, fused, dtype, ratio, spec.reductions[stage], pooled(spec))
        super().__init__(width, attn, mlp, fused, spec.drop_path_of(index), 2 * index)
        self.convolves = spec.version == 2

    def attend(self, x, noise, where=None):
        """The first half, in which tokens meet; and its attention's q, k, v. Kept tokens are whole cells, so nothing
        differs along a route but how many there are."""
        y, signals = self.attn(self.norm1(x), where)
        return x + self.drop_path1(ops.Cast()(y, x.dtype), noise), signals

    def feed(self, x, noise, where=None):
        """The second half; the convolution of version 2 sees nothing where tokens are not there."""
        y = self.norm2(x)
        y = self.mlp(y, where) if self.convolves else self.mlp(y)
        return x + self.drop_path2(ops.Cast()(y, x.dtype), noise)

    def received(self, signals, layout):
        """The attention that each token's cell receives: float32 (B, N), mean over queries and heads."""
        q = signals["q"] * (signals["q"].shape[3] ** -0.5)
        logits = ops.Cast()(ops.BatchMatMul(transpose_b=True)(q, signals["k"]), ms.float32)
        mean = ops.ReduceMean()(ops.Softmax(-1)(logits), (1, 2))
        batch, keys = mean.shape
        each = layout.patches // keys
        return ops.Reshape()(ops.BroadcastTo((batch, keys, each))(ops.Reshape()(mean, (batch, keys, 1))), (batch, -1))

    def signals_of(self, x, before, reads):
        """What a scorer reads of all tokens x (B, N, D), as this block would compute it."""
        normed = self.norm1(x)
        k, v = self.attn.keys_values(self.attn.reduced(normed, None))
        return {"q": self.attn.split(self.attn.q(normed)), "k": k, "v": v}


class ReducedAttention(Attention):
    """Multi-head attention to one key and value of each cell: (B, N, D) -> (B, N, D), and its q, k, v."""

    def __init__(self, spec: PVTSpec, stage: int, fused: bool, dtype: ms.Type):
        width = spec.widths[stage]
        super().__init__(width, spec.heads[stage], fused, dtype)
        self.linear, self.pooled, self.reduction = spec.linear, pooled(spec), spec.reductions[stage]
        self.inside = spec.reductions[stage] ** 2
        self.reduces = spec.linear or self.inside > 1
        if self.reduces:
            self.sr = Dense(width if spec.linear else self.inside * width, width, fused, dtype)
            self.norm = LayerNorm(width, fused, EPSILON)
            self.act = Gelu(spec.gelu == "erf", fused)

    def construct(self, x, where=None):
        q = self.split(self.q(x))
        k, v = self.keys_values(self.reduced(x, where))
        y = self.attend(q * (self.head_width**-0.5), k, v)
        y = self.proj(ops.Reshape()(ops.Transpose()(y, (0, 2, 1, 3)), x.shape))
        return y, {"q": q, "k": k, "v": v}

    def reduced(self, x, where):
        """Tokens (B, N, D) to one of each cell (B, M, D)."""
        if not self.reduces:
            return x
        batch, tokens, width = x.shape
        if not self.linear:
            x = ops.Reshape()(x, (batch, tokens // self.inside, self.inside * width))
            return self.norm(ops.Cast()(self.sr(x), ms.float32))
        places = tokens if where is None else where[1].shape[1]
        inside = cell_of(self.reduction, self.pooled, side_of(places)) ** 2
        x = ops.ReduceMean()(ops.Reshape()(x, (batch, tokens // inside, inside, width)), 2)
        return self.act(self.norm(ops.Cast()(self.sr(x), ms.float32)))


class ConvolvedMlp(Mlp):
    """Two-layer perceptron with a 3 x 3 convolution of each channel inside: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, exact: bool, fused: bool, dtype: ms.Type, ratio: int, reduction: int, pooled: int):
        super().__init__(width, exact, fused, dtype, ratio)
        self.reduction, self.pooled = reduction, pooled
        hidden = ratio * width
        convolve = Depthwise(hidden) if fused else DepthwiseByHand(hidden)
        self.dwconv = Convolution((hidden, 1, 3, 3), convolve, dtype)

    def construct(self, x, where=None):
        x = self.fc1(x)
        if self.pooled:  # the linear variant
            x = ops.ReLU()(x)
        if where is None:
            return self.fc2(self.act(self.convolved(x)))
        select, mask = where
        grid = select.put(x, ops.Zeros()((x.shape[0], mask.shape[1], x.shape[2]), x.dtype), mask)
        return self.fc2(self.act(select.take(self.convolved(grid), mask)))

    def convolved(self, x):
        """(B, N, D) of a whole grid."""
        cell = cell_of(self.reduction, self.pooled, side_of(x.shape[1]))
        return from_planes(self.dwconv(into_planes(x, cell)), cell)


def pooled(spec: PVTSpec) -> int:
    """How many cells along a side a stage is pooled to in the linear variant, 0 in others."""
    return POOLED if spec.linear else 0


def cell_of(reduction, pooled, grid):
    """Side of the cells of a stage's grid, tokens: its reduction, or what makes `pooled` of them along a side."""
    return grid // pooled if pooled else reduction


def into_planes(x, cell):
    """Stored tokens (B, N, D) to (B, D, H, W)."""
    batch, tokens, width = x.shape
    side = side_of(tokens) // cell
    x = ops.Reshape()(x, (batch, side, side, cell, cell, width))
    return ops.Reshape()(ops.Transpose()(x, (0, 5, 1, 3, 2, 4)), (batch, width, side * cell, side * cell))


def from_planes(planes, cell):
    """(B, D, H, W) to tokens as they are stored (B, N, D)."""
    batch, width, rows, _ = planes.shape
    side = rows // cell
    x = ops.Reshape()(planes, (batch, width, side, cell, side, cell))
    return ops.Reshape()(ops.Transpose()(x, (0, 2, 4, 3, 5, 1)), (batch, rows * rows, width))


def normalised(images):
    """uint8 images to float32 with the ImageNet mean and deviation; float images are taken as they are."""
    if images.dtype != ms.uint8:
        return images
    rows = ops.Reshape()(images, (-1, images.shape[2] * 3))
    mean, inverse_std = of_a_row(images.shape[2])
    return ops.Reshape()((ops.Cast()(rows, ms.float32) - mean) * inverse_std, images.shape)


@ops.constexpr
def of_a_row(pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of a row of pixels: float32 (1, pixels * 3)."""
    mean, std = (np.array(value * pixels, np.float32)[None] for value in (PIXEL_MEAN, PIXEL_STD))
    return Tensor(mean), Tensor(1 / std)


@ops.constexpr
def into_cells(grid: int, cell: int) -> tuple[Tensor, Tensor]:
    """From row-major tokens to a stage's order, and back."""
    return both_ways(cell_order(grid, cell))


@ops.constexpr
def into_quarters(grid: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    """From a stage's order to 2 x 2 tokens after another, by rows, in the order of the next stage; and back."""
    return both_ways(quarters(cell_order(2 * grid, before), cell_order(grid, after), by_columns=False))
