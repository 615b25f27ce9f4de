"""The report of a sweep: what it says, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from skipvit.analysis.intervals import Mean, mean_of
from skipvit.analysis.lab_figures import Point, front_figure, grid_figure, kept_over_training, matrix_figure, seeds_figure, time_figure
from skipvit.analysis.page import Block, Heading, Picture, Table, Text
from skipvit.tools.report_bench import Speed, run_gain, seconds_until
from skipvit.tools.report_runs import Sweep, Variant

MOST_PICTURES = 8  # methods whose kept patches are drawn

Speeds = dict[str, Speed]


def blocks(
    sweep: Sweep, measured: tuple[dict, Speeds] | None, matrix: dict[str, dict[int, float]], kept: dict[str, tuple]
) -> tuple[str, list[Block]]:
    """Title and content.

    Args:
        measured: what `report_bench.read` found.
        matrix: top-1 of dense weights along routes, by label and seed.
        kept: by label, pictures and the positions kept of them by epoch.
    """
    bench, speeds = measured or ({}, {})
    result: list[Block] = [Text(tuple(_about(sweep)))]
    result += [Heading("Accuracy"), _accuracy_table(sweep), Text(tuple(_how_to_read(sweep)), bullets=True)]
    points = [_point(sweep, variant, speeds) for variant in sweep.variants]
    first = sweep.baseline_of(sweep.variants[0])
    single = len({variant.cell for variant in sweep.variants}) == 1 and first is not None
    band = points[sweep.variants.index(first)] if single else None
    result.append(Picture("seeds", seeds_figure(points, band), "Every seed, the mean and its 95 % interval, in the order of the plan."))
    result += [Heading("Speed and memory"), _speed_table(sweep, speeds), Text(tuple(_about_speed(bench, speeds)), bullets=True)]
    result.append(_front(points, bool(speeds)))
    result += _time_blocks(sweep, speeds)
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
    data = f"{config.data.train_size} built-in pictures of shapes" if config.data.kind == "shapes" else f"{config.data.kind} {config.data.path}"
    lines = [
        f"{len(sweep.variants)} methods, {len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}); {runs}. "
        f"All are compared to {sweep.baseline}, seed by seed.",
        f"The first one's configuration: width {size.width}, {size.depth} blocks, {size.heads} heads, "
        f"{config.model.tokens} patch tokens, {config.optim.epochs} epochs of {data}, batch {config.data.batch_size}. "
        f"What holds for small networks and little data need not hold for others.",
    ]
    if sweep.missing:
        lines.append(f"Not finished, and left out: {', '.join(sweep.missing)}.")
    return lines


def _accuracy_table(sweep: Sweep) -> Table:
    head = ("method", "seeds", "counts", "top-1, %", "evaluated dense", "evaluated routed", f"difference to {sweep.baseline}, points", "")
    rows = []
    for variant in sweep.variants:
        suffix = "_ema" * variant.forward.endswith("_ema")
        rows.append((
            variant.label, str(len(variant.runs)), variant.forward, interval(variant.top1()), interval(variant.top1("dense" + suffix)),
            interval(variant.top1("routed" + suffix)), *_difference(sweep, variant),
        ))  # fmt: skip
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
    return interval(found, signed=True), said[found.side]


def interval(value: Mean | None, signed: bool = False, digits: int = 2) -> str:
    """E.g. `97.10 ± 0.42`; without the second part for a single value."""
    if value is None:
        return "–"
    text = f"{value.mean:{'+' if signed else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {value.half:.{digits}f}"


def _how_to_read(sweep: Sweep) -> list[str]:
    compared = len(sweep.variants) - 1
    return [
        "± is the half width of the 95 % interval of the mean over seeds, by Student's t. Differences are taken within seeds, which share "
        "first weights, pictures and their order; so their intervals can be narrower than those of the accuracies.",
        "“counts”: the forward whose accuracy is the method's figure: the one that the last phase trained, unless the method says otherwise. "
        "A network that was trained routed is not the same network evaluated dense.",
        f"Methods stand in the order of the plan, which is no ranking. Where an interval covers zero, these runs cannot tell the method from "
        f"{sweep.baseline}; that does not show that they are equal."
        + (f" Of {compared} comparisons one in twenty may leave zero out by chance: the intervals are not widened for their number."
           if compared > 3 else ""),
    ]  # fmt: skip


def _point(sweep: Sweep, variant: Variant, speeds: Speeds) -> Point:
    evaluations = {}
    for forward in ("dense", "routed"):
        mean = variant.top1(forward + "_ema" * variant.forward.endswith("_ema"))
        if mean is not None:
            evaluations[forward] = mean
    if not speeds:
        speed, spread = variant.cost.gain, None
    else:
        found = speeds[variant.label].speedup if variant.label in speeds else None
        speed, spread = (np.nan, None) if variant.config.routes and found is None else (1.0, None)
        if found is not None:
            speed, spread = (np.nan if found[0] is None else found[0]), found[1:]
    return Point(variant.label, tuple(variant.values().values()), variant.top1(), evaluations, variant.forward, speed, spread)


def _speed_table(sweep: Sweep, speeds: Speeds) -> Table:
    head = ["method", "GMACs a picture", "ideal gain, routed step", "ideal gain, whole run"]
    if speeds:
        head += ["measured images/s", "measured gain, routed step", "measured gain, whole run", "peak memory of a step, MiB"]
    rows = []
    for variant in sweep.variants:
        forwards = variant.cost.forwards
        macs = forwards.get("routed", forwards["dense"]).macs / 1e9
        row = [variant.label, f"{macs:.4f}", *(f"{gain:.2f} ×" if variant.config.routes else "" for gain in (variant.cost.gain, variant.cost.run_gain))]
        rows.append(tuple(row + (_measured(variant, speeds.get(variant.label)) if speeds else [])))
    return Table(tuple(head), tuple(rows))


def _measured(variant: Variant, speed: Speed | None) -> list[str]:
    if speed is None:
        return ["not measured", "", "", ""]
    if speed.speedup is None:
        return [f"{speed.images_per_s(False):.0f}", "", "", f"{speed.memory / 2**20:.0f}"]
    value, low, high = speed.speedup
    memory = f"{speed.memory / 2**20:.0f} ({speed.memory / speed.dense_memory:.2f} ×)"
    if value is None:
        return ["", f"too noisy to say ({low:.2f} to {high:.2f})", "", memory]
    whole = [run_gain(variant.config, gain) for gain in (value, low, high)]
    return [
        f"{speed.images_per_s(True):.0f}", f"{value:.2f} × ({low:.2f} to {high:.2f})",
        f"{whole[0]:.2f} × ({whole[1]:.2f} to {whole[2]:.2f})", memory,
    ]  # fmt: skip


def _about_speed(bench: dict, speeds: Speeds) -> list[str]:
    ideal = (
        "ideal gain: training throughput against the same network trained dense, if it followed the multiply-accumulates; whole run: with "
        "the dense epochs of warm-up and cool-down counted"
    )
    if not speeds:
        return [ideal, "no speed was measured yet: `skipvit report FOLDER --bench` does, side by side. The training's own logs are no measurement."]
    groups = bench["groups"]
    return [
        ideal,
        f"measured: whole training steps on {groups[0]['device']}, {bench['cores']} cores, batch {groups[0]['variants'][0]['batch_size']}; every "
        f"method in a process of its own, one at a time, in a new order in each of {bench['rounds']} rounds; medians and 95 % intervals of "
        f"the ratios within rounds (as `skipvit bench`); a ratio whose interval is wider than {bench['widest']:g} of it is not quoted",
        "measured whole run: the dense epochs at the dense speed, the others at the routed one; without compilation, evaluation and reading pictures",
        "memory: the peak during a step, less what the process had before its network was built",
    ]


def _front(points: list[Point], measured: bool) -> Picture:
    label = "training speed of a routed step against dense, " + ("measured, ×" if measured else "ideal by multiply-accumulates, ×")
    note = "" if measured else " The speeds are ideal, not measured."
    return Picture("front", front_figure(points, label), "Accuracy against training speed; filled where it is the forward that counts." + note)


def _time_blocks(sweep: Sweep, speeds: Speeds) -> list[Block]:
    """Accuracy against time; the time to the target, if the plan has one."""
    if not speeds:
        return []
    curves = {v.label: _curve(v, speeds[v.label]) for v in sweep.variants if v.label in speeds and _times(v, speeds[v.label])}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return []
    result: list[Block] = [Heading("Accuracy over training time")]
    if sweep.target is not None:
        rows = [_target_row(sweep, variant, speeds.get(variant.label)) for variant in sweep.variants]
        result.append(Table(("method", f"seeds that reach {sweep.target:g} %", "epochs until then", "seconds until then"), tuple(rows)))
    result.append(Text((
        "time: epochs × measured seconds of an epoch's steps, dense or routed as each epoch was trained, warm-up counted; it contains no "
        "compilation, no evaluation and no reading of pictures",
        "epochs until the target: the first evaluation that reached it, so up to the distance of evaluations too many; only where all seeds reach it",
    ), bullets=True))  # fmt: skip
    caption = "Top-1 of the forward that counts at each evaluation, against measured training time."
    result.append(Picture("time", time_figure(curves, "s", sweep.target), caption))
    return result


def _times(variant: Variant, speed: Speed) -> bool:
    """Whether an epoch's seconds are known."""
    return not variant.config.routes or (speed.speedup is not None and speed.speedup[0] is not None)


def _seconds(variant: Variant, speed: Speed, seed: int, epochs: int) -> float:
    return seconds_until(variant.runs[seed].config, variant.runs[seed].epochs[-1]["steps"], speed, epochs)


def _curve(variant: Variant, speed: Speed) -> list[tuple[float, Mean]]:
    by_epoch: dict[int, list[float]] = {}
    for run in variant.runs.values():
        for epoch, top1 in run.curve():
            by_epoch.setdefault(epoch, []).append(top1)
    seed = min(variant.runs)
    return [(_seconds(variant, speed, seed, epoch), mean_of(values)) for epoch, values in sorted(by_epoch.items())]


def _target_row(sweep: Sweep, variant: Variant, speed: Speed | None) -> tuple[str, ...]:
    reached = {seed: run.reaches(sweep.target) for seed, run in variant.runs.items()}
    found = {seed: epochs for seed, epochs in reached.items() if epochs is not None}
    head = variant.label, f"{len(found)} of {len(reached)}"
    if len(found) < len(reached):
        return *head, "–", "–"
    epochs = mean_of(list(found.values()))
    if speed is None or not _times(variant, speed):
        return *head, interval(epochs, digits=1), "too noisy to say" if speed else "not measured"
    return *head, interval(epochs, digits=1), interval(mean_of([_seconds(variant, speed, s, e) for s, e in found.items()]), digits=1)


def _grids(sweep: Sweep) -> list[list[Block]]:
    """A curve for each key that methods vary over numbers."""
    series: dict[str, dict[str, list[tuple[float, Mean]]]] = {}
    for variant in sweep.variants:
        numbers = {key: value for key, value in variant.point.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        if len(numbers) == 1:
            ((key, value),) = numbers.items()
            series.setdefault(key, {}).setdefault(f"{variant.method} {variant.cell}".strip(), []).append((value, variant.top1()))
    result = []
    for key, methods in series.items():
        methods = {label: points for label, points in methods.items() if len(points) > 1}
        if methods:
            base = sweep.baseline_of(sweep.variants[0])
            name = "curve_" + "".join(c if c.isalnum() else "_" for c in key)
            caption = f"Top-1 of the forward that counts over {key}; grey: {sweep.baseline}. Mean and 95 % interval."
            figure = grid_figure(key, methods, base.top1() if base is not None and not base.point else None)
            result.append([Heading(f"Accuracy over {key}"), Picture(name, figure, caption)])
    return result


def _matrix_blocks(sweep: Sweep, matrix: dict[str, dict[int, float]]) -> list[Block]:
    """Trained {dense, with routes} x evaluated {dense, routed}."""
    rows, figures = [], {}
    for variant in sweep.variants:
        base = sweep.baseline_of(variant)
        if not variant.config.routes or base is None or base.config.routes or base.config.model != variant.config.model:
            continue
        through = matrix.get(variant.label)
        cells = [base.top1(), mean_of(list(through.values())) if through else None, variant.top1("dense"), variant.top1("routed")]
        rows.append((variant.label, *(interval(cell) for cell in cells)))
        figures[variant.label] = np.array([np.nan if cell is None else cell.mean for cell in cells]).reshape(2, 2)
    if not rows:
        return []
    head = ("routes of", "trained dense, evaluated dense", "trained dense, evaluated routed", "trained with routes, evaluated dense", "trained with routes, evaluated routed")
    result: list[Block] = [Heading("Trained and evaluated, dense and routed"), Table(head, tuple(rows))]
    if not matrix:
        result.append(Text(("Dense weights along the routes were not evaluated: `skipvit report FOLDER --weights` does.",)))
    result.append(Picture("matrix", matrix_figure(figures), "Top-1 in percent: rows as trained, columns as evaluated."))
    return result


def _kept_blocks(sweep: Sweep, kept: dict[str, tuple]) -> list[Block]:
    result: list[Block] = []
    by_label = {variant.label: variant for variant in sweep.variants}
    for label in [label for label in kept if label in by_label][:MOST_PICTURES]:
        model = by_label[label].config.model
        images, epochs = kept[label]
        figure = kept_over_training(images, epochs, model.image_size // model.patch)
        name = "kept_" + "".join(c if c.isalnum() else "_" for c in label)
        result.append(Picture(name, figure, f"{label}: what its first route keeps of validation pictures in the course of training, first seed."))
    return [Heading("Kept patches over training"), *result] if result else []


def _about_runs(sweep: Sweep) -> list[str]:
    about: dict[str, Any] = sweep.versions()
    names = ("skipvit", "mindspore", "numpy", "python", "machine")
    lines = [f"runs, each with its configuration and log: {sweep.folder}"]
    if about:
        lines.append("first run: " + ", ".join(f"{name} {about[name]}" for name in names if name in about) + f"; begun {about.get('started', '')}")
    lines += [f"{name} failed: {why}" for name, why in sweep.failed.items()]
    return lines
