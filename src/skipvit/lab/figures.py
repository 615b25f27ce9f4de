"""Figures of a report on several methods, from plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from skipvit.insight.figures import dim_bypassed
from skipvit.lab.intervals import Mean

COLOURS = (
    "#000000",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#8c564b",
    "#6a3d9a",
    "#b2df8a",
    "#e31a1c",
    "#17becf",
    "#bcbd22",
    "#fb9a99",
)
MARKERS = "osD^vPX*"
MOST_BARS = 6  # curves in a figure over time that still have their intervals drawn


@dataclass(frozen=True)
class Point:
    """A method in a figure: top-1 in percent, and its speed-up with an interval, if that was measured.

    Attributes:
        values: of the forward that counts, a seed each.
        evaluations: mean by forward, `dense` and `routed`.
        forward: which of them counts.
    """

    label: str
    values: tuple[float, ...]
    mean: Mean
    evaluations: dict[str, Mean]
    forward: str
    speed: float
    speed_interval: tuple[float, float] | None


def style(i: int) -> dict:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def within_percent(axis) -> None:
    """Interval ends of few seeds lie below 0 and above 100 %, where nothing can be."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, -1), min(high, 101))


def seeds_figure(points: list[Point], baseline: Point | None) -> Figure:
    """Each method's seeds as dots, its mean with the 95 % interval, the baseline's interval as a band."""
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(points)), layout="constrained")
    axis = figure.subplots()
    if baseline is not None and baseline.mean.half is not None:
        axis.axvspan(baseline.mean.low, baseline.mean.high, color="0.9", label=f"95 % interval of {baseline.label}")
    for i, point in enumerate(points):
        seeds, mean = ("a seed", "mean, 95 %") if i == 0 else (None, None)
        axis.plot(point.values, [i + 0.15] * len(point.values), "o", color="0.55", markersize=4, label=seeds)
        axis.errorbar(point.mean.mean, i - 0.1, xerr=point.mean.half, fmt="D", color="#0072b2", capsize=3, label=mean)
    axis.set_yticks(range(len(points)), [f"{point.label} ({point.forward})" for point in points])
    axis.set_xlabel("top-1, %, of the forward that counts (in brackets)")
    axis.invert_yaxis()
    axis.set_xlim(max(axis.get_xlim()[0], -1), min(axis.get_xlim()[1], 101))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def front_figure(points: list[Point], speed_label: str) -> Figure:
    """Accuracy against training speed, a panel an evaluation; filled where it is the forward that counts. A network without routes
    has but one forward, which is in both panels."""
    figure = Figure(figsize=(11.5, max(4.2, 1.5 + 0.26 * len(points))), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, forward in zip(axes, ("routed", "dense")):
        for i, point in enumerate(points):
            mean = point.evaluations.get(forward) or point.mean
            counts = point.forward.removesuffix("_ema") == forward or forward not in point.evaluations
            look = style(i)
            spread = None
            if point.speed_interval is not None:
                spread = [
                    [max(0, point.speed - point.speed_interval[0])],
                    [max(0, point.speed_interval[1] - point.speed)],
                ]
            axis.errorbar(
                point.speed,
                mean.mean,
                xerr=spread,
                yerr=mean.half,
                fmt=look["marker"],
                color=look["color"],
                capsize=2,
                elinewidth=1,
                markerfacecolor=look["color"] if counts else "white",
            )
        axis.set_title(f"evaluated {forward}", fontsize=10)
        axis.grid(alpha=0.3)
    within_percent(axes[0])
    axes[0].set_ylabel("top-1, %, mean and 95 % interval")
    figure.supxlabel(speed_label, fontsize=10)
    handles = [axes[0].plot([], [], linestyle="", **style(i))[0] for i in range(len(points))]
    figure.legend(handles, [point.label for point in points], fontsize=8, loc="outside right center")
    return figure


def time_figure(curves: dict[str, list[tuple[float, Mean]]], target: float | None) -> Figure:
    """Accuracy of the forward that counts against training time, for each method at the epochs that were evaluated."""
    figure = Figure(figsize=(10.5, max(4.0, 1.5 + 0.26 * len(curves))), layout="constrained")
    axis = figure.subplots()
    for i, (label, curve) in enumerate(curves.items()):
        look = style(i)
        times, means = zip(*curve)
        halves = [mean.half or 0 for mean in means] if len(curves) <= MOST_BARS else None
        tops = [mean.mean for mean in means]
        axis.errorbar(times, tops, yerr=halves, label=label, markersize=4, capsize=2, elinewidth=0.7, **look)
    if target is not None:
        axis.axhline(target, color="0.5", linestyle=":", linewidth=1)
    axis.set_xlabel("training time, s")
    axis.set_ylabel("top-1, %, mean" + " and 95 % interval" * (len(curves) <= MOST_BARS))
    within_percent(axis)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def grid_figure(key: str, series: dict[str, list[tuple[float, Mean]]], baseline: Mean | None) -> Figure:
    """Accuracy over the values of a key, such as the epochs of dense warm-up."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    if baseline is not None:
        axis.axhspan(baseline.low, baseline.high, color="0.92")
        axis.axhline(baseline.mean, color="0.5", linewidth=1, label="baseline")
    for i, (label, points) in enumerate(series.items()):
        values, means = zip(*sorted(points, key=lambda point: point[0]))
        axis.errorbar(
            values, [m.mean for m in means], yerr=[m.half or 0 for m in means], label=label, capsize=3, **style(i + 1)
        )
    axis.set_xlabel(key)
    axis.set_ylabel("top-1, %, mean and 95 % interval")
    within_percent(axis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def matrix_figure(matrices: dict[str, np.ndarray]) -> Figure:
    """For each method, trained dense or with its routes (rows), evaluated dense or routed (columns): top-1 in percent; float (2, 2),
    NaN where it was not evaluated."""
    columns = min(5, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.6, 2.3 * rows), layout="constrained")
    low = min(np.nanmin(matrix) for matrix in matrices.values())
    high = max(np.nanmax(matrix) for matrix in matrices.values())
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (label, matrix), axis in zip(matrices.items(), axes):  # in this order: the axes that are left are blanked below
        axis.imshow(matrix, cmap="Blues", vmin=low - 0.4 * (high - low) - 1, vmax=high + 0.3 * (high - low) + 1)
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if value > (low + high) / 2 else "black"
            axis.text(
                j, i, "–" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", fontsize=10, color=colour
            )
        axis.set_title(label, fontsize=8)
        axis.set_xticks((0, 1), ("dense", "routed"), fontsize=8)
        axis.set_yticks((0, 1), ("dense", "routes"), fontsize=8, rotation=90, va="center")
        axis.set_xlabel("evaluated", fontsize=8)
        axis.set_ylabel("trained", fontsize=8)
    for axis in axes:
        axis.axis("off")
    return figure


def kept_over_training(images: np.ndarray, kept: dict[int, np.ndarray], grid: int) -> Figure:
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
        views = [image, *(dim_bypassed(image, positions[row], grid) for positions in kept.values())]
        for axis, view in zip(axes[row], views):
            axis.imshow(view, interpolation="nearest")
            axis.axis("off")
    for axis, title in zip(axes[0], ["image", *(f"epoch {epoch}" for epoch in kept)]):
        axis.set_title(title, fontsize=8)
    return figure
