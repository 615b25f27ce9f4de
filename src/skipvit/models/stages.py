"""What networks of several stages have in common: the walk through them, and tokens in one order and another."""

from __future__ import annotations

from math import isqrt

import numpy as np
from mindspore import Tensor, nn, ops


class StagedNetwork(nn.Cell):
    """A family gives `embed`, `blocks`, `to_stage`, `norm`, `classify`, `locate`, and `spec`, a `StagedSpec`."""

    def construct(self, images, noise):
        """The dense forward: logits (B, classes) of images (B, H, W, 3), uint8 or float; noise: see `vit.ViT`."""
        x, first = self.embed(images), 0
        for stage in range(len(self.spec.depths)):
            if stage > 0:
                x = self.to_stage(stage, x)
            for i in range(first, first + self.spec.depths[stage]):
                x = self.blocks[i](x, noise)
            first = first + self.spec.depths[stage]
        return self.classify(self.norm(x))


@ops.constexpr
def side_of(tokens: int) -> int:
    """Of a square of so many."""
    return isqrt(tokens)


def both_ways(index: np.ndarray) -> tuple[Tensor, Tensor]:
    """A permutation and the way back, int32."""
    return Tensor(index.astype(np.int32)), Tensor(np.argsort(index).astype(np.int32))


def quarters(order: np.ndarray, next_order: np.ndarray, by_columns: bool) -> np.ndarray:
    """Which token of a stage comes next if each 2 x 2 are together, in the order of the next stage: int (n,).

    Args:
        order, next_order: row-major position of each token of the two stages, (n,) and (n / 4,).
        by_columns: the order of the four, else by rows.
    """
    stored, grid = np.argsort(order), isqrt(len(order))  # where each row-major token is
    y, x = next_order // (grid // 2) * 2, next_order % (grid // 2) * 2
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)] if by_columns else [(0, 0), (0, 1), (1, 0), (1, 1)]
    return stored[np.stack([(y + dy) * grid + x + dx for dy, dx in corners], 1).ravel()]
