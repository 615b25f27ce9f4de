"""Decoding, against Pillow's own full decode."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from skipvit.config.groups import AugmentConfig
from skipvit.data.crops import crop_box, validation_image
from skipvit.data.decode import BrokenImage, decode, draft, open_image, rgb
from support.hostile import encoded
from support.images import full, gradient, noise, sample, turned, waves

RESIZED = AugmentConfig(crop="random_resized")


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
