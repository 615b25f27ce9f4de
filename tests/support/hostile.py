"""Files that are images, unusual ones, and such as only look like it."""

import io
import warnings

import numpy as np
from PIL import Image


def scene(rng, smallest=20, largest=160):
    """An image of smooth colours and a little noise, of a random size."""
    width, height = rng.integers(smallest, largest, 2)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 50) + y / rng.uniform(5, 50)) for _ in range(3)]
    return (np.stack(waves, -1) * 100 + 128 + rng.normal(0, 5, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flipped(data, rng, count=5):
    """Some bits of the second half of a file inverted: what a header says stays, so that no image claims gigabytes."""
    changed = bytearray(data)
    for at in rng.integers(len(data) // 2, len(data), count):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def hostile(rng):
    """200 files by name: their bytes, or what else to make: a `folder`, a `pipe`, a link to the path that is given."""
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
    files |= {f"text_{i}.jpg": b"<html>404: not found</html>\n" * (i + 1) for i in range(9)}
    files["eps.png"] = encoded(scene(rng), "EPS")  # for which Pillow would start Ghostscript
    files |= {f"empty_{i}.{('jpg', 'png', 'webp', 'tif', 'gif')[i % 5]}": b"" for i in range(10)}
    files |= {f"png_{i}.jpg": encoded(scene(rng), "PNG") for i in range(8)}
    files |= {f"jpeg_{i}.png": encoded(scene(rng), "JPEG") for i in range(7)}
    files |= {"link_0.jpg": "/nowhere/image.jpg", "loop.jpg": "loop.jpg", "zero.jpg": "/dev/zero"}
    files |= {"pipe.jpg": "pipe", "folder.jpg": "folder"}
    assert len(files) == 200
    return files


def unusual(rng):
    """Good files of every mode, by name."""
    pixels = scene(rng)
    image, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    alpha = Image.fromarray(pixels[..., 1])
    palette = image.quantize(100)
    turn = Image.Exif()
    turn[0x0112] = 6
    return {
        "grey.jpg": encoded(grey, "JPEG"),
        "one_bit.png": encoded(grey.convert("1"), "PNG"),
        "grey_alpha.png": encoded(Image.merge("LA", (grey, alpha)), "PNG"),
        "rgba.png": encoded(Image.merge("RGBA", (*image.split(), alpha)), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "palette_alphas.png": encoded(palette, "PNG", transparency=bytes(range(100))),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(rng.integers(0, 65536, (50, 70)).astype(np.uint16)), "PNG"),
        "turned.jpg": encoded(image, "JPEG", exif=turn),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "animated.gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], duration=50),
        "animated.webp": encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)], duration=50),
        "dot.png": encoded(pixels[:1, :1], "PNG"),
        "strip.png": encoded(rng.integers(0, 256, (4000, 3, 3)).astype(np.uint8), "PNG"),
        # Behind good ones in its folder: the large one should not have to stand in for broken ones.
        "good_large.png": encoded(Image.new("RGB", (6000, 6000), (200, 100, 50)), "PNG"),
    }


def reason_to_fail(path):
    """Pillow's own word on a file: None if it is one of the formats that are read, and can be decoded."""
    if not path.is_file():
        return OSError("not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"))
            image.load()
            image.convert("RGB")
    except Exception as error:
        return error
    return None
