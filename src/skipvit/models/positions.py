"""A position embedding for another number of patches."""

from __future__ import annotations

import numpy as np


def resized_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Resize a square position embedding, float (1, 1 + n * n, D) -> float32 (1, 1 + grid * grid, D); that of [CLS], the first, stays.

    Bicubic with a = -1/2, antialiased: shrinking widens the kernel. As timm's `resample_abs_pos_embed` (PyTorch's
    `interpolate(mode="bicubic", antialias=True)`) and Pillow's BICUBIC; DeiT's own code does not antialias and takes a = -3/4.
    """
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid:
        return positions.astype(np.float32)
    cls, patches = positions[:, :1], positions[0, 1:].astype(np.float64).reshape(old, old, -1)
    weights = bicubic_weights(old, grid)
    resized = np.einsum("io,jp,opd->ijd", weights, weights, patches, optimize=True)
    return np.concatenate([cls, resized.reshape(1, grid * grid, -1)], 1).astype(np.float32)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """Share of each of `old` samples in each of `new` ones over the same length: float64 (new, old), rows sum to 1.

    Sample i lies at (i + 1/2) / count. Weights that would fall beyond the ends are spread over the row.
    """
    step = old / new
    centres = (np.arange(new)[:, None] + 0.5) * step
    weights = _cubic((np.arange(old) + 0.5 - centres) / max(1.0, step))
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981), a = -1/2, of support [-2, 2]."""
    x = np.abs(x)
    near = 1 - 2.5 * x**2 + 1.5 * x**3
    far = 2 - 4 * x + 2.5 * x**2 - 0.5 * x**3
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
