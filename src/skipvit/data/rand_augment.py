"""RandAugment (arXiv 1909.13719) with the strengths and the increasing levels of timm's "rand-m9-mstd0.5-inc1".

An operation takes an image, a magnitude from 0 to 10 and a generator, and returns an image of the same size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]

FILL = (124, 116, 104)  # ImageNet's mean as a colour: what a turned or shifted image uncovers
MAX_MAGNITUDE = 10.0


def rand_augmented(
    image: Image.Image, magnitude: float, deviation: float, count: int, rng: np.random.Generator
) -> Image.Image:
    """The image after `count` operations, drawn anew each time, of which each is applied with probability 0.5.

    Args:
        magnitude, deviation: of the normal distribution that each operation's magnitude is drawn from.
    """
    names = tuple(OPERATIONS)
    for _ in range(count):
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.5:
            drawn = rng.normal(magnitude, deviation)
            image = OPERATIONS[name](image, min(max(drawn, 0.0), MAX_MAGNITUDE), rng)
    return image


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """The point (x, y) of the result is (a x + b y + c, d x + e y + f) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def _rotate(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(_signed(3 * magnitude, rng), Image.Resampling.BICUBIC, fillcolor=FILL)


def _posterize(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    bits = 4 - int(0.4 * magnitude)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize_add(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    added = int(11 * magnitude)  # at most 110, so nothing overflows
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def _enhancer(kind: Callable) -> Operation:
    """By a factor of 0.1 to 1.9; 1 changes nothing."""
    return lambda image, magnitude, rng: kind(image).enhance(1 + _signed(0.09 * magnitude, rng))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, magnitude, rng: ImageOps.autocontrast(image),
    "Equalize": lambda image, magnitude, rng: ImageOps.equalize(image),
    "Invert": lambda image, magnitude, rng: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": lambda image, magnitude, rng: ImageOps.solarize(image, 256 - int(25.6 * magnitude)),
    "SolarizeAdd": _solarize_add,
    "Color": _enhancer(ImageEnhance.Color),
    "Contrast": _enhancer(ImageEnhance.Contrast),
    "Brightness": _enhancer(ImageEnhance.Brightness),
    "Sharpness": _enhancer(ImageEnhance.Sharpness),
    "ShearX": lambda image, magnitude, rng: _affine(image, 1, _signed(0.03 * magnitude, rng), 0, 0, 1, 0),
    "ShearY": lambda image, magnitude, rng: _affine(image, 1, 0, 0, _signed(0.03 * magnitude, rng), 1, 0),
    "TranslateX": lambda image, magnitude, rng: _affine(
        image, 1, 0, _signed(0.045 * magnitude * image.width, rng), 0, 1, 0
    ),
    "TranslateY": lambda image, magnitude, rng: _affine(
        image, 1, 0, 0, 0, 1, _signed(0.045 * magnitude * image.height, rng)
    ),
}
