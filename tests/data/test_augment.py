"""Augmentation, against NumPy's formulas and Pillow's own operations."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from skipvit.config.groups import AugmentConfig
from skipvit.data import augment as module
from skipvit.data import crops, rand_augment
from skipvit.data.augment import training_image
from skipvit.data.rand_augment import OPERATIONS
from support.hostile import encoded
from support.images import gradient, noise, sample

EVERYTHING = {"hflip": 0.5, "rand_augment": 9.0, "color_jitter": 0.4, "random_erasing": 0.5}


@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
@pytest.mark.parametrize("data", [encoded(gradient(200, 150), "JPEG"), noise(32, 32, 3)], ids=["file", "array"])
def test_the_same_generator_makes_the_same_sample(data, crop):
    augment = AugmentConfig(crop=crop, **EVERYTHING)
    before = bytes(data)
    first, second = ([sample(data, 32, augment, [3, epoch, 5]) for epoch in range(20)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert len({image.tobytes() for image in first}) > 15
    assert bytes(data) == before
    for image in first:
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert image.flags.c_contiguous and image.flags.owndata and image.flags.writeable


@pytest.mark.parametrize("crop", ["pad", "random_resized"])
def test_draws_do_not_depend_on_the_size_of_decoding(monkeypatch, crop):
    """Decoded in full instead of at a quarter: the generator ends in the same state."""
    data, augment, states = encoded(gradient(640, 480), "JPEG"), AugmentConfig(crop=crop, **EVERYTHING), []
    for _ in range(2):
        rngs = [np.random.default_rng(seed) for seed in range(20)]
        for rng in rngs:
            training_image(data, 32, augment, rng)
        states.append([rng.bit_generator.state for rng in rngs])
        monkeypatch.setattr(crops, "draft", lambda image, smallest: 1)
    assert states[0] == states[1]


def test_the_order_is_crop_flip_operations_jitter_erasing(monkeypatch):
    calls = []
    for name in ("square", "rand_augmented", "jittered", "erase"):

        def spy(*arguments, name=name, original=getattr(module, name)):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, spy)
    augment = AugmentConfig(crop="random_resized", hflip=1.0, rand_augment=9.0, color_jitter=0.4, random_erasing=1.0)
    sample(encoded(gradient(64, 48), "JPEG"), 16, augment)
    assert calls == ["square", "rand_augmented", "jittered", "erase"]


# RandAugment


class Sign:
    """A generator whose draws are all one number: below 0.5 the sign is positive."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


PLUS, MINUS = Sign(0.1), Sign(0.9)


def operated(name, pixels, magnitude, rng=PLUS):
    result = OPERATIONS[name](Image.fromarray(pixels), magnitude, rng)
    assert result.mode == "RGB" and result.size == (pixels.shape[1], pixels.shape[0])
    return np.asarray(result)


@pytest.mark.parametrize("magnitude", [0.0, 0.3, 2.5, 4.99, 5.0, 7.7, 9.0, 10.0])
def test_pixel_operations_are_their_formulas(magnitude):
    pixels = noise(40, 30, 3).astype(int)
    threshold, added = 256 - int(256 * magnitude / 10), int(110 * magnitude / 10)
    kept = 256 >> (4 - int(4 * magnitude / 10))  # values that become one
    for name, expected in {
        "Invert": 255 - pixels,
        "Solarize": np.where(pixels < threshold, pixels, 255 - pixels),
        "SolarizeAdd": np.where(pixels < 128, np.minimum(pixels + added, 255), pixels),
        "Posterize": pixels // kept * kept,
    }.items():
        assert np.array_equal(operated(name, pixels.astype(np.uint8), magnitude), expected), name


def test_posterize_to_no_bits_is_black():
    assert not operated("Posterize", noise(8, 8, 3), 10.0).any()


@pytest.mark.parametrize("rng, sign", [(PLUS, 1), (MINUS, -1)])
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 9.0, 10.0])
def test_enhancements_blend_with_their_neutral_image(magnitude, rng, sign):
    """factor * image + (1 - factor) * neutral, with factors from 0.1 to 1.9; Pillow cuts off or rounds: one level."""
    pixels = noise(40, 30, 3)
    factor = max(0.1, 1 + sign * 0.9 * magnitude / 10)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    neutral = {"Brightness": 0.0, "Contrast": np.rint(luma).mean(), "Color": luma[..., None]}
    for name, other in neutral.items():
        expected = (factor * pixels + (1 - factor) * other).clip(0, 255)
        assert np.abs(operated(name, pixels, magnitude, rng) - expected).max() < 1.6, name
    expected = ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(factor)
    assert np.array_equal(operated("Sharpness", pixels, magnitude, rng), np.asarray(expected))


def test_autocontrast_stretches_and_equalize_spreads():
    pixels = (noise(200, 150, 3) // 4 + 60).astype(np.uint8)  # 60 to 123
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    assert np.abs(operated("AutoContrast", pixels, 5.0) - (pixels - low) / (high - low) * 255).max() <= 1
    darker = np.stack(
        [np.searchsorted(np.sort(channel.ravel()), channel) for channel in np.moveaxis(pixels, -1, 0)], -1
    )
    assert np.abs(operated("Equalize", pixels, 5.0) - darker / darker.max((0, 1)) * 255).max() < 3


@pytest.mark.parametrize("name, axis", [("TranslateX", 1), ("TranslateY", 0)])
def test_translations_shift_along_one_axis_and_fill_with_the_mean_colour(name, axis):
    """Magnitude 10: by 0.45 of the side, 18 pixels of 40."""
    pixels = noise(40, 40, 3)
    moved = pixels.swapaxes(0, axis)  # shifts are along the first axis of this view
    plus, minus = (operated(name, pixels, 10.0, rng).swapaxes(0, axis) for rng in (PLUS, MINUS))
    assert np.array_equal(plus[:22], moved[18:]) and (plus[22:] == (124, 116, 104)).all()
    assert np.array_equal(minus[18:], moved[:22]) and (minus[:18] == (124, 116, 104)).all()


@pytest.mark.parametrize("name, axis", [("ShearX", 1), ("ShearY", 0)])
@pytest.mark.parametrize("rng, sign", [(PLUS, 1), (MINUS, -1)])
def test_shears_shift_each_line_by_its_place(name, axis, rng, sign):
    """On a ramp along the sheared axis: line i moves by 0.3 (i + 1/2) at magnitude 10."""
    ramp = np.zeros((40, 40, 3), np.uint8) + np.arange(0, 200, 5, dtype=np.uint8)[None, :, None]
    pixels = ramp if axis == 1 else ramp.swapaxes(0, 1)
    result = operated(name, pixels, 10.0, rng) if axis == 1 else operated(name, pixels, 10.0, rng).swapaxes(0, 1)
    place = np.arange(40)[None] + sign * 0.3 * (np.arange(40)[:, None] + 0.5)
    inside = (place > 2) & (place < 37)
    assert np.abs(result[..., 0] - 5 * place)[inside].max() < 2
    assert (result[(place < -2) | (place > 41)] == (124, 116, 104)).all()


def test_rotation_is_by_three_degrees_a_magnitude():
    """A bright spot to the right of the centre moves up with a positive sign, down with a negative one."""
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[49:52, 79:82] = 255
    for rng, sign in ((PLUS, 1), (MINUS, -1)):
        bright = operated("Rotate", pixels, 10.0, rng).copy()
        bright[(bright == (124, 116, 104)).all(-1)] = 0
        inner = bright[10:91, 10:91, 0].astype(float)  # without the blend at the corners
        rows, columns = (np.arange(81)[:, None] - 40, np.arange(81)[None] - 40)
        angle = math.atan2(-(inner * rows).sum(), (inner * columns).sum())
        assert abs(math.degrees(angle) - sign * 30) < 0.5
    assert (operated("Rotate", pixels, 10.0)[0, 0] == (124, 116, 104)).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_signs_and_magnitude_zero(name):
    pixels = noise(24, 24, 3)
    signed = name not in ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
    assert signed != np.array_equal(operated(name, pixels, 6.0, PLUS), operated(name, pixels, 6.0, MINUS))
    if name not in ("AutoContrast", "Equalize", "Invert", "Posterize"):
        assert np.array_equal(operated(name, pixels, 0.0), pixels)


@pytest.fixture
def record(monkeypatch):
    """Operations that only note (name, magnitude)."""
    calls = []

    def noting(name):
        return lambda image, magnitude, rng: calls.append((name, magnitude)) or image

    monkeypatch.setattr(rand_augment, "OPERATIONS", {name: noting(name) for name in OPERATIONS})
    return calls


def test_operations_are_drawn_evenly_and_applied_half_the_time(record):
    counts, pixels = [], noise(4, 4, 3)
    for seed in range(3000):
        before = len(record)
        sample(pixels, 4, AugmentConfig(rand_augment=9.0), seed)
        counts.append(len(record) - before)
    assert abs(np.mean(counts) - 1) < 0.05 and abs(np.mean(np.array(counts) == 2) - 0.25) < 0.04
    names = [name for name, _ in record]
    assert len(OPERATIONS) == 15 and set(names) == set(OPERATIONS)
    assert all(140 < names.count(name) < 265 for name in OPERATIONS)  # 200 on average
    magnitudes = np.array([magnitude for _, magnitude in record])
    assert abs(np.median(magnitudes) - 9) < 0.05
    assert abs(magnitudes[magnitudes < 9].std() - 0.5 * math.sqrt(1 - 2 / math.pi)) < 0.03
    assert magnitudes.max() == 10 and abs((magnitudes == 10).mean() - 0.0228) < 0.01


def test_number_spread_and_bounds_of_magnitudes_are_settings(record):
    for seed in range(300):
        sample(noise(4, 4, 3), 4, AugmentConfig(rand_augment=5.0, rand_augment_ops=5, rand_augment_std=0.0), seed)
    assert {magnitude for _, magnitude in record} == {5.0}
    assert abs(len(record) - 750) < 100
    record.clear()
    for seed in range(300):
        sample(noise(4, 4, 3), 4, AugmentConfig(rand_augment=1.0, rand_augment_std=10.0), seed)
    magnitudes = np.array([magnitude for _, magnitude in record])
    assert magnitudes.min() == 0 and magnitudes.max() == 10


# Colour and erasing


def test_color_jitter_draws_factors_and_order(monkeypatch):
    calls = []
    for name in ("Brightness", "Contrast", "Color"):

        class Spy:
            def __init__(self, image, name=name):
                self.image, self.name = image, name

            def enhance(self, factor):
                calls.append((self.name, factor))
                return self.image

        monkeypatch.setattr(ImageEnhance, name, Spy)
    for seed in range(600):
        sample(noise(4, 4, 3), 4, AugmentConfig(color_jitter=0.4), seed)
    orders = [tuple(name for name, _ in calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(calls) == 1800 and len(set(orders)) == 6 and all(len(set(order)) == 3 for order in orders)
    assert all(60 < orders.count(order) < 145 for order in set(orders))
    for name in ("Brightness", "Contrast", "Color"):
        factors = np.array([factor for other, factor in calls if other == name])
        assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
        assert abs(factors.mean() - 1) < 0.04


def test_color_jitter_scales_a_grey_image():
    """Only brightness shows on one grey."""
    values = np.array(
        [sample(np.full((4, 4, 3), 100, np.uint8), 4, AugmentConfig(color_jitter=0.4), seed) for seed in range(300)]
    )
    assert (values == values[:, :1, :1, :1]).all()
    assert 59 <= values.min() <= 62 and 138 <= values.max() <= 141


def erased(size, augment, seeds):
    """Rectangles as (top, bottom, left, right), and the values in them."""
    for seed in seeds:
        image = sample(np.zeros((size, size, 3), np.uint8), size, augment, seed)
        rows, columns = image.any((1, 2)), image.any((0, 2))
        if rows.any():
            top, left = rows.argmax(), columns.argmax()
            bottom, right = size - rows[::-1].argmax(), size - columns[::-1].argmax()
            yield (top, bottom, left, right), image[top:bottom, left:right]


def test_random_erasing_fills_a_rectangle_with_imagenets_noise():
    boxes, values = zip(*erased(64, AugmentConfig(random_erasing=1.0), range(600)))
    assert len(boxes) > 595
    top, bottom, left, right = np.array(boxes).T
    height, width = bottom - top, right - left
    assert ((height - 0.5) * (width - 0.5) <= 64 * 64 / 3).all() and (
        (height + 0.5) * (width + 0.5) >= 0.02 * 64 * 64
    ).all()
    aspect = height / width
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    assert aspect.min() < 0.35 and aspect.max() > 2.85 and abs(np.log(aspect).mean()) < 0.1
    assert top.min() == left.min() == 0 and bottom.max() == right.max() == 64
    areas = height * width / 64**2
    assert areas.min() < 0.03 and areas.max() > 0.31
    filled = np.concatenate([part.reshape(-1, 3) for part in values]).astype(float)
    normal = np.random.default_rng(1).normal((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), (400_000, 3))
    reference = normal.round().clip(0, 255)
    assert np.abs(filled.mean(0) - reference.mean(0)).max() < 0.6
    assert np.abs(filled.std(0) - reference.std(0)).max() < 0.6
    assert np.abs(np.corrcoef(filled.T) - np.eye(3)).max() < 0.02


def test_random_erasing_has_its_probability_and_leaves_the_rest():
    boxes = list(erased(32, AugmentConfig(random_erasing=0.25), range(1200)))
    assert abs(len(boxes) / 1200 - 0.25) < 0.05
