"""Built-in images: one small object on a cluttered background, drawn from a seed; nothing is downloaded.

The class is the object's shape. Everything else (its colour, place, size, tilt, and the whole background) is drawn
from random streams that never see the class, so that only the object's own pixels tell it.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32  # image side, px
SCALE = 4  # shapes are drawn this many times larger, then averaged down: anti-aliasing
SPLITS = ("train", "val")

# The object. Every class draws from the same ranges.
ROOT_AREA = (8.0, 10.5)  # square root of the area, px; the outlines are then 9 to 19 px across
OFFSET = 2.5  # largest distance of the centre from the image's centre, each way, px: the object is never cut off
TILT = math.radians(10)  # largest rotation either way
STRETCH = 0.05  # largest relative change of the width (the height changes inversely, so the area stays)
RIM = 0.3  # how far the object's edge is darkened

# Hue and saturation are free; brightness separates object from background, else a small vision transformer would need
# far more than the few thousand images and ten epochs that the demo spends.
OBJECT_LUMA, CLUTTER_LUMA, BACKDROP_LUMA = (0.7, 0.95), (0.05, 0.45), (0.1, 0.33)
LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue look
NOISE = 6  # largest change of a background pixel by noise, grey levels

_LABELS, _BACKGROUND, _OBJECT = range(3)  # random streams of a split


def _arc(radius, start, stop, centre=(0.0, 0.0), points=40):
    """Points on a circle's arc, angles in degrees (y grows downwards, as in images): (points, 2)."""
    angle = np.deg2rad(np.linspace(start, stop, points))
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius + centre


def _heart():
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _unit(points):
    """Scale an outline to area 1 (shoelace formula)."""
    x, y = np.asarray(points, np.float64).T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return np.stack([x, y], 1) / np.sqrt(area)


QUARTERS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # sine and cosine of the quarter turns

# One closed outline per class. Ring and crescent run along their outer arc and back along the inner one.
# Equal areas keep the object's size from telling its class.
OUTLINES = {
    name: _unit(points)
    for name, points in {
        "disc": _arc(1, 0, 360),
        "ring": np.concatenate([_arc(1, 0, 360), _arc(0.52, 360, 0)]),
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": _arc(1, -90, 150, points=3),
        "star": np.stack([_arc(1, -90, 198, points=5), _arc(0.5, -54, 234, points=5)], 1).reshape(10, 2),
        "cross": [(t * x - s * y, s * x + t * y) for s, t in QUARTERS for x, y in ((-1, -3.4), (1, -3.4), (1, -1))],
        "crescent": np.concatenate([_arc(1, 44.7, 315.3), _arc(0.75, 290.4, 69.6, (0.45, 0))]),
        "heart": _heart(),
        "arrow": [(-5, -1.5), (0, -1.5), (0, -4.5), (5, 0), (0, 4.5), (0, 1.5), (-5, 1.5)],
        "hourglass": [(-4.5, -5), (4.5, -5), (1, 0), (4.5, 5), (-4.5, 5), (-1, 0)],
    }.items()
}
CLASSES: tuple[str, ...] = tuple(OUTLINES)


@dataclass(frozen=True)
class Images:
    """Images with their classes and the truth about where the object is.

    Attributes:
        images: uint8 (n, 32, 32, 3), RGB, 0..255.
        labels: int32 (n,), index into CLASSES.
        masks: bool (n, 32, 32), True where the object covers any part of the pixel.
        backgrounds: uint8 (n, 32, 32, 3), the images before the object was pasted; equal to `images` outside `masks`.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    backgrounds: np.ndarray


def generate(count: int, *, seed: int, split: str) -> Images:
    """Draw the first `count` images of a split.

    Image i depends on (seed, split, i) alone, so a shorter set is a prefix of a longer one. Every run of
    len(CLASSES) images starting at a multiple of len(CLASSES) holds each class once, in random order.

    Args:
        count: number of images, >= 0.
        seed: 0 <= seed < 2**32.
        split: "train" or "val"; the two share no image.

    Returns:
        Images with n = count. The same on every run with the same NumPy and Pillow versions.
    """
    key = seed, SPLITS.index(split)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    backgrounds = np.empty_like(images)
    masks = np.empty((count, SIDE, SIDE), bool)
    labels = _labels(count, key)
    for i, label in enumerate(labels):
        backgrounds[i] = _background(np.random.default_rng([*key, _BACKGROUND, i]))
        rng = np.random.default_rng([*key, _OBJECT, i])
        images[i], masks[i] = _paste(backgrounds[i], OUTLINES[CLASSES[label]], rng)
    return Images(images, labels, masks, backgrounds)


def _labels(count, key):
    """One shuffled round of all classes after another: int32 (count,)."""
    rounds = range(-(-count // len(CLASSES)))
    orders = [np.random.default_rng([*key, _LABELS, r]).permutation(len(CLASSES)) for r in rounds]
    return np.array(orders, np.int32).reshape(-1)[:count]


def _colours(uniform, luma_range):
    """Colours of free hue and saturation and given brightness.

    `uniform` (k, 3) in 0..1 gives hue, saturation and the place in `luma_range`; returns float64 (k, 3), 0..255 RGB.
    """
    hue, saturation, luma = uniform[:, :1], uniform[:, 1:2], uniform[:, 2:]
    luma = luma_range[0] + (luma_range[1] - luma_range[0]) * luma
    wheel = (np.array([5, 3, 1]) + 6 * hue) % 6  # HSV to RGB at full value
    vivid = 1 - (0.2 + 0.8 * saturation) * np.clip(np.minimum(wheel, 4 - wheel), 0, 1)
    own = (vivid @ LUMA)[:, None]
    lighter = 1 - (1 - vivid) * (1 - luma) / (1 - own)  # mixed with white
    return 255 * np.where(luma < own, vivid * luma / own, lighter)  # or with black


def _background(rng):
    """A smooth colour gradient, small clutter and noise: uint8 (32, 32, 3)."""
    corners = rng.random((4, 3)) * (0.5, 0.5, 1) + (rng.random(), 0, 0)  # neighbouring hues, no strong colours
    canvas = Image.fromarray(_colours(corners, BACKDROP_LUMA).astype(np.uint8).reshape(2, 2, 3))
    canvas = canvas.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    canvas = canvas.resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    count = rng.integers(10, 21)
    fills = _colours(rng.random((count, 3)), CLUTTER_LUMA).astype(int).tolist()
    for fill, geometry in zip(fills, rng.random((count, 6)).tolist()):
        _fragment(draw, tuple(fill), *geometry)
    noise = rng.integers(-NOISE, NOISE, (SIDE, SIDE, 1), dtype=np.int16, endpoint=True)
    return np.clip(np.asarray(canvas.reduce(SCALE)) + noise, 0, 255).astype(np.uint8)


def _fragment(draw, fill, kind, x, y, width, height, turn):
    """Draw one line, dot, rectangle or sliver, about 2 to 6 px long; the arguments after `fill` are in 0..1."""
    side = SIDE * SCALE
    x, y = x * side, y * side
    width, height = (1 + 2 * width) * SCALE, (1 + 2 * height) * SCALE  # half extents, 1..3 px
    if kind < 0.4:
        dx, dy = width * math.cos(2 * math.pi * turn), height * math.sin(2 * math.pi * turn)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill, SCALE + 1)
    elif kind < 0.6:
        draw.ellipse((x - 0.6 * width, y - 0.6 * height, x + 0.6 * width, y + 0.6 * height), fill)
    elif kind < 0.8:
        draw.rectangle((x - width, y - height / 2, x + width, y + height / 2), fill)
    else:
        draw.polygon((x - width, y, x, y - height * turn, x + width, y + height, x, y + height / 2), fill)


def _paste(background, outline, rng):
    """Paste the object on a copy of the background: (image uint8 (32, 32, 3), mask bool (32, 32))."""
    corners = (_place(outline, rng) * SCALE).reshape(-1).tolist()
    shape, rim = (Image.new("L", (SIDE * SCALE, SIDE * SCALE)) for _ in range(2))
    ImageDraw.Draw(shape).polygon(corners, 255)
    ImageDraw.Draw(rim).line(corners + corners[:2], 255, SCALE)
    cover, rim = (np.asarray(layer.reduce(SCALE), np.float32)[..., None] / 255 for layer in (shape, rim))
    paint = _colours(rng.random((1, 3)), OBJECT_LUMA)[0] * (1 - RIM * rim)
    image = np.rint(background + cover * (paint - background)).astype(np.uint8)
    return image, cover[..., 0] > 0


def _place(outline, rng):
    """Stretch, perhaps mirror, tilt, scale and move an outline (k, 2): the same points in px, x and y."""
    scale, tilt = rng.uniform(*ROOT_AREA), rng.uniform(-TILT, TILT)
    wide, mirror = 1 + rng.uniform(-STRETCH, STRETCH), 1 if rng.random() < 0.5 else -1
    cos, sin = math.cos(tilt), math.sin(tilt)
    points = outline * (mirror * wide * scale, scale / wide) @ np.array([[cos, sin], [-sin, cos]])
    # Centring the bounding box lets every class lie in the same range of places.
    middle = (points.min(0) + points.max(0)) / 2
    return points - middle + SIDE / 2 + rng.uniform(-OFFSET, OFFSET, 2)
