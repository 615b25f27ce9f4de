"""Decoding, augmentation and mixing, against NumPy's formulas and Pillow's own full decode."""

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from skipvit.config.groups import AugmentConfig
from skipvit.data import augment as module
from skipvit.data import crops, rand_augment
from skipvit.data.augment import training_image
from skipvit.data.crops import crop_box, validation_image
from skipvit.data.decode import BrokenImage, decode, draft, open_image, rgb
from skipvit.data.mixing import _cutmix, mix_numbers
from skipvit.data.rand_augment import OPERATIONS

RESIZED = AugmentConfig(crop="random_resized")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def gradient(width, height):
    """Red says the column, green the row, as shares of 255."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return np.rint(255 * np.stack([red, green, np.full((height, width), 0.5)], -1)).astype(np.uint8)


def encoded(image, kind, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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


# Decoding


def grey(pixels):
    return np.repeat(pixels[..., None], 3, -1)


def palette_image(**info):
    image = Image.fromarray(noise(9, 14) % 200, "L").convert("P")
    image.putpalette(noise(768, seed=1).tobytes())
    return encoded(image, "PNG", **info), noise(768, seed=1).reshape(256, 3)[noise(9, 14) % 200]


LOSSLESS = {
    "rgb_png": (encoded(noise(9, 14, 3), "PNG"), noise(9, 14, 3)),
    "rgb_bmp": (encoded(noise(9, 14, 3), "BMP"), noise(9, 14, 3)),
    "rgb_tiff": (encoded(noise(9, 14, 3), "TIFF", compression="tiff_lzw"), noise(9, 14, 3)),
    "rgb_webp": (encoded(noise(9, 14, 3), "WEBP", lossless=True), noise(9, 14, 3)),
    "l_png": (encoded(noise(9, 14), "PNG"), grey(noise(9, 14))),
    "1_png": (encoded(Image.fromarray(noise(9, 14) > 127), "PNG"), grey((noise(9, 14) > 127) * 255)),
    "la_png": (encoded(noise(9, 14, 2), "PNG"), grey(noise(9, 14, 2)[..., 0])),
    "rgba_png": (encoded(noise(9, 14, 4), "PNG"), noise(9, 14, 4)[..., :3]),
    "p_png": palette_image(),
    "p_png_one_transparent": palette_image(transparency=3),
    "p_png_translucent": palette_image(transparency=bytes(range(200))),
    "gif_first_frame": (
        encoded(Image.fromarray(noise(9, 14)), "GIF", save_all=True, append_images=[Image.new("L", (14, 9))]),
        grey(noise(9, 14)),
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_mode_becomes_its_rgb_values(name):
    data, pixels = LOSSLESS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(data)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "mode, kind",
    [
        ("L", "JPEG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("F", "TIFF"),
    ],
)
def test_other_modes_are_as_pillow_converts_them(mode, kind):
    data = encoded(Image.fromarray(gradient(40, 30)).convert(mode), kind)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(full(data)))


def rgb_png(width, height, bits, rows):
    """A file of such a header, for what Pillow does not write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_keep_their_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, (9, 14, 3)).astype(np.uint16)
    one = values[..., 0]
    big_endian = Image.frombytes("I;16B", (14, 9), one.astype(">u2").tobytes())
    images = [Image.fromarray(one), big_endian, Image.fromarray(one.astype(np.int32))]
    for image, kind in zip(images + images[:1], ("PNG", "TIFF", "TIFF", "PPM")):
        assert np.array_equal(np.asarray(decode(encoded(image, kind))), grey(one >> 8)), (image.mode, kind)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert np.array_equal(np.asarray(decode(rgb_png(14, 9, 16, rows))), values >> 8)


def test_an_array_is_its_own_image_and_a_flat_one_is_a_file():
    pixels, data = LOSSLESS["rgb_png"][1], LOSSLESS["rgb_png"][0]
    assert np.array_equal(np.asarray(decode(pixels)), pixels)
    assert np.array_equal(np.asarray(decode(np.frombuffer(data, np.uint8))), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind, orientation):
    data = encoded(gradient(48, 32), kind, exif=turned(orientation))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(full(data)))
    assert decode(data).size == ((32, 48) if orientation >= 5 else (48, 32))
    difference = sample(data, 16, AugmentConfig()).astype(int) - np.asarray(
        full(data).resize((16, 16), Image.Resampling.BICUBIC)
    )
    assert np.abs(difference).max() <= 2  # Pillow rounds between its two passes, whose order turns


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientations_that_make_no_sense_are_upright():
    pixels = noise(9, 14, 3)
    for value in (0, 9, 77):
        assert np.array_equal(np.asarray(decode(encoded(pixels, "PNG", exif=turned(value)))), pixels)
    broken = encoded(pixels, "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff\x01")
    assert decode(broken).size == (14, 9)


# Broken files


def fails(data):
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return True
    return False


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_broken_exactly_where_pillow_fails(kind, damage):
    whole, rng = encoded(gradient(64, 48), kind), np.random.default_rng(0)
    broken = 0
    for _ in range(40):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if damage == "truncated":
            data = data[:at]
        else:
            data[max(at, 40) : max(at, 40) + 4] = rng.bytes(4)  # after WebP's sizes, which could claim a gigabyte
        for use in (decode, lambda data: sample(data, 8, RESIZED), lambda data: validation_image(data, 8, 0.9)):
            try:
                use(bytes(data))
                assert not fails(bytes(data))
            except BrokenImage as error:
                assert fails(bytes(data))
                assert str(error) and "\n" not in str(error) and "object at" not in str(error)
                broken += 1
    assert broken > 10 or damage == "overwritten"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_the_documented_formats_are_opened(kind):
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    file = io.BytesIO()
    image.save(file, kind)
    assert np.abs(np.asarray(decode(file.getvalue()), int) - np.asarray(image)).max() < 12


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "ICNS", "DDS"])
def test_no_other_format_is_opened(kind):
    """For an EPS Pillow would start Ghostscript."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 100, 50)).save(file, kind)
    with pytest.raises(BrokenImage, match="cannot identify image file"):
        decode(file.getvalue())


def test_reasons_are_one_line():
    reasons = {b"": "empty file", b"no image": "cannot identify image file"}
    for data, reason in reasons.items():
        with pytest.raises(BrokenImage) as error:
            decode(data)
        assert str(error.value) == reason
    with pytest.raises(BrokenImage, match="exceeds limit of 500000000 pixels"):
        decode(rgb_png(25_000, 20_001, 8, b""))


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory when reading image file")])
def test_a_lack_of_memory_is_not_the_images_fault(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode(b"image")
    with pytest.raises(MemoryError):
        sample(b"image", 8, RESIZED)


# Decoding at a part of the size


def drafted(data, smallest):
    image, _ = open_image(data)
    draft(image, smallest)
    return rgb(image).size


@pytest.mark.parametrize(
    "smallest, size",
    [
        ((400, 300), (400, 300)),
        ((401, 300), (800, 600)),
        ((200, 150), (200, 150)),
        ((1600, 1), (1600, 1200)),
        ((5000, 5000), (1600, 1200)),
    ],
)
def test_a_large_jpeg_is_decoded_as_small_as_allowed(smallest, size):
    pixels = gradient(1600, 1200)
    assert drafted(encoded(pixels, "JPEG"), smallest) == size
    assert drafted(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG"), smallest) == size


def test_only_a_jpeg_is_decoded_smaller():
    assert drafted(encoded(gradient(160, 120), "PNG"), (20, 15)) == (160, 120)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_scale_of_decoding_changes_neither_the_crop_nor_its_resolution(monkeypatch, orientation):
    """Odd sides, so that the last pixel of a smaller image covers less than the others."""
    data, used = encoded(waves(1597, 1203), "JPEG", quality=95, subsampling=0, exif=turned(orientation)), []
    upright, resize = full(data), Image.Image.resize

    def spy(image, size, resample, box):
        used.append((image.size, box))
        return resize(image, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for seed in range(12):
        crop = sample(data, 64, RESIZED, seed)
        box = crop_box(*upright.size, (0.08, 1.0), np.random.default_rng(seed))
        reference = np.asarray(resize(upright, (64, 64), Image.Resampling.BICUBIC, box))
        assert np.abs(crop.astype(int) - reference).max() <= 4  # a pixel of the file would be 5
    assert all(right - left >= 64 and bottom - top >= 64 for _, (left, top, right, bottom) in used)
    assert {width for (width, _), _ in used} >= {200, 400}  # really at an eighth and at a quarter


def test_without_a_crop_the_whole_image_becomes_the_square():
    data = encoded(gradient(1600, 1200), "JPEG", quality=95, subsampling=0)
    reference = np.asarray(full(data).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(sample(data, 64, AugmentConfig()).astype(int) - reference).max() <= 3
    pixels = noise(20, 30, 3)
    reference = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(sample(pixels, 16, AugmentConfig()), np.asarray(reference))


# Crops


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


# A sample is a function of the generator

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


# Mixing


def mixed(count=4000, size=32, **settings):
    numbers = [mix_numbers(AugmentConfig(**settings), size, np.random.default_rng(seed)) for seed in range(count)]
    assert all(row.dtype == np.float32 and row.shape == (6,) for row in numbers)
    return np.array(numbers)


UNMIXED = (1, 0, 0, 0, 0, 1)


def test_no_mixing():
    assert (mixed(20) == UNMIXED).all()
    assert (mixed(20, mixup=0.8, cutmix=1.0, mix_prob=0.0) == UNMIXED).all()


def test_mixup_weighs_pixels_and_targets_alike():
    numbers = mixed(mixup=0.8)
    assert (numbers[:, 1:5] == 0).all() and (numbers[:, 0] == numbers[:, 5]).all()
    weight = numbers[:, 0]
    assert abs(weight.mean() - 0.5) < 0.02 and abs(weight.var() - 0.25 / 2.6) < 0.005  # of Beta(0.8, 0.8)


def test_cutmix_targets_count_the_pixels_that_stay():
    numbers = mixed(cutmix=1.0)
    weight, top, bottom, left, right, target = numbers.T
    assert (weight == 1).all()
    assert (0 <= top).all() and (top <= bottom).all() and (bottom <= 32).all()
    assert (0 <= left).all() and (left <= right).all() and (right <= 32).all()
    assert np.allclose(target, 1 - (bottom - top) * (right - left) / 32**2)
    whole = (top > 0) & (left > 0) & (bottom < 32) & (right < 32)
    assert (bottom - top == right - left)[whole].all() and whole.mean() > 0.1
    assert top.min() == left.min() == 0 and bottom.max() == right.max() == 32
    middle = (top + bottom) / 2  # small boxes: their centres are everywhere
    small = bottom - top < 6
    assert np.histogram(middle[small], 4, (0, 32))[0].min() > 0.15 * small.sum()


def test_the_side_of_a_cutmix_box_is_the_root_of_the_share():
    """Beta(1, 1) is uniform: P(side <= s) = (s / size)^2, for boxes that the edge does not cut."""
    rng = np.random.default_rng(0)
    for weight in (0.0, 0.36, 0.75, 0.9999, 1.0):
        sides = [_cutmix(weight, 100, rng) for _ in range(300)]
        assert max(bottom - top for _, top, bottom, *_ in sides) == int(100 * math.sqrt(1 - weight))


def test_probabilities_of_mixing_and_of_cutmix():
    numbers = mixed(mixup=0.8, cutmix=1.0, mix_prob=0.6, mix_switch_prob=0.3)
    unmixed = (numbers == UNMIXED).all(1)  # or a CutMix box of no area, about one of 1000
    by_mixup = numbers[:, 0] < 1
    assert abs(unmixed.mean() - 0.4) < 0.03
    assert abs(by_mixup.mean() - 0.6 * 0.7) < 0.03
    assert (mixed(50, mixup=0.8, mix_switch_prob=1.0)[:, 0] < 1).all()
    assert (mixed(50, cutmix=1.0, mix_switch_prob=0.0)[:, 0] == 1).all()
