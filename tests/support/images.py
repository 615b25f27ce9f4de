"""Images whose content is known, for tests of decoding and augmentation."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from skipvit.data.augment import training_image


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def gradient(width, height):
    """Red says the column, green the row, as shares of 255."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return np.rint(255 * np.stack([red, green, np.full((height, width), 0.5)], -1)).astype(np.uint8)


def waves(width, height):
    """Red waves along the rows, green ones along the columns: five levels for a pixel where they are steepest."""
    x, y = (100 * np.sin(2 * np.pi * np.arange(length) / 125) + 128 for length in (width, height))
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return np.rint(np.stack([red, green, np.full((height, width), 128)], -1)).astype(np.uint8)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def full(data):
    """Pillow's own full decode, upright."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def sample(data, size, augment, seed=0):
    return training_image(data, size, augment, np.random.default_rng(seed))
