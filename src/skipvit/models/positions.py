"""A position embedding for another number of patches."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops
from PIL import Image


def resized_positions(positions: np.ndarray, grid: int, prefix: int = 1) -> np.ndarray:
    """Resize a square position embedding, float (1, prefix + n * n, D) -> float32 (1, prefix + grid * grid, D); those
    of the tokens in front ([CLS]) stay.

    Bicubic with a = -1/2, antialiased: shrinking widens the kernel. As timm's `resample_abs_pos_embed` (PyTorch's
    `interpolate(mode="bicubic", antialias=True)`) and Pillow's BICUBIC; DeiT's own code does not antialias and takes a
    = -3/4.
    """
    old = round((positions.shape[1] - prefix) ** 0.5)
    if old == grid:
        return positions.astype(np.float32)
    front, patches = positions[:, :prefix], positions[0, prefix:].astype(np.float64)
    return np.concatenate([front, (bicubic_weights(old, grid) @ patches)[None]], 1).astype(np.float32)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """Share of each of old x old samples in each of new x new ones: float64 (new * new, old * old), rows sum to 1."""
    unit = Image.fromarray(np.eye(old, dtype=np.float32))
    along = np.asarray(unit.resize((old, new), Image.Resampling.BICUBIC), np.float64)  # (new, old)
    return np.kron(along, along)


@ops.constexpr
def resize_weights(old: int, new: int) -> Tensor:
    """`bicubic_weights` as a constant of a graph, float32."""
    return Tensor(bicubic_weights(old, new).astype(np.float32))
