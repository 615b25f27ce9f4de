"""A run's curves over its epochs, as a figure."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from skipvit.config.phases import Phase


def curves(records: list[dict], phases: tuple[Phase, ...]) -> Figure:
    """A figure of a run's records (see `engine.loop.Trainer`), one panel a quantity, phase boundaries marked."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    axes = figure.subplots(2, 3).flat
    epochs = [record["epoch"] for record in records]
    forwards = list(dict.fromkeys(name for record in records for name in record.get("val", {})))
    panels = (
        ("loss", [("training", "train_loss"), *((f"validation {name}", (name, "loss")) for name in forwards)]),
        ("top-1, %", [(name, (name, "top1")) for name in forwards]),
        ("learning rate", [("", "lr")]),
        ("training images/s", [("", "images_per_s")]),
        ("loss scale", [("", "loss_scale")]),
        ("updates skipped", [("", "overflows")]),
    )
    for axis, (title, series) in zip(axes, panels):
        for label, key in series:
            points = [(epoch, _value(record, key)) for epoch, record in zip(epochs, records)]
            points = [point for point in points if point[1] is not None]
            if points:
                axis.plot(*zip(*points), marker="o", markersize=3, label=label)
        for phase in phases[1:]:
            axis.axvline(phase.first + 0.5, color="grey", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if len(series) > 1 and axis.lines[: len(axis.lines) - len(phases[1:])]:
            axis.legend()
        if title == "loss scale":
            axis.set_yscale("log", base=2)
    return figure


def _value(record: Any, key):
    for part in (key,) if isinstance(key, str) else ("val", *key):
        record = record.get(part) if record is not None else None
    return record
