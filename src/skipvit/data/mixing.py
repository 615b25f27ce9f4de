"""The numbers by which the images of a batch are mixed: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from __future__ import annotations

import math

import numpy as np

from skipvit.config.groups import AugmentConfig

UNMIXED = np.array([1, 0, 0, 0, 0, 1], np.float32)


def mix_numbers(augment: AugmentConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """How one batch is mixed: float32 (6,): pixel weight, top, bottom, left, right, target weight.

    Image b of B becomes w * x[b] + (1 - w) * x[B - 1 - b], where w is 0 in rows [top, bottom) x columns [left, right)
    and the pixel weight elsewhere; its target becomes t[b] and t[B - 1 - b] in the same way, by the target weight.

    Args:
        size: side of the images.
    """
    mixup, cutmix = augment.mixup, augment.cutmix
    if not (mixup or cutmix) or rng.random() >= augment.mix_prob:
        return UNMIXED.copy()
    if cutmix and not (mixup and rng.random() >= augment.mix_switch_prob):
        return np.array(_cutmix(rng.beta(cutmix, cutmix), size, rng), np.float32)
    weight = rng.beta(mixup, mixup)
    return np.array((weight, 0, 0, 0, 0, weight), np.float32)


def _cutmix(weight: float, size: int, rng: np.random.Generator) -> tuple[float, ...]:
    """A box of area (1 - weight) around a uniform centre. What the image's edge cuts off, the target does not count."""
    side = int(size * math.sqrt(1 - weight))
    top, left = (int(centre) - side // 2 for centre in rng.integers(size, size=2))
    bottom, right = min(top + side, size), min(left + side, size)
    top, left = max(top, 0), max(left, 0)
    return 1, top, bottom, left, right, 1 - (bottom - top) * (right - left) / size**2
