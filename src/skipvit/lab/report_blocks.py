"""The report of a sweep: what it says, block by block."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from skipvit.lab.figures import grid_figure, kept_over_training, matrix_figure, seeds_figure
from skipvit.lab.intervals import Mean, interval, mean_of
from skipvit.lab.page import Block, Heading, Plot, Table, Text
from skipvit.lab.report_runs import Sweep, Variant
from skipvit.lab.report_speed import Speeds, point_of, speed_blocks
from skipvit.lab.sweep_reuse import SOURCE

MOST_IMAGES = 8  # methods whose kept patches are drawn


def blocks(
    sweep: Sweep, measured: tuple[dict, Speeds] | None, matrix: dict[str, dict[int, float]], kept: dict[str, tuple]
) -> tuple[str, list[Block]]:
    """Title and content.

    Args:
        measured: what `report_bench.read` found.
        matrix: top-1 of dense weights along routes, by label and seed.
        kept: by label, images and the positions kept of them by epoch.
    """
    bench, speeds = measured or ({}, {})
    result: list[Block] = [Text(tuple(_about(sweep)))]
    result += [Heading("Accuracy"), _accuracy_table(sweep), Text(tuple(_how_to_read(sweep)), bullets=True)]
    points = [point_of(variant, speeds) for variant in sweep.variants]
    first = sweep.baseline_of(sweep.variants[0])
    single = len({variant.cell for variant in sweep.variants}) == 1 and first is not None
    band = points[sweep.variants.index(first)] if single else None
    result.append(
        Plot(
            "seeds", seeds_figure(points, band), "Every seed, the mean and its 95 % interval, in the order of the plan."
        )
    )
    result += speed_blocks(sweep, bench, speeds)
    for variant_grid in _grids(sweep):
        result += variant_grid
    result += _matrix_blocks(sweep, matrix)
    result += _kept_blocks(sweep, kept)
    result += [Heading("The runs"), Text(tuple(_about_runs(sweep)), bullets=True)]
    return f"Sweep {sweep.name}", result


def _about(sweep: Sweep) -> list[str]:
    config, seeds = sweep.variants[0].config, sweep.seeds()
    size = config.model.shape()
    runs = f"{sweep.planned - len(sweep.missing)} of {sweep.planned} runs are finished"
    shapes = config.data.kind == "shapes"
    data = f"{config.data.train_size} built-in images of shapes" if shapes else f"{config.data.kind} {config.data.path}"
    lines = [
        f"{len(sweep.variants)} methods, {len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}); {runs}. "
        f"All are compared to {sweep.baseline}, seed by seed.",
        f"The first one's configuration: width {size.width}, {size.depth} blocks, {size.heads} head{'s' * (size.heads != 1)}, "
        f"{config.model.tokens} patch tokens, {config.optim.epochs} epochs of {data}, batch {config.data.batch_size}. "
        f"What holds for small networks and little data need not hold for others.",
    ]
    if sweep.missing:
        lines.append(f"Not finished, and left out: {', '.join(sweep.missing)}.")
    return lines


def _accuracy_table(sweep: Sweep) -> Table:
    difference = f"difference to {sweep.baseline}, points"
    head = ("method", "seeds", "forward that counts", "top-1, %", "evaluated dense", "evaluated routed", difference, "")
    rows = []
    for variant in sweep.variants:
        suffix = "_ema" * variant.forward.endswith("_ema")
        rows.append(
            (
                variant.label,
                str(len(variant.runs)),
                variant.forward,
                interval(variant.top1()),
                *(interval(variant.top1(forward + suffix)) for forward in ("dense", "routed")),
                *_difference(sweep, variant),
            )
        )
    return Table(head, tuple(rows))


def _difference(sweep: Sweep, variant: Variant) -> tuple[str, str]:
    baseline = sweep.baseline_of(variant)
    if baseline is variant:
        return "", "baseline"
    found = variant.against(baseline)
    if found is None:
        return "", "no seed in common with the baseline"
    said = {
        "same": f"not distinguishable from {sweep.baseline}",
        "lower": f"below {sweep.baseline}",
        "higher": f"above {sweep.baseline}",
        None: "one seed: nothing can be said",
    }
    if found.half is not None and found.half < 1e-9 < abs(found.mean):
        return interval(found, signed=True), "the same in every seed, by chance: its spread is not known"
    return interval(found, signed=True), said[found.side]


def _how_to_read(sweep: Sweep) -> list[str]:
    compared = sum(sweep.baseline_of(variant) not in (None, variant) for variant in sweep.variants)
    return [
        "± is the half width of the 95 % interval of the mean over seeds, by Student's t. Differences are taken within seeds, which "
        "share first weights, images and their order, though not the flips and crops where one draws tokens at random and the other "
        "does not; so their intervals can be narrower than those of the accuracies.",
        "the forward that counts: the one whose accuracy is the method's figure; it is that which the last phase trained, unless "
        "the method says otherwise. A network that was trained routed is not the same network evaluated dense.",
        f"Methods stand in the order of the plan, which is no ranking. Where an interval covers zero, these runs cannot tell the "
        f"method from {sweep.baseline}; that does not show that they are equal."
        + f" Of {compared} comparisons one in twenty may leave zero out by chance: no interval is widened for their number."
        * (compared > 3),
    ]


def _grids(sweep: Sweep) -> list[list[Block]]:
    """A curve for each key that methods vary over numbers."""
    series: dict[str, dict[str, list[tuple[float, Mean]]]] = {}
    for variant in sweep.variants:
        numbers = dict(number for number in map(_number, variant.point.items()) if number)
        if len(numbers) == 1:
            ((key, value),) = numbers.items()
            series.setdefault(key, {}).setdefault(f"{variant.method} {variant.cell}".strip(), []).append(
                (value, variant.top1())
            )
    result = []
    for key, methods in series.items():
        methods = {label: points for label, points in methods.items() if len(points) > 1}
        if methods:
            base = sweep.baseline_of(sweep.variants[0])
            name = "curve_" + re.sub(r"\W+", "_", key).strip("_")
            caption = f"Top-1 of the forward that counts over {key}; grey: {sweep.baseline}. Mean and 95 % interval."
            figure = grid_figure(key, methods, base.top1() if base is not None and not base.point else None)
            result.append([Heading(f"Accuracy over {key}"), Plot(name, figure, caption)])
    return result


def _number(of_grid: tuple[str, Any]) -> tuple[str, float] | None:
    """A grid's key and value if it is a number, or a share such as `5%`, of which the key then says so."""
    key, value = of_grid
    if type(value) in (int, float):
        return key, value
    share = re.fullmatch(r"([\d.]+) ?%", str(value))
    return (f"{key}, %", float(share[1])) if share else None


def _matrix_blocks(sweep: Sweep, matrix: dict[str, dict[int, float]]) -> list[Block]:
    """Trained {dense, with routes} x evaluated {dense, routed}."""
    rows, figures = [], {}
    for variant in sweep.variants:
        base = sweep.dense_of(variant)
        if not variant.config.routes or base is None:
            continue
        through, suffix = matrix.get(variant.label), "_ema" * variant.forward.endswith("_ema")
        cells = [base.top1(), mean_of(list(through.values())) if through else None]
        cells += [variant.top1(forward + suffix) for forward in ("dense", "routed")]
        rows.append((variant.label, *(interval(cell) for cell in cells)))
        figures[variant.label] = np.array([np.nan if cell is None else cell.mean for cell in cells]).reshape(2, 2)
    if not rows:
        return []
    head = (
        "routes of",
        *(f"trained {a}, evaluated {b}" for a in ("dense", "with routes") for b in ("dense", "routed")),
    )
    result: list[Block] = [Heading("Trained and evaluated, dense and routed"), Table(head, tuple(rows))]
    if not matrix:
        result.append(
            Text(("Dense weights along the routes were not evaluated: `skipvit report FOLDER --weights` does.",))
        )
    result.append(Plot("matrix", matrix_figure(figures), "Top-1 in percent: rows as trained, columns as evaluated."))
    return result


def _kept_blocks(sweep: Sweep, kept: dict[str, tuple]) -> list[Block]:
    result: list[Block] = []
    by_label = {variant.label: variant for variant in sweep.variants}
    for label in [label for label in kept if label in by_label][:MOST_IMAGES]:
        model = by_label[label].config.model
        images, epochs = kept[label]
        figure = kept_over_training(images, epochs, model.image_size // model.patch)
        name = "kept_" + "".join(c if c.isalnum() else "_" for c in label)
        caption = f"{label}: what its first route keeps of validation images in the course of training, first seed."
        result.append(Plot(name, figure, caption))
    return [Heading("Kept patches over training"), *result] if result else []


def _about_runs(sweep: Sweep) -> list[str]:
    about: dict[str, Any] = sweep.versions()
    names = ("skipvit", "mindspore", "numpy", "python")
    lines = [f"`{sweep.command}`"] * bool(sweep.command) + [
        f"runs, each with its configuration and log: {sweep.folder}"
    ]
    if about:
        known = ", ".join(f"{name} {about[name]}" for name in names if name in about)
        lines.append(f"first run: {known}; begun {about.get('started', '')}")
    taken = [
        run.path.name for variant in sweep.variants for run in variant.runs.values() if (run.path / SOURCE).exists()
    ]
    if taken:
        lines.append(f"trained in another sweep, from which they were copied (their {SOURCE}): {', '.join(taken)}")
    lines += [f"{name} failed: {why}" for name, why in sweep.failed.items()]
    return lines
