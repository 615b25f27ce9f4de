"""Images of what `skipvit importance` measures."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from skipvit.insight.figures import dim_bypassed

MOST_IMAGES = 8


def figure_of_measures(result: dict) -> Figure:
    """Deletion and insertion curves of the scorers, what each keeps of object and background, and all by block."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    deletion, insertion, kept, blocks = figure.subplots(2, 2).flat
    for axis, name in ((deletion, "deletion"), (insertion, "insertion")):
        for scorer, row in result["scorers"].items():
            curve = row[f"{name}_curve"]
            style = {"color": "grey", "linestyle": "--"} if scorer == "random" else {}
            axis.plot(np.linspace(0, 1, len(curve)), curve, label=f"{scorer}, area {row[name]:.3f}", **style)
        axis.set_title(name)
        axis.set_xlabel(f"share of patches {'replaced by ' + result['filled_with'] if name == 'deletion' else 'shown'}")
        axis.set_ylabel("probability of the true class")
        axis.legend(fontsize=8)
    _draw_kept(kept, result)
    for key in ("separation", "last_block_overlap", "deletion", "insertion"):
        values = [row.get(key) for row in result["blocks"].values()]
        if None not in values:
            blocks.plot(range(len(values)), values, marker="o", label=key.replace("_", " "))
    blocks.axvline(result["site"], color="grey", linestyle=":", label="block whose attention the route reads")
    blocks.set_title("attention of [CLS] in each block")
    blocks.set_xlabel("block")
    blocks.set_xticks(range(len(result["blocks"])))
    blocks.set_ylim(0, 1.02)
    blocks.legend(fontsize=8)
    return figure


def _draw_kept(axis, result: dict) -> None:
    rows = result["scorers"] | result["routes"]
    rows = {name: row for name, row in rows.items() if row.get("object_kept") is not None}
    axis.set_title("share of patches kept" if rows else "share of patches kept: there are no masks")
    places, background = np.arange(len(rows)), [row["background_kept"] or 0 for row in rows.values()]
    axis.barh(places - 0.2, [row["object_kept"] for row in rows.values()], 0.4, label="of the object")
    axis.barh(places + 0.2, background, 0.4, color="0.7", label="of the background")
    axis.axvline(result["kept"] / result["tokens"], color="grey", linestyle="--", label="of all")
    axis.set_yticks(places, rows)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    if rows:
        axis.legend(fontsize=8)


def figure_of_kept(images: np.ndarray, masks: np.ndarray | None, kept: dict[str, np.ndarray]) -> Figure:
    """Some images, and each with what a scorer bypasses dimmed; the object is outlined.

    Args:
        images: uint8 (n, S, S, 3).
        masks: bool (n, S, S) or None.
        kept: by scorer, bool (n, tokens).
    """
    chosen = np.linspace(0, len(images) - 1, min(MOST_IMAGES, len(images))).astype(int)
    figure = Figure(figsize=(1.5 * len(chosen), 1.6 * (1 + len(kept))), layout="constrained")
    axes = figure.subplots(1 + len(kept), len(chosen), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, (name, sets) in zip(axes, {"image": None, **kept}.items()):
        row[0].set_ylabel(name.replace("_", "\n", 1), fontsize=8)
        for axis, i in zip(row, chosen):
            view = images[i]
            if sets is not None:
                view = dim_bypassed(view, np.flatnonzero(sets[i]), math.isqrt(sets.shape[1]))
            axis.imshow(view, interpolation="nearest")
            if sets is not None and masks is not None:
                axis.contour(masks[i], [0.5], colors="tab:red", linewidths=0.8)
    return figure
