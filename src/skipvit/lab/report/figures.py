"""Figures of a report."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skipvit.lab.intervals import Mean
from skipvit.lab.study import Arm

# fmt: off
COLOURS = (
    "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#6a3d9a",
    "#b2df8a", "#e31a1c", "#17becf", "#bcbd22", "#fb9a99",
)
# fmt: on
MARKERS = "osD^vPX*"
MOST_BARS = 6  # curves in a figure that still have their intervals drawn
TOP1 = "top-1, %, mean and 95 % interval"

Curves = dict[str, list[tuple[float, Mean]]]
Gain = tuple[float, float, float]  # of a whole run, with the ends of its 95 % interval


def style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _within_percent(axis: Axes) -> None:
    """Interval ends of few seeds lie below 0 and above 100 %, where nothing can be."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -1), min(high, 101))


def seeds_figure(arms: list[Arm], baseline: Arm | None) -> Figure:
    """Each arm's seeds as dots, its mean with the 95 % interval, the baseline's interval as a band."""
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(arms)), layout="constrained")
    axis = figure.subplots()
    if baseline is not None and baseline.top1.half is not None:
        band = baseline.top1
        axis.axvspan(band.low, band.high, color="0.9", label=f"95 % interval of {baseline.label}")
    for i, arm in enumerate(arms):
        seeds, mean, values = ("a seed", "mean, 95 %", arm.values()) if i == 0 else (None, None, arm.values())
        axis.plot(list(values.values()), [i + 0.15] * len(values), "o", color="0.55", markersize=4, label=seeds)
        found = arm.top1
        axis.errorbar(found.mean, i - 0.1, xerr=found.half, fmt="D", color="#0072b2", capsize=3, label=mean)
    axis.set_yticks(range(len(arms)), [f"{arm.label} ({arm.forward})" for arm in arms])
    axis.set_xlabel("top-1, %, of the forward that counts (in brackets)")
    axis.invert_yaxis()
    axis.set_xlim(max(axis.get_xlim()[0], -1), min(axis.get_xlim()[1], 101))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def front_figure(arms: list[Arm], gains: dict[str, Gain], label: str) -> Figure:
    """Accuracy against training speed, a panel a forward that was evaluated; filled where it is the one that counts. An
    arm that was not evaluated along it is there with its own.

    Args:
        gains: by an arm's label; where it is missing the arm is not drawn.
    """
    names = sorted({name for arm in arms for name in arm.evaluations()}, key=lambda name: (name == "dense", name))
    size = (4.5 * len(names) + 2.5, max(4.2, 1.5 + 0.26 * len(arms)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)[0]
    for axis, forward in zip(axes, names):
        for i, arm in enumerate(arms):
            if arm.label in gains:
                _front_point(axis, arm, forward, gains[arm.label], style(i))
        axis.set_title(f"evaluated {forward}", fontsize=10)
        axis.grid(alpha=0.3)
    _within_percent(axes[0])
    axes[0].set_ylabel(TOP1)
    figure.supxlabel(label, fontsize=10)
    handles = [axes[0].plot([], [], linestyle="", **style(i))[0] for i in range(len(arms))]
    figure.legend(handles, [arm.label for arm in arms], fontsize=8, loc="outside right center")
    return figure


def _front_point(axis: Axes, arm: Arm, forward: str, gain: Gain, look: dict[str, Any]) -> None:
    found = arm.evaluations()
    mean = found.get(forward) or arm.top1
    counts = forward not in found or arm.forward.removesuffix("_ema") == forward
    value, low, high = gain
    spread = [[max(0, value - low)], [max(0, high - value)]] if low < high else None
    face = look["color"] if counts else "white"
    bars = {"xerr": spread, "yerr": mean.half, "capsize": 2, "elinewidth": 1}
    axis.errorbar(value, mean.mean, linestyle="", markerfacecolor=face, **bars, **look)


def curves_figure(curves: Curves, label: str, target: float | None = None, band: Mean | None = None) -> Figure:
    """Accuracy over time, or over the values of a key such as the epochs of dense warm-up.

    Args:
        target: accuracy to draw a line at.
        band: the baseline's accuracy.
    """
    figure = Figure(figsize=(10.5, max(4.0, 1.5 + 0.26 * len(curves))), layout="constrained")
    axis = figure.subplots()
    if band is not None:
        axis.axhspan(band.low, band.high, color="0.92")
        axis.axhline(band.mean, color="0.5", linewidth=1, label="baseline")
    if target is not None:
        axis.axhline(target, color="0.5", linestyle=":", linewidth=1)
    barred = len(curves) <= MOST_BARS
    for i, (name, points) in enumerate(curves.items()):
        places, means = zip(*sorted(points, key=lambda point: point[0]))
        halves = [mean.half or 0 for mean in means] if barred else None
        look = style(i) if band is None else style(i + 1)
        bars = {"yerr": halves, "capsize": 2, "elinewidth": 0.7, "markersize": 4}
        axis.errorbar(places, [mean.mean for mean in means], label=name, **bars, **look)
    axis.set_xlabel(label)
    axis.set_ylabel(TOP1 if barred else "top-1, %, mean")
    _within_percent(axis)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def kept_figure(images: np.ndarray, kept: dict[int, np.ndarray], grid: int) -> Figure:
    """Images (rows), and what is kept of them after so many epochs (columns).

    Args:
        images: uint8 (n, S, S, 3).
        kept: by epoch, int (n, k): positions of the kept patches.
        grid: patches a side.
    """
    columns = 1 + len(kept)
    figure = Figure(figsize=(1.05 * columns, 1.05 * len(images) + 0.3), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        views = [image, *(_dimmed(image, positions[row], grid) for positions in kept.values())]
        for axis, view in zip(axes[row], views):
            axis.imshow(view, interpolation="nearest")
            axis.axis("off")
    for axis, title in zip(axes[0], ["image", *(f"epoch {epoch}" for epoch in kept)]):
        axis.set_title(title, fontsize=8)
    return figure


def _dimmed(image: np.ndarray, kept: np.ndarray, grid: int) -> np.ndarray:
    """An image whose patches are grey and dark but for the kept positions."""
    bright = np.isin(np.arange(grid * grid), kept).reshape(grid, grid)
    pixels = bright.repeat(image.shape[0] // grid, 0).repeat(image.shape[1] // grid, 1)[..., None]
    return np.where(pixels, image, 0.25 * image.mean(-1, keepdims=True) + 20).astype(np.uint8)
