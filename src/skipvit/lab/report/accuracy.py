"""What a report says about accuracy: over seeds, against the baseline, and over what methods vary."""

from __future__ import annotations

import re
from typing import Any

from skipvit.lab.intervals import paired
from skipvit.lab.report.figures import Curves, curves_figure, seeds_figure
from skipvit.lab.report.page import Block, Heading, Plot, Table, Text
from skipvit.lab.study import Arm, Study
from skipvit.lab.sweep import SOURCE
from skipvit.routing.program import routed_stage
from skipvit.util.files import read_json
from skipvit.util.text import counted

MOST = 1e12  # numbers that a figure still shows
HOW_TO_READ = (
    "± is half the 95 % interval of the mean over seeds, by Student's t. Differences are taken within seeds, which "
    "share first weights, images and their order (not the flips and crops where one draws tokens at random and the "
    "other does not), so their intervals can be narrower than those of the accuracies.",
    "The forward that counts is the one that the last phase trained, unless the method says otherwise. A network that "
    "was trained routed is not the same network evaluated dense.",
    "Would have been seen: the smallest true difference that would leave zero out of the interval in four of five "
    "repetitions with so many seeds and their spread. Of smaller ones these runs say nothing.",
    "Methods stand in the order of the plan, which is no ranking. Where an interval covers zero, these runs cannot "
    "tell the method from the baseline, which does not show that they are equal. Of many comparisons one in twenty "
    "may leave zero out by chance: no interval is widened for their number.",
)


def about(study: Study) -> Text:
    """What was trained."""
    arm, planned = study.arms[0], len(study.about.runs)
    config, data = arm.config, arm.config.data
    images = f"{data.train_size} built-in images of shapes" if data.kind == "shapes" else f"{data.kind} {data.path}"
    seeds = sorted({seed for arm in study.arms for seed in arm.runs})
    of_seeds = f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
    finished = f"{planned - len(study.missing)} of {planned} runs are finished"
    lines = [
        f"{counted(len(study.arms), 'method')}, {of_seeds}; {finished}. All are compared to {study.about.baseline}, "
        "seed by seed.",
        f"The first one's configuration: {config.model.name}, {arm.cost.parameters / 1e6:.2f} M parameters, "
        f"{config.model.spec().depth} blocks, {routed_stage(config.model.spec()).layout.patches} patches; "
        f"{config.optim.epochs} epochs of {images}, batch {data.batch_size}. What holds for small networks and little "
        "data need not hold for others.",
    ]
    if study.missing:
        lines.append(f"Not finished, and left out: {', '.join(study.missing)}.")
    return Text(lines)


def accuracy_blocks(study: Study) -> list[Block]:
    """The table, how to read it, every seed in a figure."""
    forwards = list(dict.fromkeys(name for arm in study.arms for name in arm.evaluations()))
    head = ["method", "seeds", "forward that counts", "top-1, %", *(f"evaluated {name}" for name in forwards)]
    rows = []
    for arm in study.arms:
        found = arm.evaluations()
        evaluated = [found[name].text() if name in found else "–" for name in forwards]
        row = [arm.label, str(len(arm.runs)), arm.forward, arm.top1.text(), *evaluated]
        rows.append([*row, *difference(study, arm)])
    last = (f"difference to {study.about.baseline}, points", "would have been seen, points", "")
    table = Table([*head, *last], rows)
    single = len({arm.cell for arm in study.arms}) == 1
    figure = seeds_figure(study.arms, study.baseline_of(study.arms[0]) if single else None)
    seeds = Plot("seeds", figure, "Every seed, the mean and its 95 % interval, in the order of the plan.")
    return [Heading("Accuracy"), table, Text(HOW_TO_READ, bullets=True), seeds]


def difference(study: Study, arm: Arm) -> tuple[str, str, str]:
    """To the baseline, the smallest one that so many seeds would have shown, and what may be said of it."""
    baseline, name = study.baseline_of(arm), study.about.baseline
    if baseline is arm:
        return "", "", "baseline"
    found = paired(arm.values(), baseline.values()) if baseline else None
    if found is None:
        return "", "", "no seed in common with the baseline"
    said = {"same": f"not distinguishable from {name}", None: "one seed: nothing can be said"}
    if found.half is not None and found.half < 1e-9 < abs(found.mean):
        return found.text(signed=True), "–", "the same in every seed, by chance: its spread is not known"
    seen = "–" if found.detectable is None else f"{found.detectable:.2f}"
    return found.text(signed=True), seen, said.get(found.side, f"{found.side} {name}")


def grid_blocks(study: Study) -> list[Block]:
    """A curve for each key that methods vary over numbers."""
    series: dict[str, Curves] = {}
    for arm in study.arms:
        numbers = [number for number in map(_number, arm.point.items()) if number]
        if len(numbers) == 1:
            curves, label = series.setdefault(numbers[0][0], {}), f"{arm.method} {arm.cell}".strip()
            curves.setdefault(label, []).append((numbers[0][1], arm.top1))
    base, result = study.baseline_of(study.arms[0]), list[Block]()
    band = base.top1 if base is not None and not base.point else None
    for key, curves in series.items():
        curves = {label: points for label, points in curves.items() if len(points) > 1}
        if curves:
            caption = (
                f"Top-1 of the forward that counts over {key}, mean and 95 % interval; grey: {study.about.baseline}."
            )
            figure = curves_figure(curves, key, band=band)
            result += [Heading(f"Accuracy over {key}"), Plot(f"curve_{key}", figure, caption)]
    return result


def _number(of_grid: tuple[str, Any]) -> tuple[str, float] | None:
    """A grid's key and value if it is a number, or a share such as `5%`, of which the key then says so."""
    key, value = of_grid
    if type(value) in (int, float) and abs(value) < MOST:
        return key, value
    share = re.fullmatch(r"(\d{1,3}(\.\d+)?) ?%", str(value))
    return (f"{key}, %", float(share[1])) if share else None


def about_runs(study: Study, left_out: list[str]) -> list[Block]:
    """Where the runs are, with what they were trained, what failed, which measurements are not quoted."""
    runs = [run.run for arm in study.arms for run in arm.runs.values()]
    lines = [f"`{study.about.command}`"] if study.about.command else []
    lines.append(f"runs, each with its configuration and log: {study.folder}")
    starts = read_json(runs[0].path / "versions.json")
    if isinstance(starts, list) and starts and isinstance(starts[-1], dict):
        known = [f"{name} {starts[-1].get(name)}" for name in ("skipvit", "mindspore", "numpy", "python", "started")]
        lines.append(f"first run: {', '.join(known)}")
    taken = [run.path.name for run in runs if (run.path / SOURCE).exists()]
    if taken:
        lines.append(f"trained in another sweep, from which they were copied (their {SOURCE}): {', '.join(taken)}")
    lines += [f"{name} failed: {why}" for name, why in study.failed.items()]
    return [Heading("The runs"), Text([*lines, *left_out], bullets=True)]
