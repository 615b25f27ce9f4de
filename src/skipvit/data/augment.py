"""From an encoded or decoded image to the uint8 square that the network eats, and the numbers that mix a batch.

Pillow decodes, crops and resizes. All chance comes from a generator that is passed in, one for each image, so a
sample is a function of seed, epoch and image, whichever thread makes it.

Sources: RandAugment (arXiv 1909.13719) with the strengths and the increasing levels of timm's "rand-m9-mstd0.5-inc1",
random erasing (1708.04896), mixup (1710.09412), CutMix (1905.04899).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageEnhance, ImageOps

# Pillow warns above this many pixels and refuses above twice as many: large photographs and maps pass, bombs do not.
Image.MAX_IMAGE_PIXELS = 250_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL\."
)  # damaged metadata; what cannot be decoded is listed

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of ImageNet, RGB
STD = np.array([58.395, 57.12, 57.375], np.float32)
FILL = (124, 116, 104)  # the mean as a colour: what a turned or shifted image uncovers
ASPECTS = (3 / 4, 4 / 3)  # width / height of a random resized crop
ERASED_AREAS, ERASED_ASPECTS = (0.02, 1 / 3), (0.3, 1 / 0.3)
TRIES = 10  # draws of a rectangle that fits
MAX_MAGNITUDE = 10.0

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


@dataclass(frozen=True)
class Augment:
    """What training does to an image, in this order.

    Attributes:
        crop: `none`: the whole image; `pad`: the whole image, shifted by up to an eighth of the side over black;
            `random_resized`: a random part, of ImageNet's usual areas and aspects.
        crop_scale: least and greatest share of the area that `random_resized` keeps.
        hflip: probability of a mirrored image.
        rand_augment: mean magnitude of RandAugment, 0 to 10; 0 is off.
        rand_augment_ops: operations drawn for an image; each is applied with probability 0.5.
        rand_augment_std: standard deviation of the magnitude.
        color_jitter: brightness, contrast and saturation change by up to this share; 0 is off.
        random_erasing: probability that a rectangle becomes noise.
    """

    crop: Literal["none", "pad", "random_resized"] = "none"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.0
    rand_augment: float = 0.0
    rand_augment_ops: int = 2
    rand_augment_std: float = 0.5
    color_jitter: float = 0.0
    random_erasing: float = 0.0


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed with each other.

    Attributes:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the weight is drawn from; 0 is off.
        prob: share of batches that are mixed at all.
        switch_prob: share of the mixed batches that use CutMix where both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5


def decode(data: bytes | np.ndarray, smallest: tuple[int, int] | None = None) -> Image.Image:
    """An upright RGB image.

    16-bit values keep their high byte; alpha is dropped. Unreadable EXIF data counts as upright.

    Args:
        data: an encoded file, as bytes or uint8 (n,), or pixels, uint8 (H, W, 3).
        smallest: (width, height) that is large enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size if it
            stays at least this large, which takes a fraction of the time.

    Raises:
        BrokenImage: Pillow cannot decode it, or it has over 500 megapixels.
    """
    with _pillow_reasons():
        image, orientation = _open(data)
        if smallest:
            _draft(image, smallest[::-1] if orientation >= 5 else smallest)
        return _turned(_rgb(image), orientation)


def training_image(data: bytes | np.ndarray, size: int, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """A training sample: uint8 (size, size, 3), memory of its own.

    Args:
        data: as for `decode`.

    Raises:
        BrokenImage: as `decode`.
    """
    crop_scale = augment.crop_scale if augment.crop == "random_resized" else None
    if crop_scale is None and isinstance(data, np.ndarray) and data.shape == (size, size, 3):
        pixels = data  # small arrays: the way through Pillow would take most of the time
    else:
        pixels = np.asarray(_square(data, size, crop_scale, rng))
    if augment.crop == "pad":
        pixels = _shifted(pixels, rng)
    if augment.hflip and rng.random() < augment.hflip:
        pixels = pixels[:, ::-1]
    if augment.rand_augment or augment.color_jitter:
        image = Image.fromarray(pixels)
        if augment.rand_augment:
            image = _rand_augmented(image, augment, rng)
        if augment.color_jitter:
            image = _jittered(image, augment.color_jitter, rng)
        pixels = np.asarray(image)
    pixels = np.array(pixels, order="C")
    if augment.random_erasing and rng.random() < augment.random_erasing:
        _erase(pixels, rng)
    return pixels


def validation_image(data: bytes | np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centre of an image whose short side becomes round(size / crop), bicubic: uint8 (size, size, 3).

    Always from a full decode. The same pixels as torchvision's Resize and CenterCrop.

    Args:
        data: as for `decode`.
        crop: share of the resized image's short side that is kept, in (0, 1].

    Raises:
        BrokenImage: as `decode`.
    """
    image = decode(data)
    side, short = round(size / crop), min(image.size)
    if max(image.size) > 16 * short:  # of a strip only the middle: enlarged whole, it could be gigabytes
        edges = [max(0, (length - 16 * short) // 2) for length in image.size]
        image = image.crop((*edges, image.width - edges[0], image.height - edges[1]))
    width, height = (side if length == short else side * length // short for length in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + size, top + size)))


def mix_numbers(mix: Mix, size: int, rng: np.random.Generator) -> np.ndarray:
    """How one batch is mixed: float32 (6,): pixel weight, top, bottom, left, right, target weight.

    Image b of B becomes w * x[b] + (1 - w) * x[B - 1 - b], where w is 0 in rows [top, bottom) x columns [left, right)
    and the pixel weight elsewhere; its target becomes t[b] and t[B - 1 - b] in the same way, by the target weight.

    Args:
        size: side of the images.
    """
    numbers = (1, 0, 0, 0, 0, 1)
    if (mix.mixup or mix.cutmix) and rng.random() < mix.prob:
        if mix.cutmix and not (mix.mixup and rng.random() >= mix.switch_prob):
            numbers = _cutmix(rng.beta(mix.cutmix, mix.cutmix), size, rng)
        else:
            weight = rng.beta(mix.mixup, mix.mixup)
            numbers = (weight, 0, 0, 0, 0, weight)
    return np.array(numbers, np.float32)


def _cutmix(weight: float, size: int, rng: np.random.Generator) -> tuple[float, ...]:
    """A box of area (1 - weight) around a uniform centre. What the image's edge cuts off, the target does not count."""
    side = int(size * math.sqrt(1 - weight))
    top, left = (int(centre) - side // 2 for centre in rng.integers(size, size=2))
    bottom, right = min(top + side, size), min(left + side, size)
    top, left = max(top, 0), max(left, 0)
    return 1, top, bottom, left, right, 1 - (bottom - top) * (right - left) / size**2


# Decoding


@contextmanager
def _pillow_reasons() -> Iterator[None]:
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


def _open(data: bytes | np.ndarray) -> tuple[Image.Image, int]:
    """An image as it is stored, JPEG not decoded yet, and its EXIF orientation."""
    if isinstance(data, np.ndarray) and data.ndim == 3:
        return Image.fromarray(data), 1
    if not len(data):
        raise BrokenImage("empty file")
    image = Image.open(io.BytesIO(data))
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


def _draft(image: Image.Image, smallest: tuple[int, int]) -> int:
    """Have a JPEG decoded at 1/scale, still as large as `smallest` if the file is; others stay. Returns the scale."""
    width = image.width
    drafted = image.draft(None, smallest)
    return round(width / drafted[1][2]) if drafted else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Decode the pixels, 8 bits a channel."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    image.info.pop("transparency", None)  # Pillow would look for a colour to stand for it, and warn
    return image.convert("RGB")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def _stored(box: Box, width: int, height: int, orientation: int) -> Box:
    """A box of the upright image as a box of the image as it is stored, which is width x height."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


# Crops


def _square(
    data: bytes | np.ndarray, size: int, crop_scale: tuple[float, float] | None, rng: np.random.Generator
) -> Image.Image:
    """A random part of the image, or with `crop_scale` None the whole of it, as an RGB square.

    The part is drawn in pixels of the file, then decoded as small as its size allows, and turned upright last, when
    it is small.
    """
    with _pillow_reasons():
        image, orientation = _open(data)
    width, height = image.size
    upright = (height, width) if orientation >= 5 else (width, height)
    box = (0, 0, *upright) if crop_scale is None else _crop_box(*upright, crop_scale, rng)
    left, top, right, bottom = _stored(box, width, height, orientation)
    with _pillow_reasons():
        # Large enough for the part to be `size` large: rounded up.
        scale = _draft(image, (-(-size * width // (right - left)), -(-size * height // (bottom - top))))
        image = _rgb(image)
    box = (left / scale, top / scale, right / scale, bottom / scale)
    return _turned(image.resize((size, size), Image.Resampling.BICUBIC, box), orientation)


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _crop_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A random resized crop. After ten boxes that do not fit: the largest central one of an allowed aspect."""
    for _ in range(TRIES):
        area, aspect = width * height * rng.uniform(*scale), _log_uniform(ASPECTS, rng)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ASPECTS[1])), min(height, round(width / ASPECTS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of the image padded with black by an eighth of its side: the image, shifted by at most as much."""
    size = len(pixels)
    pad = size // 8
    down, right = (int(offset) - pad for offset in rng.integers(2 * pad + 1, size=2))
    result = np.zeros_like(pixels)
    rows, columns = size - abs(down), size - abs(right)
    to_row, to_column, row, column = max(down, 0), max(right, 0), max(-down, 0), max(-right, 0)
    result[to_row : to_row + rows, to_column : to_column + columns] = pixels[
        row : row + rows, column : column + columns
    ]
    return result


# RandAugment: operations (image, magnitude 0 to 10, rng) -> image of the same size

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


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


def _solarize(image: Image.Image, magnitude: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(25.6 * magnitude))


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
    "Solarize": _solarize,
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


def _rand_augmented(image: Image.Image, augment: Augment, rng: np.random.Generator) -> Image.Image:
    names = tuple(OPERATIONS)
    for _ in range(augment.rand_augment_ops):
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.5:
            magnitude = rng.normal(augment.rand_augment, augment.rand_augment_std)
            image = OPERATIONS[name](image, min(max(magnitude, 0.0), MAX_MAGNITUDE), rng)
    return image


# Colour and erasing


def _jittered(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors of U[1 - strength, 1 + strength], in random order."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(len(kinds)):
        image = kinds[kind](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a random rectangle with noise of ImageNet's mean and deviation, in place.

    This is timm's mode "pixel". There it follows the normalisation and fills with N(0, 1); here, on uint8, the noise
    is rounded and clipped.
    """
    size = len(pixels)
    for _ in range(TRIES):
        area, aspect = size**2 * rng.uniform(*ERASED_AREAS), _log_uniform(ERASED_ASPECTS, rng)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height <= size and width <= size:
            top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
            noise = MEAN + STD * rng.standard_normal((height, width, 3), np.float32)
            pixels[top : top + height, left : left + width] = np.rint(noise).clip(0, 255)
            return
