"""Selectors: the best of a ranking, and how tokens are taken out of a sequence and put back, with static shapes.

Two formulations keep the same tokens in the same order and are bit-identical. `gather` (top-k, gather, scatter) is the
faster on CPU; `matmul` (a 0/1 matrix times tokens) stays on the cube and vector units of an Ascend 910A, where gather,
scatter and float32 top-k fall to its AI CPU. Nothing else in routing knows the device.
"""

from __future__ import annotations

from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.routing.layout import Cells
from skipvit.routing.program import Select

Formulation = Literal["gather", "matmul"]


class Leading(nn.Cell):
    """The first `count` tokens: (B, N, D) -> (B, count, D).

    The gradient is written out as a padding: MindSpore's own of a slice runs on the AI CPU of an Ascend 910A.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def construct(self, x):
        return ops.Slice()(x, (0, 0, 0), (x.shape[0], self.count, x.shape[2]))

    def bprop(self, x, out, dout):
        return (ops.Pad(((0, 0), (0, x.shape[1] - self.count), (0, 0)))(dout),)


def compared(ranking: Tensor) -> tuple[Tensor, Tensor]:
    """Of a ranking (B, N), at [i, j] whether j's is larger than i's, and whether they are equal: float32 0/1 (B, N, N).

    N^2 comparisons an image on the vector unit: light at 196 tokens, heavy at 1024.
    """
    batch, count = ranking.shape
    mine = ops.Reshape()(ranking, (batch, count, 1))
    other = ops.Reshape()(ranking, (batch, 1, count))
    larger = ops.Cast()(ops.Greater()(other, mine), ms.float32)
    return larger, ops.Cast()(ops.Equal()(other, mine), ms.float32)


class Selector(nn.Cell):
    """What both formulations have in common.

    Attributes:
        before: layout of the sequence that the route selects from.
        kept: patches that stay; counts: of each cell.
        length: tokens that stay, those in front and behind included, without what a carrier adds.
    """

    def __init__(self, step: Select):
        super().__init__(auto_prefix=False)
        self.before, self.kept, self.counts = step.before, step.after.patches, step.counts
        self.in_cells = len(step.counts) > 1 or step.cells.unit > 1
        if self.in_cells:
            self.rank_in_cells(step.cells, step.counts)
        self.length = step.before.prefix + self.kept + step.before.suffix
        self.without_added = Leading(self.length)

    def rank_in_cells(self, cells: Cells, counts: tuple[int, ...]) -> None:
        """Prepare to compare units of patches within their cells."""
        self.unit, sizes = cells.unit, [count // cells.unit for count in cells.groups]
        cell = np.repeat(np.arange(len(sizes)), sizes)
        alike = (cell[:, None] == cell[None]).astype(np.float32)
        self.alike = Tensor(alike[None])
        self.first = Tensor((alike * np.tri(len(cell), k=-1))[None].astype(np.float32))
        self.places = Tensor(np.repeat(np.array(counts, np.float32) / cells.unit, sizes)[None])

    def best_in_cells(self, ranking: Tensor) -> Tensor:
        """Of each cell the units with the largest mean, ties to the earlier: float32 0/1 (B, patches)."""
        batch, patches = ranking.shape
        count = patches // self.unit
        if self.unit > 1:
            ranking = ops.ReduceMean()(ops.Reshape()(ranking, (batch, count, self.unit)), 2)
        larger, equal = compared(ranking)
        rank = ops.ReduceSum()(larger * self.alike + equal * self.first, 2)
        best = ops.Cast()(ops.Less()(rank, self.places), ms.float32)
        if self.unit == 1:
            return best
        together = ops.BroadcastTo((batch, count, self.unit))(ops.Reshape()(best, (batch, count, 1)))
        return ops.Reshape()(together, (batch, patches))

    def mask(self, ranking: Tensor) -> Tensor:
        """The `kept` largest of each row, or as many of each cell as stay there, ties to the earlier position: float32
        0/1 (B, sequence), 1 in front and behind.

        Args:
            ranking: float32 (B, patches).
        """
        best, batch = self.best_in_cells(ranking) if self.in_cells else self.best(ranking), ranking.shape[0]
        parts = (best,)
        if self.before.prefix:
            parts = (ops.Ones()((batch, self.before.prefix), ms.float32),) + parts
        if self.before.suffix:
            parts = parts + (ops.Ones()((batch, self.before.suffix), ms.float32),)
        return ops.Concat(1)(parts)

    def take_and_fuse(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """The tokens that stay, then the mean of those that do not, weighted by `weights`, float32 (B, patches)."""
        batch, sequence, _ = x.shape
        others = weights * (1.0 - ops.Slice()(mask, (0, self.before.prefix), (batch, self.before.patches)))
        row = others / (ops.ReduceSum(keep_dims=True)(others, 1) + 1e-12)
        if self.before.prefix:
            row = ops.Concat(1)((ops.Zeros()((batch, self.before.prefix), ms.float32), row))
        if self.before.suffix:
            row = ops.Concat(1)((row, ops.Zeros()((batch, self.before.suffix), ms.float32)))
        mean = ops.BatchMatMul()(ops.Cast()(ops.Reshape()(row, (batch, 1, sequence)), x.dtype), x)
        return ops.Concat(1)((self.take(x, mask), mean))


class GatherSelector(Selector):
    """Top-k, gather and scatter."""

    def __init__(self, step: Select):
        super().__init__(step)
        # Distinct keys, the earlier the larger, so that no tie can reorder them.
        self.keys = Tensor(np.arange(self.before.length, 0, -1, dtype=np.float32)[None])

    def best(self, ranking: Tensor) -> Tensor:
        # The order in which TopK returns equal values is not defined (it is not by position on CPU), its values are:
        # keep everything above the kept-th value, then fill up with its equals from the left.
        values, _ = ops.TopK(sorted=True)(ranking, self.kept)
        threshold = ops.Slice()(values, (0, self.kept - 1), (ranking.shape[0], 1))
        above = ops.Cast()(ops.Greater()(ranking, threshold), ms.float32)
        equal = ops.Cast()(ops.Equal()(ranking, threshold), ms.float32)
        room = self.kept - ops.ReduceSum(keep_dims=True)(above, 1)
        fits = ops.Cast()(ops.LessEqual()(ops.CumSum()(equal, 1), room), ms.float32)
        return above + equal * fits

    def index(self, mask: Tensor) -> Tensor:
        """Positions where a 0/1 mask (B, sequence) is 1, ascending: int32 (B, length)."""
        _, index = ops.TopK(sorted=True)(mask * self.keys, self.length)
        return ops.stop_gradient(index)

    def take(self, x: Tensor, mask: Tensor) -> Tensor:
        """The tokens that stay, of x (B, sequence, D): (B, length, D)."""
        return ops.Gather(1)(x, self.index(mask), 1)

    def put(self, inside: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """The tokens `inside` (B, length, D) back among the others of x (B, sequence, D)."""
        batch, sequence, width = x.shape
        first = Tensor(tuple(range(0, batch * sequence, sequence)), ms.int32)
        flat = ops.Reshape()(self.index(mask) + ops.Reshape()(first, (batch, 1)), (batch * self.length, 1))
        table = ops.Reshape()(x, (batch * sequence, width))
        updates = ops.Reshape()(inside, (batch * self.length, width))
        return ops.Reshape()(ops.TensorScatterUpdate()(table, flat, updates), x.shape)


class MatmulSelector(Selector):
    """A 0/1 selection matrix times tokens."""

    def __init__(self, step: Select):
        super().__init__(step)
        # Strictly lower triangle [i, j] = j < i: who wins a tie between i and j.
        self.earlier = Tensor(np.tri(self.before.patches, k=-1, dtype=np.float32)[None])
        self.slots = Tensor(np.arange(self.length, dtype=np.float32).reshape(1, -1, 1))

    def best(self, ranking: Tensor) -> Tensor:
        # rank_i = how many tokens beat token i: a larger score, or an equal score at an earlier position.
        larger, equal = compared(ranking)
        rank = ops.ReduceSum()(larger + equal * self.earlier, 2)
        return ops.Cast()(ops.Less()(rank, float(self.kept)), ms.float32)

    def matrix(self, mask: Tensor) -> Tensor:
        """0/1 matrix P with P x = the tokens of x that stay, in order: float32 (B, length, sequence)."""
        batch, sequence = mask.shape
        slot = ops.CumSum()(mask, 1) - 1.0
        here = ops.Cast()(ops.Equal()(ops.Reshape()(slot, (batch, 1, sequence)), self.slots), ms.float32)
        return ops.stop_gradient(here * ops.Reshape()(mask, (batch, 1, sequence)))

    def take(self, x: Tensor, mask: Tensor) -> Tensor:
        """The tokens that stay, of x (B, sequence, D): (B, length, D)."""
        return ops.BatchMatMul()(ops.Cast()(self.matrix(mask), x.dtype), x)

    def put(self, inside: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """The tokens `inside` (B, length, D) back among the others of x (B, sequence, D)."""
        batch, sequence, _ = x.shape
        # The product carries only processed tokens: a cube unit rounds float32 to float16, the bypass must stay exact.
        matrix = ops.Cast()(self.matrix(mask), x.dtype)
        returned = ops.BatchMatMul(transpose_a=True)(matrix, inside)
        stays = ops.Greater()(ops.Reshape()(mask, (batch, sequence, 1)), 0.5)
        return ops.Select()(ops.BroadcastTo(x.shape)(stays), returned, x)


SELECTORS = {"gather": GatherSelector, "matmul": MatmulSelector}
