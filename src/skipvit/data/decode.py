"""From a file's bytes to an upright RGB image, by Pillow."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image

# Pillow warns above this many pixels and refuses above twice as many: large photographs and maps pass, bombs do not.
Image.MAX_IMAGE_PIXELS = 250_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged metadata; what cannot be decoded is listed.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What is opened, whatever a file's name says, and the endings that a folder's images have. Not all that Pillow knows:
# it would start Ghostscript for an EPS that is called .png.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive

# EXIF orientation: how the stored pixels are turned to be upright. From 5 on width and height change places.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(Exception):
    """One line: why a file is no image."""


def decode(data: bytes | np.ndarray) -> Image.Image:
    """An upright RGB image.

    16-bit values keep their high byte; alpha is dropped. Unreadable EXIF data counts as upright.

    Args:
        data: an encoded file, as bytes or uint8 (n,), or pixels, uint8 (H, W, 3).

    Raises:
        BrokenImage: Pillow cannot decode it, or it has over 500 megapixels.
    """
    with pillow_reasons():
        image, orientation = open_image(data)
        return turned(rgb(image), orientation)


@contextmanager
def pillow_reasons() -> Iterator[None]:
    """What Pillow raises becomes BrokenImage, except for a lack of memory, which says nothing about the file."""
    try:
        yield
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error)).split())
        if reason.startswith("out of memory"):  # so Pillow's decoders put it, as an OSError
            raise MemoryError(reason) from None
        raise BrokenImage(reason or type(error).__name__) from None


def open_image(data: bytes | np.ndarray) -> tuple[Image.Image, int]:
    """An image as it is stored, JPEG not decoded yet, and its EXIF orientation. To be called in `pillow_reasons`."""
    if isinstance(data, np.ndarray) and data.ndim == 3:
        return Image.fromarray(data), 1
    if not len(data):
        raise BrokenImage("empty file")
    image = Image.open(io.BytesIO(data if isinstance(data, bytes) else data.tobytes()), formats=tuple(FORMATS))
    if image.format not in ("JPEG", "MPO"):
        image.load()  # orientation and size of other formats may be known, or change, only now
    return image, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none that makes sense."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # broken EXIF data; the pixels can be whole all the same
        return 1
    return value if value in TURNS else 1


def draft(image: Image.Image, smallest: tuple[int, int]) -> int:
    """Have a JPEG decoded at 1/scale (2, 4, 8), which takes a fraction of the time, still as large as `smallest` if the
    file is; others stay. Returns the scale."""
    width = image.width
    drafted = image.draft(None, smallest)
    return round(width / drafted[1][2]) if drafted else 1


def rgb(image: Image.Image) -> Image.Image:
    """Decode the pixels, 8 bits a channel."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    image.info.pop("transparency", None)  # Pillow would look for a colour to stand for it, and warn
    return image.convert("RGB")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def stored(box: Box, width: int, height: int, orientation: int) -> Box:
    """A box of the upright image as a box of the image as it is stored, which is width x height."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
