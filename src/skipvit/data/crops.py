"""The part of an image that the network sees, as a square of the size it eats.

All chance comes from a generator that is passed in.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from skipvit.data.decode import Box, decode, draft, open_image, pillow_reasons, rgb, stored, turned

ASPECTS = (3 / 4, 4 / 3)  # width / height of a random resized crop
TRIES = 10  # draws of a rectangle that fits


def validation_image(data: bytes | np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centre of an image whose short side becomes int(size / crop), bicubic: uint8 (size, size, 3).

    Always from a full decode. The same pixels as of timm and DeiT: torchvision's Resize and CenterCrop.

    Args:
        data: as for `decode`.
        crop: share of the resized image's short side that is kept, in (0, 1].

    Raises:
        BrokenImage: as `decode`.
    """
    image = decode(data)
    side, short = int(size / crop), min(image.size)
    if max(image.size) > 16 * short:  # of a strip only the middle: enlarged whole, it could be gigabytes
        left, top = (max(0, (length - 16 * short) // 2) for length in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    width, height = (side if length == short else side * length // short for length in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + size, top + size)))


def square(
    data: bytes | np.ndarray, size: int, scale: tuple[float, float] | None, rng: np.random.Generator
) -> Image.Image:
    """A random part of the image, or with `scale` None the whole of it, as an RGB square.

    The part is drawn in pixels of the file, then decoded as small as its size allows, and turned upright last, when
    it is small.

    Args:
        data: as for `decode`.
        scale: least and greatest share of the area.

    Raises:
        BrokenImage: as `decode`.
    """
    with pillow_reasons():
        image, orientation = open_image(data)
    width, height = image.size
    upright = (height, width) if orientation >= 5 else (width, height)
    box = (0, 0, *upright) if scale is None else crop_box(*upright, scale, rng)
    left, top, right, bottom = stored(box, width, height, orientation)
    with pillow_reasons():
        # Large enough for the part to be `size` large: rounded up.
        part = draft(image, (-(-size * width // (right - left)), -(-size * height // (bottom - top))))
        image = rgb(image)
    box = (left / part, top / part, right / part, bottom / part)
    return turned(image.resize((size, size), Image.Resampling.BICUBIC, box), orientation)


def log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A random resized crop. After ten boxes that do not fit: the largest central one of an allowed aspect."""
    for _ in range(TRIES):
        area, aspect = width * height * rng.uniform(*scale), log_uniform(ASPECTS, rng)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ASPECTS[1])), min(height, round(width / ASPECTS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of the image padded with black by an eighth of its side: the image, shifted by at most as much."""
    size, pad = len(pixels), len(pixels) // 8
    padded = np.zeros((size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[pad : pad + size, pad : pad + size] = pixels
    top, left = 2 * pad - rng.integers(2 * pad + 1, size=2)
    return padded[top : top + size, left : left + size]
