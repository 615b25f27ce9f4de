"""How well a scorer finds what matters: measures of rankings and kept sets, in NumPy, without a network.

A ranking is float (n, tokens) of n images, larger is more important; ties go to the earlier position, as in a route. A
kept set is bool (n, tokens). Tokens are the patches, row by row.

Sources: deletion and insertion curves, RISE (arXiv 1806.07421); the rest are textbook measures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 (n, S, S, 3) -> probabilities, float (n, classes)


def top(ranking: np.ndarray, count: int) -> np.ndarray:
    """The kept set of the `count` largest of each row: bool (n, tokens)."""
    order = np.argsort(-ranking, axis=1, kind="stable")
    kept = np.zeros(ranking.shape, bool)
    np.put_along_axis(kept, order[:, :count], True, axis=1)
    return kept


def on_object(masks: np.ndarray, grid: int) -> np.ndarray:
    """Which patches hold any part of the object: bool (n, grid x grid), of masks, bool (n, S, S)."""
    n, side = masks.shape[0], masks.shape[1] // grid
    return masks.reshape(n, grid, side, grid, side).any(axis=(2, 4)).reshape(n, grid * grid)


def shares_kept(kept: np.ndarray, objects: np.ndarray) -> tuple[float, float]:
    """Share of the object's patches that are kept, and of the background's: means over the images that have any; nan if
    none has."""
    result = []
    for which in (objects, ~objects):
        counts = which.sum(1)
        shares = (kept & which).sum(1)[counts > 0] / counts[counts > 0]
        result.append(float(shares.mean()) if len(shares) else float("nan"))
    return result[0], result[1]


def separation(ranking: np.ndarray, objects: np.ndarray) -> float:
    """Chance that a patch of the object ranks above one of the background (area under the ROC curve), ties count a
    half; mean over the images that have both. 1: knows the object, 0.5: knows nothing."""
    ranks, positives = rankdata(ranking, axis=1), objects.sum(1)
    negatives = objects.shape[1] - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return float("nan")
    wins = (ranks * objects).sum(1) - positives * (positives + 1) / 2  # ranks count from 1
    return float((wins[both] / (positives * negatives)[both]).mean())


def overlap(a: np.ndarray, b: np.ndarray, both: np.ndarray | None = None) -> float:
    """Share of two kept sets that they have in common, 2 |a and b| / (|a| + |b|); mean over images. Two random sets of
    k of n tokens have k / n.

    Args:
        both: bool (tokens,), positions to look at; all if None.
    """
    if both is not None:
        a, b = a[:, both], b[:, both]
    sizes = a.sum(1) + b.sum(1)
    return float((2 * (a & b).sum(1)[sizes > 0] / sizes[sizes > 0]).mean())


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two rankings, mean over images; a ranking that is constant correlates with
    nothing: 0."""
    x, y = (r - r.mean(1, keepdims=True) for r in (rankdata(a, axis=1), rankdata(b, axis=1)))
    norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return float(np.divide((x * y).sum(1), norms, out=np.zeros(len(norms)), where=norms > 0).mean())


def mirrored(tokens: np.ndarray, grid: int) -> np.ndarray:
    """Values by token (n, tokens) of images mirrored left to right, mapped back to the images' own positions."""
    return tokens.reshape(len(tokens), grid, grid)[:, :, ::-1].reshape(len(tokens), -1)


def shifted(tokens: np.ndarray, grid: int) -> np.ndarray:
    """Values by token (n, tokens) of images moved one patch to the right, mapped back; the last column, which left the
    image, holds that of the first, see `still_there`."""
    return np.roll(tokens.reshape(len(tokens), grid, grid), -1, axis=2).reshape(len(tokens), -1)


def still_there(grid: int) -> np.ndarray:
    """Positions that a move by one patch to the right leaves in the image: bool (tokens,)."""
    return np.tile(np.arange(grid) < grid - 1, grid)


def moved_right(images: np.ndarray, pixels: int) -> np.ndarray:
    """Images moved to the right; the gap repeats the first column."""
    return np.concatenate([np.repeat(images[:, :, :1], pixels, axis=2), images[:, :, :-pixels]], axis=2)


def deletion_insertion(
    predict: Predict, images: np.ndarray, fill: np.ndarray, labels: np.ndarray, ranking: np.ndarray, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the true class, mean over images, while patches are taken away, the most important first, and
    while they are put on an empty image in the same order.

    Args:
        predict: probabilities of images.
        images, fill: uint8 (n, S, S, 3), the images and what is where a patch is not.
        labels: int (n,).
        ranking: float (n, tokens).
        points: of each curve, evenly spaced from no patch to all.

    Returns:
        Two float arrays (points,), deletion and insertion, over the share of patches deleted or inserted. A good
        ranking has a small area under the first and a large one under the second.
    """
    tokens = ranking.shape[1]
    grid = round(tokens**0.5)
    side = images.shape[1] // grid
    deleted, inserted = np.empty(points), np.empty(points)
    for i, count in enumerate(np.linspace(0, tokens, points).round().astype(int)):
        chosen = top(ranking, count).reshape(-1, grid, grid)
        pixels = chosen.repeat(side, axis=1).repeat(side, axis=2)[..., None]
        for curve, shown in ((deleted, np.where(pixels, fill, images)), (inserted, np.where(pixels, images, fill))):
            curve[i] = predict(shown)[np.arange(len(labels)), labels].mean()
    return deleted, inserted


def area(curve: np.ndarray) -> float:
    """Area under a curve over 0 to 1, by trapezoids."""
    return float((curve[1:] + curve[:-1]).mean() / 2)
