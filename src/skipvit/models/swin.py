"""The Swin Transformer (arXiv 2103.14030), top-down. Along routes it is walked by `routing.forward.Forward`.

Parameter names are timm's except that blocks count through all stages, q, k and v are three projections and the patch
projection is a matrix (`skipvit convert` translates). A stage's tokens are stored window after window, see
`models.windows`.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, TruncatedNormal, initializer

from skipvit.models import windows
from skipvit.models.kernels import AttendBiased, AttendBiasedByHand, Permute
from skipvit.models.layers import Attention, Block, Dense, LayerNorm, Mlp, Patches
from skipvit.models.stages import StagedNetwork, both_ways, quarters, side_of
from skipvit.models.swin_spec import SwinSpec

EPSILON = 1e-5  # of its layer norms
DEVIATION = 0.02  # of its tables of biases


class Swin(StagedNetwork):
    """A Swin Transformer.

    Initial weights: Xavier uniform; zeros for head and biases; tables of relative positions with deviation 0.02.

    Args: as of `models.vit.ViT`.
    """

    def __init__(self, spec: SwinSpec, fused_kernels: bool = False, dtype: Any = None):
        super().__init__()
        fused, dtype, stages = fused_kernels, dtype or ms.float32, range(len(spec.depths))
        self.spec, self.stage_windows = spec, tuple(spec.windows(s) for s in stages)
        self.patch_embed = NormedPatchEmbed(spec.patch, spec.width, fused, dtype)
        self.blocks = nn.CellList([SwinBlock(spec, i, fused, dtype) for i in range(spec.depth)])
        self.downsample = nn.CellList(
            [PatchMerging(spec.width_of(s), spec.windows(s), spec.windows(s + 1), fused, dtype) for s in stages[:-1]]
        )
        self.permute = Permute()
        self.norm = LayerNorm(spec.width_of(stages[-1]), fused, EPSILON)
        self.head = Dense(spec.width_of(stages[-1]), spec.num_classes, fused, dtype, init="zeros")

    def embed(self, images):
        """Patch tokens in the order of the first stage: (B, patches, D)."""
        x = self.patch_embed(images)
        index, inverse = into_order(side_of(x.shape[1]), self.stage_windows[0])
        return self.permute(x, index, inverse)

    def to_stage(self, stage, x):
        """The tokens of a stage, (B, N / 4, 2 D), of those that leave the stage before, (B, N, D)."""
        return self.downsample[stage - 1](x)

    def locate(self, select, mask):
        """What blocks have to know of the tokens that a route keeps.

        Args:
            select: the route's, see `routing.select.Selector`; mask: of its tokens, float32 0/1 (B, N).

        Returns:
            of each token its place within its plain window and within its shifted one, one-hot float32 (B, kept, tokens
            of a window); how many of each cell there are.
        """
        plain, moved = one_hot_places(side_of(mask.shape[1]), self.stage_windows[self.spec.routed_stage])
        alike = (mask.shape[0],) + plain.shape[1:]
        plain = select.take(ops.BroadcastTo(alike)(plain), mask)
        moved = select.take(ops.BroadcastTo(alike)(moved), mask)
        return ops.stop_gradient(plain), ops.stop_gradient(moved), select.counts

    def classify(self, y):
        """Logits (B, classes) of the last norm's tokens (B, N, D): the head reads their mean."""
        return self.head(ops.ReduceMean()(y, 1))


class NormedPatchEmbed(nn.Cell):
    """Patches with a layer norm: (B, H, W, 3) -> float32 (B, tokens, D)."""

    def __init__(self, patch: int, width: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.cut = Patches(patch)
        self.proj = Dense(patch * patch * 3, width, fused, dtype, Normal((patch * patch * 3) ** -0.5))
        self.norm = LayerNorm(width, fused, EPSILON)

    def construct(self, images):
        return self.norm(ops.Cast()(self.proj(self.cut(images)), ms.float32))


class PatchMerging(nn.Cell):
    """Each 2 x 2 tokens become one twice as wide: (B, N, D) -> (B, N / 4, 2 D), from one stage's order to the next's.

    Args:
        windows_before, windows_after: along a side, of the two stages.
    """

    def __init__(self, width: int, windows_before: int, windows_after: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.width, self.windows_before, self.windows_after = width, windows_before, windows_after
        self.norm = LayerNorm(4 * width, fused, EPSILON)
        self.reduction = Dense(4 * width, 2 * width, fused, dtype, bias=False)
        self.permute = Permute()

    def construct(self, x):
        batch, tokens, width = x.shape
        index, inverse = into_quarters(side_of(tokens), self.windows_before, self.windows_after)
        x = ops.Reshape()(self.permute(x, index, inverse), (batch, tokens // 4, 4 * width))
        return ops.Cast()(self.reduction(self.norm(x)), ms.float32)


class SwinBlock(Block):
    """Pre-norm block whose tokens meet within windows, shifted ones in every second block: (B, N, D) -> (B, N, D)."""

    def __init__(self, spec: SwinSpec, index: int, fused: bool, dtype: ms.Type):
        stage = spec.stage_of_block(index)
        width, windows = spec.width_of(stage), spec.windows(stage)
        # Counted from the stage's first block; one window has nowhere to shift.
        shifts = windows > 1 and (index - sum(spec.depths[:stage])) % 2 == 1
        attn = WindowAttention(width, spec.heads[stage], windows, spec.table_window(stage), shifts, fused, dtype)
        mlp = Mlp(width, spec.gelu == "erf", fused, dtype)
        super().__init__(width, attn, mlp, fused, spec.drop_path_of(index), 2 * index, EPSILON)
        self.windows, self.shifts = windows, shifts
        self.permute = Permute()

    def attend(self, x, noise, where=None):
        """The first half, in which tokens meet, and q, k (B x windows, heads, tokens of one, d) and what is added to
        their logits.

        Args:
            where: of tokens that a route keeps, see `Swin.locate`; None: all are there.
        """
        normed = self.norm1(x)
        if self.shifts:
            index, inverse = self.order(x.shape[1], where)
            normed = self.permute(normed, index, inverse)
        y, signals = self.attn(normed, where)
        if self.shifts:
            y = self.permute(y, inverse, index)
        return x + self.drop_path1(ops.Cast()(y, x.dtype), noise), signals

    def order(self, tokens, where):
        """Into the shifted windows and back."""
        if where is None:
            return shifted_order(side_of(tokens), self.windows, None)
        return shifted_order(side_of(where[0].shape[2]) * self.windows, self.windows, where[2])

    def received(self, signals, layout):
        """The attention that each token receives within its window: float32 (B, N), mean over queries and heads."""
        logits = ops.Cast()(ops.BatchMatMul(transpose_b=True)(signals["q"], signals["k"]), ms.float32)
        bias = signals["bias"]
        rows = ops.Reshape()(logits, (-1, bias.size)) + ops.Reshape()(bias, (1, bias.size))
        attention = ops.Softmax(-1)(ops.Reshape()(rows, logits.shape))
        mean = ops.Reshape()(ops.ReduceMean()(attention, (1, 2)), (-1, layout.patches, 1))
        if self.shifts:
            index, inverse = self.order(layout.patches, None)
            mean = self.permute(mean, inverse, index)
        return ops.Reshape()(mean, (-1, layout.patches))

    def signals_of(self, x, before, reads):
        """What a scorer reads of all tokens x (B, N, D), as this block would compute it."""
        normed = self.norm1(x)
        if self.shifts:
            index, inverse = self.order(x.shape[1], None)
            normed = self.permute(normed, index, inverse)
        return self.attn.queries_keys(self.attn.into_windows(normed), None)


class WindowAttention(Attention):
    """Multi-head self-attention within windows that are stored one after another: (B, N, D) -> (B, N, D).

    Args:
        windows: along a side of the stage.
        table_window: side of the windows that the table of biases is for.
        shifts: its windows are the shifted ones.
    """

    def __init__(self, width, heads, windows, table_window, shifts, fused: bool, dtype: ms.Type):
        super().__init__(width, heads, fused, dtype)
        self.count, self.windows, self.table_window, self.shifts = windows**2, windows, table_window, shifts
        self.attend = AttendBiased() if fused else AttendBiasedByHand()
        self.relative_position_bias_table = Parameter(
            initializer(TruncatedNormal(DEVIATION), ((2 * table_window - 1) ** 2, heads)),
            name="relative_position_bias_table",
        )

    def construct(self, x, where=None):
        rows = self.into_windows(x)
        signals = self.queries_keys(rows, where)
        y = self.attend(signals["q"], signals["k"], self.split(self.v(rows)), signals["bias"])
        y = self.proj(ops.Reshape()(ops.Transpose()(y, (0, 2, 1, 3)), rows.shape))
        return ops.Reshape()(y, x.shape), signals

    def into_windows(self, x):
        """(B, N, D) -> (B x windows, tokens of one, D)."""
        return ops.Reshape()(x, (x.shape[0] * self.count, x.shape[1] // self.count, self.width))

    def queries_keys(self, rows, where):
        """q, scaled, and k (B x windows, heads, tokens of one, d), and what is added to their logits."""
        q = self.split(self.q(rows)) * (self.head_width**-0.5)
        if where is None:
            return {"q": q, "k": self.split(self.k(rows)), "bias": self.bias(rows.shape[1])}
        return {"q": q, "k": self.split(self.k(rows)), "bias": self.bias_of_kept(rows, where)}

    def table(self, tokens):
        """The biases of a whole window: float32 (heads, tokens, tokens)."""
        chosen = table_rows(side_of(tokens), self.windows, self.shifts, self.table_window)
        biases = ops.MatMul()(chosen, self.relative_position_bias_table)
        return ops.Reshape()(ops.Transpose()(biases, (1, 0)), (self.heads, tokens, tokens))

    def bias(self, tokens):
        """Of whole windows: (heads, tokens, tokens), or where they are shifted of each window of an image."""
        table = self.table(tokens)
        if not self.shifts:
            return table
        alike = (self.count, self.heads, tokens, tokens)
        mask = ops.BroadcastTo(alike)(window_mask(side_of(tokens) * self.windows, self.windows, None))
        return mask + ops.BroadcastTo(alike)(ops.Reshape()(table, (1,) + table.shape))

    def bias_of_kept(self, rows, where):
        """Of the tokens that a route keeps: (B x windows, heads, tokens of one, tokens of one). With P the one-hot
        places of a window's tokens it is P table P^T: products, which have a cube unit and a simple gradient."""
        plain, moved, counts = where
        places, whole = moved if self.shifts else plain, plain.shape[2]
        if self.shifts:
            places = ops.Gather()(places, shifted_order(side_of(whole) * self.windows, self.windows, counts)[0], 1)
        windows, kept = rows.shape[0], rows.shape[1]
        places = ops.Cast()(ops.Reshape()(places, (windows, kept, whole)), self.q.dtype)
        table = ops.Cast()(ops.Transpose()(self.table(whole), (1, 0, 2)), self.q.dtype)
        biases = ops.MatMul()(
            ops.Reshape()(places, (windows * kept, whole)), ops.Reshape()(table, (whole, self.heads * whole))
        )
        biases = ops.Reshape()(biases, (windows, kept * self.heads, whole))
        biases = ops.Reshape()(ops.BatchMatMul(transpose_b=True)(biases, places), (windows, kept, self.heads, kept))
        biases = ops.Cast()(ops.Transpose()(biases, (0, 2, 1, 3)), ms.float32)
        if not self.shifts:
            return biases
        mask = window_mask(side_of(whole) * self.windows, self.windows, counts)
        return biases + ops.BroadcastTo(biases.shape)(self.of_every_image(mask, windows))

    def of_every_image(self, mask, windows):
        """(windows of an image, 1, n, n) -> (windows, 1, n, n)."""
        return ops.Tile()(mask, (windows // self.count, 1, 1, 1))


@ops.constexpr
def into_order(grid: int, windows_a_side: int) -> tuple[Tensor, Tensor]:
    """From row-major tokens to a stage's order, and back."""
    return both_ways(windows.order(grid, grid // windows_a_side))


@ops.constexpr
def into_quarters(grid: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    """From a stage's order to each 2 x 2 tokens together in the order of the next stage, and back."""
    order, next_order = windows.order(grid, grid // before), windows.order(grid // 2, grid // 2 // after)
    return both_ways(quarters(order, next_order, by_columns=True))


@ops.constexpr
def shifted_order(grid: int, windows_a_side: int, counts: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """From stored tokens to the order of the shifted windows, and back."""
    found = windows.shifted(grid, grid // windows_a_side, counts)
    return Tensor(found.index), Tensor(found.inverse)


@ops.constexpr
def window_mask(grid: int, windows_a_side: int, counts: tuple[int, ...] | None) -> Tensor:
    """What keeps tokens of different sides of the image apart: float32 (windows, 1, n, n)."""
    return Tensor(windows.shifted(grid, grid // windows_a_side, counts).mask[:, None])


@ops.constexpr
def table_rows(window: int, windows_a_side: int, shifts: bool, table_window: int) -> Tensor:
    """Which row of the table each pair of tokens of a window has, one-hot: float32 (window^4, rows)."""
    shift = window // 2 if windows_a_side > 1 else 0
    rows = windows.offsets(window, shift, shifts, table_window).ravel()
    return Tensor(np.eye((2 * table_window - 1) ** 2, dtype=np.float32)[rows])


@ops.constexpr
def one_hot_places(grid: int, windows_a_side: int) -> tuple[Tensor, Tensor]:
    """Of each stored token its place within its plain and within its shifted window: float32 (1, N, n)."""
    window = grid // windows_a_side
    count = window * window
    places = np.arange(grid * grid)
    moved = windows.shifted(grid, window).inverse if windows_a_side > 1 else places
    unit = np.eye(count, dtype=np.float32)
    return Tensor(unit[places % count][None]), Tensor(unit[moved % count][None])
