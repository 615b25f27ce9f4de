"""Images of what a route keeps, bypassed patches dimmed, and of what [CLS] attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from skipvit.util.text import for_figure

MOST_ROUTES = 3  # columns of routes in a figure; more would be too small to read


def dim_bypassed(image: np.ndarray, kept: np.ndarray, grid: int) -> np.ndarray:
    """Darken and grey the patches that are not kept.

    Args:
        image: uint8 (S, S, 3), S a multiple of grid.
        kept: int (k,), positions of the kept patches, row by row.
        grid: patches a side.

    Returns:
        uint8 (S, S, 3); kept patches are unchanged.
    """
    bright = np.zeros(grid * grid, bool)
    bright[kept] = True
    patch = image.shape[0] // grid
    mask = np.kron(bright.reshape(grid, grid), np.ones((patch, patch), bool))[..., None]
    grey = image.mean(-1, keepdims=True) * 0.25 + 20
    return np.where(mask, image, np.broadcast_to(grey, image.shape)).astype(np.uint8)


def attention_heat(image: np.ndarray, attention: np.ndarray, grid: int) -> np.ndarray:
    """Colour the patches by attention, from this image's least (dark) to its largest (bright), on a square root scale.

    Args:
        image: uint8 (S, S, 3), S a multiple of grid; shimmers through in grey.
        attention: float (grid * grid,), row by row.
        grid: patches a side.

    Returns:
        uint8 (S, S, 3).
    """
    least, largest = attention.min(), attention.max()
    share = np.sqrt((attention - least) / (largest - least)) if largest > least else np.zeros_like(attention)
    patch = image.shape[0] // grid
    colours = 255 * colormaps["inferno"](share.reshape(grid, grid))[..., :3]
    colours = np.kron(colours, np.ones((patch, patch, 1)))
    return (0.65 * colours + 0.35 * image.mean(-1, keepdims=True)).astype(np.uint8)


def kept_figure(
    images: np.ndarray,
    kept: list[np.ndarray],
    captions: list[str],
    grid: int,
    attention: np.ndarray | None = None,
    below: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Each image beside itself with the patches that each route bypasses dimmed, and with what [CLS] attends to.

    Args:
        images: uint8 (n, S, S, 3).
        kept: for each route, int (n, k); the first routes are drawn.
        captions: a title for each image; below: a text for each, too.
        grid: patches a side.
        attention: float (n, patches), of a square grid that may be another, or None.
    """
    views = []
    for i, image in enumerate(images):
        views.append([image, *(dim_bypassed(image, of_route[i], grid) for of_route in kept[:MOST_ROUTES])])
        if attention is not None:
            views[i].append(attention_heat(image, attention[i], math.isqrt(attention.shape[1])))
    width = len(views[0])
    columns = min(4, len(views)) if width < 4 else min(2, len(views))
    rows = -(-len(views) // columns)
    height = (1.8 if below else 1.5) * rows + (0.3 if title else 0.0)
    figure = Figure(figsize=(1.35 * columns * width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=8)
    panels = figure.subfigures(rows, columns, wspace=0.05, hspace=0.02, squeeze=False).flat
    for i, (panel, group) in enumerate(zip(panels, views)):
        panel.suptitle(drawable(captions[i]), fontsize=8)
        if below:
            panel.supxlabel(drawable(below[i]), fontsize=8)
        for axis, view in zip(panel.subplots(1, width, squeeze=False)[0], group):
            axis.imshow(view, interpolation="nearest")
            axis.axis("off")
    return figure


def drawable(text: str) -> str:
    """Lines of text for a figure: no formulas, no control characters, and escapes for what its font has no glyph of."""
    glyphs = get_font(findfont(FontProperties()))
    lines = [for_figure(line) for line in text.split("\n")]
    return "\n".join("".join(c if glyphs.get_char_index(ord(c)) else ascii(c)[1:-1] for c in line) for line in lines)
