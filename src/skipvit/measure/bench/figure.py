"""An image of what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def speed_figure(values: dict[str, Any]) -> Figure:
    """Of a `BenchResult`: each variant's speed-up with its 95 % interval, its ideal, its memory; a row a batch size."""
    batches = values["batches"]
    most = max(len(batch["variants"]) for batch in batches)
    figure = Figure(figsize=(11, (1.2 + 0.5 * most) * len(batches)), layout="constrained")
    for batch, (speed, memory) in zip(batches, figure.subplots(len(batches), 2, squeeze=False, sharey="row")):
        rows = batch["variants"]
        places = np.arange(len(rows))
        _draw_speed(speed, rows, places)
        memory.barh(places, [row["peak_memory_bytes"] / 2**20 for row in rows], 0.6, color="tab:grey")
        memory.set_xlabel("peak memory, MiB")
        speed.set_yticks(places, [f"{row['name']}, batch {row['batch_size']}" for row in rows])
        speed.invert_yaxis()  # of both, which share it: the baseline on top
        speed.set_xlabel(f"{values['mode']} images/s against {batch['baseline']}")
        for axis in (speed, memory):
            axis.grid(axis="x", alpha=0.3)
    return figure


def _draw_speed(axis, rows: list[dict], places: np.ndarray) -> None:
    ideals = [row["ideal_speedup"] for row in rows]
    axis.barh(places + 0.2, ideals, 0.35, color="none", edgecolor="black", label="ideal (MACs)")
    for place, row in zip(places, rows):
        low, high = row["step"].get("speedup_interval", (1, 1))
        value = row["step"].get("speedup", 1)
        if value is None:
            axis.text(0.02, place - 0.2, f"too noisy to say ({low:.2f} to {high:.2f})", va="center", fontsize=8)
        else:
            axis.barh(place - 0.2, value, 0.35, color="tab:blue", label="measured" if place == 0 else None)
            axis.errorbar(value, place - 0.2, xerr=[[value - low], [high - value]], color="black", capsize=3)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
