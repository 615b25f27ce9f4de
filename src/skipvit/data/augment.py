"""What training does to an image, between its file and the uint8 square that the network eats.

All chance comes from a generator that is passed in, one for each image, so a sample is a function of seed, epoch and
image, whichever thread makes it.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

from skipvit.config.groups import AugmentConfig
from skipvit.data.crops import TRIES, log_uniform, shifted, square
from skipvit.data.rand_augment import rand_augmented

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of ImageNet, RGB
STD = np.array([58.395, 57.12, 57.375], np.float32)
ERASED_AREAS, ERASED_ASPECTS = (0.02, 1 / 3), (0.3, 1 / 0.3)


def training_image(data: bytes | np.ndarray, size: int, augment: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A training sample: crop, flip, RandAugment, colour jitter, erasing, in this order.

    Args:
        data: as for `decode`.

    Returns:
        uint8 (size, size, 3), memory of its own.

    Raises:
        BrokenImage: as `decode`.
    """
    scale = (augment.crop_min, 1.0) if augment.crop == "random_resized" else None
    if scale is None and isinstance(data, np.ndarray) and data.shape == (size, size, 3):
        pixels = data  # small arrays: the way through Pillow would take most of the time
    else:
        pixels = np.asarray(square(data, size, scale, rng))
    if augment.crop == "pad":
        pixels = shifted(pixels, rng)
    if augment.hflip and rng.random() < augment.hflip:
        pixels = pixels[:, ::-1]
    if augment.rand_augment or augment.color_jitter:
        image = Image.fromarray(pixels)
        if augment.rand_augment:
            image = rand_augmented(image, augment.rand_augment, augment.rand_augment_std, augment.rand_augment_ops, rng)
        if augment.color_jitter:
            image = jittered(image, augment.color_jitter, rng)
        pixels = np.asarray(image)
    pixels = np.array(pixels, order="C")
    if augment.random_erasing and rng.random() < augment.random_erasing:
        erase(pixels, rng)
    return pixels


def jittered(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors of U[1 - strength, 1 + strength], in random order."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(len(kinds)):
        image = kinds[kind](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Random erasing (arXiv 1708.04896): a rectangle becomes noise of ImageNet's mean and deviation, in place.

    This is timm's mode "pixel". There it follows the normalisation and fills with N(0, 1); here, on uint8, the noise
    is rounded and clipped.
    """
    size = len(pixels)
    for _ in range(TRIES):
        area, aspect = size**2 * rng.uniform(*ERASED_AREAS), log_uniform(ERASED_ASPECTS, rng)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height <= size and width <= size:
            top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
            noise = MEAN + STD * rng.standard_normal((height, width, 3), np.float32)
            pixels[top : top + height, left : left + width] = np.rint(noise).clip(0, 255)
            return
