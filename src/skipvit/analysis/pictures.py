"""Pictures of what a route keeps: bypassed patches dimmed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

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


def kept_figure(images: np.ndarray, kept: list[np.ndarray], captions: list[str], grid: int) -> Figure:
    """Each picture beside itself with the patches that each route bypasses dimmed.

    Args:
        images: uint8 (n, S, S, 3).
        kept: for each route, int (n, k).
        captions: a title for each picture.
        grid: patches a side.
    """
    kept = kept[:MOST_ROUTES]
    columns, width = 4, 1 + len(kept)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.35 * columns * width, 1.5 * rows), layout="constrained")
    panels = figure.subfigures(rows, columns, wspace=0.05, hspace=0.02, squeeze=False).flat
    for i, (image, caption) in enumerate(zip(images, captions)):
        panels[i].suptitle(caption, fontsize=8)
        axes = panels[i].subplots(1, width, squeeze=False)[0]
        views = [image, *(dim_bypassed(image, of_route[i], grid) for of_route in kept)]
        for axis, view in zip(axes, views):
            axis.imshow(view, interpolation="nearest")
            axis.axis("off")
    return figure
