"""Crops of training and validation, against NumPy's formulas and Pillow's resizing."""

import math

import numpy as np
import pytest
from PIL import Image

from skipvit.config.groups import AugmentConfig
from skipvit.data.crops import crop_box, validation_image
from support.hostile import encoded
from support.images import full, gradient, noise, sample


def test_crop_boxes_have_the_areas_and_aspects_of_imagenet():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(500, 400, (0.08, 1.0), rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() == top.min() == 0 and right.max() == 500 and bottom.max() == 400
    assert ((width + 0.5) / (height - 0.5) >= 3 / 4).all() and ((width - 0.5) / (height + 0.5) <= 4 / 3).all()
    assert ((width + 0.5) * (height + 0.5) >= 0.08 * 500 * 400).all()
    small = width * height < 0.4 * 500 * 400  # these fit at every aspect: nothing is drawn again
    areas = width[small] * height[small] / (500 * 400)
    assert abs(areas.mean() - 0.24) < 0.01
    assert abs(np.log(width / height)[small].mean()) < 0.02
    assert abs((left[small] / (500 - width[small])).mean() - 0.5) < 0.03
    assert abs((top[small] / (400 - height[small])).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    "size, box",
    [
        ((1000, 100), (433, 0, 566, 100)),
        ((60, 1000), (0, 460, 60, 540)),
        ((1, 1), (0, 0, 1, 1)),
        ((1, 50), (0, 24, 1, 25)),
    ],
)
def test_where_no_box_fits_the_centre_is_taken(size, box):
    """All of the area: only an image of an allowed aspect has such a box."""
    assert crop_box(*size, (1.0, 1.0), np.random.default_rng(0)) == box


def test_crop_scale_bounds_the_area():
    rng = np.random.default_rng(0)
    areas = [(r - left) * (b - t) for left, t, r, b in (crop_box(100, 100, (0.2, 0.3), rng) for _ in range(500))]
    assert 1900 <= min(areas) < 2100 and 2900 < max(areas) <= 3100


def test_a_padded_crop_is_every_shift_by_up_to_an_eighth():
    pixels = noise(16, 16, 3) | 1  # no black
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    shifts = {padded[top : top + 16, left : left + 16].tobytes() for top in range(5) for left in range(5)}
    seen = [sample(pixels, 16, AugmentConfig(crop="pad"), seed).tobytes() for seed in range(1000)]
    assert set(seen) == shifts
    assert max(seen.count(shift) for shift in shifts) < 80  # 40 on average


def test_hflip_mirrors_with_its_probability():
    pixels = noise(8, 8, 3)
    seen = [sample(pixels, 8, AugmentConfig(hflip=0.3), seed) for seed in range(1000)]
    mirrored = [np.array_equal(image, pixels[:, ::-1]) for image in seen]
    assert all(flip or np.array_equal(image, pixels) for flip, image in zip(mirrored, seen))
    assert abs(np.mean(mirrored) - 0.3) < 0.06
    assert np.array_equal(sample(pixels, 8, AugmentConfig(hflip=1.0)), pixels[:, ::-1])


# Validation


def bicubic(pixels, count):
    """Rows resized to `count`, antialiased, with the cubic kernel of a = -1/2; float64."""
    length = len(pixels)
    scale = length / count
    stretch = max(scale, 1.0)
    x = np.abs((np.arange(length)[None] + 0.5 - (np.arange(count)[:, None] + 0.5) * scale) / stretch)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return np.tensordot(weights / weights.sum(1, keepdims=True), pixels, 1)


@pytest.mark.parametrize(
    "width, height, size, crop",
    [(91, 60, 32, 0.875), (60, 91, 32, 0.875), (40, 53, 64, 0.95), (50, 50, 32, 1.0), (33, 200, 24, 0.9)],
)
def test_validation_is_the_centre_of_the_resized_image(width, height, size, crop):
    pixels = (noise(height, width, 3) // 2 + gradient(width, height) // 3).astype(np.uint8)
    short = math.floor(size / crop)
    new_width, new_height = (
        (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    )
    across = bicubic(pixels.swapaxes(0, 1), new_width).swapaxes(0, 1).round().clip(0, 255)
    resized = bicubic(across, new_height).round().clip(0, 255)
    top, left = int(round((new_height - size) / 2.0)), int(round((new_width - size) / 2.0))
    reference = resized[top : top + size, left : left + size]
    for data in (pixels, encoded(pixels, "PNG")):
        image = validation_image(data, size, crop)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert np.abs(image - reference).max() <= 1


def test_validation_decodes_in_full():
    data = encoded(noise(600, 800, 3), "JPEG", quality=95)
    reference = full(data).resize((46, 35), Image.Resampling.BICUBIC).crop((7, 2, 39, 34))
    assert np.array_equal(validation_image(data, 32, 0.89), np.asarray(reference))


def test_validation_of_a_square_of_the_size_is_itself():
    pixels = noise(32, 32, 3)
    result = validation_image(pixels, 32, 1.0)
    assert np.array_equal(result, pixels) and not np.shares_memory(result, pixels)
