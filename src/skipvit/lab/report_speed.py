"""What a report says about speed, memory and training time."""

from __future__ import annotations

import numpy as np

from skipvit.lab.figures import Point, front_figure, time_figure
from skipvit.lab.intervals import Mean, interval, mean_of
from skipvit.lab.page import Block, Heading, Plot, Table, Text
from skipvit.lab.report_bench import AT_ONCE, Speed, run_gain, seconds_until
from skipvit.lab.report_runs import Sweep, Variant

Speeds = dict[str, Speed]


def speed_blocks(sweep: Sweep, bench: dict, speeds: Speeds) -> list[Block]:
    """Speed and memory, the accuracy–speed front, accuracy over training time.

    Args:
        bench, speeds: what `report_bench.read` found, or nothing.
    """
    points = [point_of(variant, speeds) for variant in sweep.variants]
    notes = Text(tuple(_about_speed(bench, speeds)), bullets=True)
    front = _front(points, bool(speeds))
    return [Heading("Speed and memory"), _speed_table(sweep, speeds), notes, front, *_time_blocks(sweep, speeds)]


def point_of(variant: Variant, speeds: Speeds) -> Point:
    """A variant as figures show it. Its speed is that of its whole run, dense epochs counted; ideal if none was measured, NaN if it
    cannot be quoted."""
    evaluations = {}
    for forward in ("dense", "routed"):
        mean = variant.top1(forward + "_ema" * variant.forward.endswith("_ema"))
        if mean is not None:
            evaluations[forward] = mean
    if not speeds:
        speed, spread = variant.cost.run_gain, None
    else:
        found = speeds[variant.label].speedup if variant.label in speeds else None
        speed, spread = (np.nan, None) if variant.config.routes and found is None else (1.0, None)
        if found is not None:
            speed, *spread = (np.nan if gain is None else run_gain(variant.config, gain) for gain in found)
    return Point(
        variant.label, tuple(variant.values().values()), variant.top1(), evaluations, variant.forward, speed, spread
    )


def _speed_table(sweep: Sweep, speeds: Speeds) -> Table:
    head = ["method", "GMACs an image", "ideal gain, routed step", "ideal gain, whole run"]
    if speeds:
        head += [
            "measured images/s",
            "measured gain, routed step",
            "measured gain, whole run",
            "peak memory of a step, MiB",
        ]
    rows = []
    for variant in sweep.variants:
        forwards = variant.cost.forwards
        macs = forwards.get("routed", forwards["dense"]).macs / 1e9
        gains = [
            f"{gain:.2f} ×" if variant.config.routes else "" for gain in (variant.cost.gain, variant.cost.run_gain)
        ]
        row = [variant.label, f"{macs:.4f}", *gains]
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
        f"{speed.images_per_s(True):.0f}",
        f"{value:.2f} × ({low:.2f} to {high:.2f})",
        f"{whole[0]:.2f} × ({whole[1]:.2f} to {whole[2]:.2f})",
        memory,
    ]


def _about_speed(bench: dict, speeds: Speeds) -> list[str]:
    ideal = (
        "ideal gain: training throughput against the same network trained dense, if it followed the multiply-accumulates; whole "
        "run: with the dense epochs of warm-up and cool-down counted"
    )
    if not speeds:
        how = "`skipvit report FOLDER --bench` does, side by side. The training's own logs are no measurement."
        return [ideal, f"no speed was measured yet: {how}"]
    group, rounds, widest = bench["groups"][0], bench["rounds"], bench["widest"]
    return [
        ideal,
        f"measured: whole training steps on {group['device']}, {bench['cores']} core{'s' * (bench['cores'] != 1)} (load before: "
        f"{bench['load_before']:.1f}), batch {group['variants'][0]['batch_size']}; every method in a process of its own, beside the dense one and up to {AT_ONCE - 1} "
        f"others, one at a time, in a new order in each of {rounds} rounds; medians and 95 % intervals of the ratios within rounds "
        f"(as `skipvit bench`); a ratio whose interval is wider than {widest:g} of it is not quoted",
        "images/s and seconds: the dense step's median, and the others by their ratios to it",
        "measured whole run: the dense epochs at the dense speed, the others at the routed one; without compilation, evaluation and "
        "reading images",
        "memory: the peak during a step, less what the process had before its network was built",
    ]


def _front(points: list[Point], measured: bool) -> Plot:
    how = "measured" if measured else "ideal by multiply-accumulates"
    label = f"training speed of the whole run against dense, its dense epochs counted, {how}, ×"
    missing = [point.label for point in points if np.isnan(point.speed)]
    note = "" if measured else " The speeds are ideal, not measured."
    note += f" Without a speed that could be quoted, and so not here: {', '.join(missing)}." * bool(missing)
    caption = "Accuracy against training speed; filled where it is the forward that counts." + note
    return Plot("front", front_figure(points, label), caption)


def _time_blocks(sweep: Sweep, speeds: Speeds) -> list[Block]:
    """Accuracy against time; the time to the target, if the plan has one."""
    if not speeds:
        return []
    curves = {
        v.label: _curve(v, speeds[v.label]) for v in sweep.variants if v.label in speeds and _times(v, speeds[v.label])
    }
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return []
    result: list[Block] = [Heading("Accuracy over training time")]
    if sweep.target is not None:
        rows = [_target_row(sweep, variant, speeds.get(variant.label)) for variant in sweep.variants]
        head = ("method", f"seeds that reach {sweep.target:g} %", "epochs until then", "seconds until then")
        result.append(Table(head, tuple(rows)))
    result.append(
        Text(
            (
                "time: epochs × measured seconds of an epoch's steps, dense or routed as each epoch was trained, warm-up counted; it contains "
                "no compilation, no evaluation and no reading of images",
                "epochs until the target: the first evaluation that reached it, so up to the distance of evaluations too many; only where all "
                "seeds reach it",
            ),
            bullets=True,
        )
    )
    caption = "Top-1 of the forward that counts at each evaluation, against measured training time."
    result.append(Plot("time", time_figure(curves, sweep.target), caption))
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
    seconds = mean_of([_seconds(variant, speed, seed, epochs) for seed, epochs in found.items()])
    return *head, interval(epochs, digits=1), interval(seconds, digits=1)
