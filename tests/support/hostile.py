"""Files that are pictures, unusual ones, and such as only look like it."""

import io
import warnings

import numpy as np
from PIL import Image


def scene(rng, smallest=20, largest=160):
    """A picture of smooth colours and a little noise, of a random size."""
    width, height = rng.integers(smallest, largest, 2)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 50) + y / rng.uniform(5, 50)) for _ in range(3)]
    return (np.stack(waves, -1) * 100 + 128 + rng.normal(0, 5, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(picture, kind, **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def flipped(data, rng, count=5):
    """Some bits of the second half of a file inverted: what a header says stays, so that no picture claims gigabytes."""
    changed = bytearray(data)
    for at in rng.integers(len(data) // 2, len(data), count):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def hostile(rng):
    """200 files by name: bytes; None is a link to nowhere, and True a folder."""
    files = {}
    for kind, end in (("JPEG", "JPEG"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tiff")):
        for i in range(20):
            whole = encoded(scene(rng), kind, **({"compression": ("raw", "tiff_lzw")[i % 2]} if kind == "TIFF" else {}))
            files[f"cut_{i}.{end}"] = whole[: int(rng.integers(1, len(whole)))]
    for kind, end in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        files |= {f"flipped_{i}.{end}": flipped(encoded(scene(rng), kind), rng) for i in range(20)}
    files |= {
        f"random_{i}.{('jpg', 'png', 'gif', 'bmp')[i % 4]}": rng.bytes(int(rng.integers(1, 5000))) for i in range(20)
    }
    files |= {f"text_{i}.jpg": b"<html>404: not found</html>\n" * (i + 1) for i in range(10)}
    files |= {f"empty_{i}.{('jpg', 'png', 'webp', 'tif', 'gif')[i % 5]}": b"" for i in range(10)}
    files |= {f"png_{i}.jpg": encoded(scene(rng), "PNG") for i in range(8)}
    files |= {f"jpeg_{i}.png": encoded(scene(rng), "JPEG") for i in range(7)}
    files |= {f"link_{i}.jpg": None for i in range(4)} | {"folder.jpg": True}
    assert len(files) == 200
    return files


def unusual(rng):
    """Good files of every mode, by name."""
    pixels = scene(rng)
    picture, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    alpha = Image.fromarray(pixels[..., 1])
    palette = picture.quantize(100)
    turn = Image.Exif()
    turn[0x0112] = 6
    return {
        "grey.jpg": encoded(grey, "JPEG"),
        "one_bit.png": encoded(grey.convert("1"), "PNG"),
        "grey_alpha.png": encoded(Image.merge("LA", (grey, alpha)), "PNG"),
        "rgba.png": encoded(Image.merge("RGBA", (*picture.split(), alpha)), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "palette_alphas.png": encoded(palette, "PNG", transparency=bytes(range(100))),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(rng.integers(0, 65536, (50, 70)).astype(np.uint16)), "PNG"),
        "turned.jpg": encoded(picture, "JPEG", exif=turn),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "animated.gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], duration=50),
        "animated.webp": encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)], duration=50),
        "dot.png": encoded(pixels[:1, :1], "PNG"),
        "strip.png": encoded(rng.integers(0, 256, (4000, 3, 3)).astype(np.uint8), "PNG"),
        # Behind good ones in its folder: the large one should not have to stand in for broken ones.
        "good_large.png": encoded(Image.new("RGB", (6000, 6000), (200, 100, 50)), "PNG"),
    }


def reason_to_fail(path):
    """Pillow's own word on a file: None if it can be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
            picture.load()
            picture.convert("RGB")
    except Exception as error:
        return error
    return None
