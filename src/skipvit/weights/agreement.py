"""Does an export agree with the network? Real images, both outputs, and what near ties of a route explain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from skipvit.data.broken import Bad
from skipvit.data.open import open_source, prepared
from skipvit.data.sources.arrays import Subset, evenly_spaced
from skipvit.data.sources.files import Files, find_images
from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import counted, printable

BATCH = 16  # images that are prepared at a time
NEAR_TIE = 1e-5  # of the largest score: closer scores change places with the rounding of float32
MOST_NEAR_TIES = 0.1


def real_images(trained: Trained, paths: Iterable[str], count: int) -> np.ndarray:
    """Real images to compare on: uint8 (n, S, S, 3).

    Args:
        paths: files and folders; none: the validation images, evenly spaced over the set.

    Raises:
        UsageError: one of the paths cannot be read.
        RunError: there is none.
    """
    bad, named = Bad({}), list(paths)
    source: Any
    if named:
        files, bad.reasons = find_images(named)
        source = Files(files[:count])
    else:
        try:
            source = open_source(trained.config, "val")
        except UsageError as error:
            raise UsageError(f"{error}; or give images to compare on with --images") from None
        source = Subset(source, evenly_spaced(source, count).tolist())
    found = [images[good] for good, images in prepared(trained.image_config, source, BATCH, bad)]
    if named and bad.reasons:
        path, reason = next(iter(bad.reasons.items()))
        raise UsageError(f"--images: {printable(path)}: {reason}; give images to compare on")
    if not sum(map(len, found)):
        raise RunError("there is no image to compare on; give some with --images")
    return np.concatenate(found)


def normalised(images: np.ndarray) -> np.ndarray:
    """What the graph does to uint8 images, in float32."""
    return (images - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)


def compare(
    trained: Trained, name: str, found: np.ndarray, expected: np.ndarray, images: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """How far an export is from the network.

    Two tokens with nearly the same score may change places with the rounding, and another token is then kept: images on
    which this happened are told apart, by the network's own scores, and counted.

    Raises:
        RunError: too far, or not finite.
    """
    if found.shape != expected.shape or not np.isfinite(expected).all():
        raise RunError(
            f"{name}: outputs {found.shape} where the network has {expected.shape}, or its own are not finite; "
            f"nothing is kept"
        )
    difference = np.abs(found - expected).max(1)
    far = ~(difference <= tolerance)  # a NaN is far
    ties = np.zeros_like(far)
    if far.any():
        ties = far & (margins(trained, images) < NEAR_TIE) & np.isfinite(difference)
    if (far & ~ties).any() or ties.sum() > MOST_NEAR_TIES * len(far):
        worst = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
        raise RunError(
            f"{name}: does not agree with the network: a probability of image {worst} differs by "
            f"{difference[worst]:.2g}, {tolerance:g} is allowed, on {far.sum()} of {len(far)} images it is more; "
            f"nothing is kept"
        )
    largest = float(difference[~ties].max())
    text = f"largest difference from the network on {counted(len(far), 'image')}: {largest:.1e}"
    if ties.any():
        far_off = difference[ties].max()
        text += f" but for {ties.sum()} where two tokens' scores are equal but for rounding ({far_off:.1e})"
    return {"largest_difference": largest, "images": len(far), "near_ties": int(ties.sum()), "verified": text}


def margins(trained: Trained, images: np.ndarray) -> np.ndarray:
    """How far the last kept token is ahead of the first one that does not stay, as a share of the largest score, least
    over the routes: (n,); infinity without routes."""
    result = np.full(len(images), np.inf)
    steps = trained.config.program(trained.forward).selections
    if not steps:
        return result
    names = [f"routes.{step.route}.ranking" for step in steps]
    seen = trained.walk(names).by_name(images)
    for step, ranking in zip(steps, seen.values()):
        kept = step.after.patches
        if kept < step.before.patches:
            ordered = -np.sort(-ranking, axis=1)
            result = np.minimum(result, (ordered[:, kept - 1] - ordered[:, kept]) / np.abs(ranking).max(1))
    return result
