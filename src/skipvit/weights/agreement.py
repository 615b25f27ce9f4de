"""Does an export agree with the network? Real images, both outputs, and what near ties of a route explain."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from mindspore import Tensor

from skipvit.data.broken import Bad
from skipvit.data.open import open_source, prepared
from skipvit.data.sources.arrays import Subset
from skipvit.data.sources.files import Files, find_images
from skipvit.models.vit import PIXEL_MEAN, PIXEL_STD, Activations
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import printable
from skipvit.weights.trained import Trained

CHECK_BATCH = 16  # images that the network itself takes at a time
NEAR_TIE = 1e-5  # of the largest score: closer scores change places with the rounding of float32
MOST_NEAR_TIES = 0.1

Runner = Callable[[np.ndarray], np.ndarray]  # a batch of images -> probabilities


def real_images(trained: Trained, options: argparse.Namespace) -> np.ndarray:
    """Real images to compare on: uint8 (n, S, S, 3).

    Raises:
        UsageError: one of --images cannot be read.
        RunError: there is none.
    """
    bad = Bad({})
    if options.images:
        paths, bad.reasons = find_images(options.images)
        source = Files(paths[: options.check])
    else:
        try:
            source = open_source(trained.config, "val")
        except UsageError as error:
            raise UsageError(f"{error}; or give images to compare on with --images") from None
        chosen = np.linspace(0, len(source) - 1, min(options.check, len(source))).astype(int)
        source = Subset(source, chosen.tolist())
    found = [images[good] for good, images in prepared(trained.config, source, CHECK_BATCH, bad)]
    if options.images and bad.reasons:
        path, reason = next(iter(bad.reasons.items()))
        raise UsageError(f"--images: {printable(path)}: {reason}; give images to compare on")
    if not sum(map(len, found)):
        raise RunError("there is no image to compare on; give some with --images")
    return np.concatenate(found)


def normalised(images: np.ndarray) -> np.ndarray:
    """What the graph does to uint8 images, in float32."""
    return ((images - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)).astype(np.float32)


def in_batches(run: Runner, images: np.ndarray, size: int) -> np.ndarray:
    """The outputs for images in batches of `size`; the last one is filled up with the last image."""
    results = []
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        filled = np.concatenate([batch, batch[-1:].repeat(size - len(batch), 0)])
        results.append(run(filled)[: len(batch)])
    return np.concatenate(results)


def compare(
    trained: Trained, name: str, found: np.ndarray, expected: np.ndarray, images: np.ndarray, tolerance: float
) -> dict:
    """How far an export is from the network.

    Two tokens with nearly the same score may change places with the rounding, and another token is then kept: images on which
    this happened are told apart, by the network's own scores, and counted.

    Raises:
        RunError: too far, or not finite.
    """
    if found.shape != expected.shape or not np.isfinite(expected).all():
        raise RunError(
            f"{name}: outputs {found.shape} where the network has {expected.shape}, or its own are not finite; nothing is kept"
        )
    difference = np.abs(found - expected).max(1)
    far = ~(difference <= tolerance)  # a NaN is far
    ties = np.zeros_like(far)
    if far.any() and trained.routed:
        ties = far & (margins(trained, images) < NEAR_TIE) & np.isfinite(difference)
    if (far & ~ties).any() or ties.sum() > MOST_NEAR_TIES * len(far):
        worst = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
        raise RunError(
            f"{name}: does not agree with the network: a probability of image {worst} differs by {difference[worst]:.2g}, "
            f"{tolerance:g} is allowed, on {far.sum()} of {len(far)} images it is more; nothing is kept"
        )
    largest = float(difference[~ties].max())
    text = f"largest difference from the network on {len(far)} images: {largest:.1e}"
    if ties.any():
        text = f"{text} but for {ties.sum()} where two tokens' scores are equal but for rounding ({difference[ties].max():.1e})"
    return {"largest_difference": largest, "images": len(far), "near_ties": int(ties.sum()), "verified": text}


def margins(trained: Trained, images: np.ndarray) -> np.ndarray:
    """How far the last kept token is ahead of the first bypassed one, as a share of the largest score, least over the routes: (n,)."""
    network, result = trained.network, np.full(len(images), np.inf)
    names = [f"routes.{r}.ranking" for r in range(len(network.spans))]
    seen = Activations(network, names)
    noise = np.broadcast_to(trained.predictor().noise.asnumpy(), (len(images), network.noise_width)).copy()
    rankings = [seen.by_name(Tensor(images), Tensor(noise))[name] for name in names]
    for span, ranking in zip(network.spans, rankings):
        if span.kept < span.tokens:
            ordered = -np.sort(-ranking, axis=1)
            result = np.minimum(result, (ordered[:, span.kept - 1] - ordered[:, span.kept]) / np.abs(ranking).max(1))
    return result
