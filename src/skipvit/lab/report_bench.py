"""Training speed and memory of a sweep's methods, measured side by side with the machinery of `skipvit bench`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass

from skipvit.config.config import Config
from skipvit.config.groups import OptimConfig
from skipvit.lab.report_runs import Sweep, Variant
from skipvit.measure.bench import variants as bench
from skipvit.measure.bench.result import compared
from skipvit.util.cores import cores

AT_ONCE = 5  # routed forwards in one interleaved run, beside the dense one: each is a process that holds its memory
FILE = "bench.json"

# What a training step's time does not depend on.
_OTHER: dict = {group: True for group in ("name", "seed", "phases", "eval", "checkpoint", "log")} | {
    "data": {"path", "kind", "train_size", "val_size", "eval_crop", "workers", "broken_share", "sink"},
    "optim": set(OptimConfig.model_fields) - {"accumulate", "clip_norm", "train"},
}


def step_of(config: Config, routed: bool) -> str:
    """What decides about the time of a training step, as text."""
    values = config.model_dump(mode="json", exclude=_OTHER)
    return json.dumps(values if routed else values | {"routes": []}, sort_keys=True)


@dataclass(frozen=True)
class Speed:
    """A variant's training, as measured; seconds are of a step, dense and (with routes) routed. All variants of a network have
    the dense seconds of its first interleaved run; the routed ones follow from the ratio, where it can be quoted.

    Attributes:
        speedup: images/s routed against dense, median and 95 % interval; None without routes. The median is None if it is too
            uncertain to be quoted.
        memory: peak bytes of a step; memory_ratio against dense.
    """

    dense_s: float
    routed_s: float | None
    speedup: tuple[float | None, float, float] | None
    dense_memory: int
    memory: int
    batch: int

    def images_per_s(self, routed: bool) -> float:
        return self.batch / (self.routed_s if routed else self.dense_s)


def measure(sweep: Sweep, options: argparse.Namespace) -> None:
    """Time a training step of every distinct network and route of a sweep, and write `bench.json` into its folder.

    All routes of one network are timed against its dense forward in interleaved runs, `AT_ONCE` at a time.

    Raises:
        UsageError, RunError: as `skipvit bench`.
    """
    found: dict = {"rounds": options.rounds, "widest": options.widest, "groups": []}
    found |= {"cores": cores(), "load_before": os.getloadavg()[0]}
    for network, variants in groups(sweep).items():
        routed = [variant for variant in variants if variant.config.routes]
        for first in range(0, max(1, len(routed)), AT_ONCE):
            chosen = routed[first : first + AT_ONCE]
            base = bench.Variant("dense", variants[0].config, "dense")
            others = [bench.Variant(variant.label, variant.config, "routed") for variant in chosen]
            rows = compared(bench.measure([base, *others], options.rounds), [], options.widest)
            steps = [step_of(variant.config, True) for variant in chosen]
            found["groups"].append({"network": network, "steps": steps, **rows})
            (sweep.folder / FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def groups(sweep: Sweep) -> dict[str, list[Variant]]:
    """Variants by network, each distinct step once."""
    result: dict[str, dict[str, Variant]] = {}
    for variant in sweep.variants:
        steps = result.setdefault(step_of(variant.config, False), {})
        steps.setdefault(step_of(variant.config, True), variant)
    return {network: list(steps.values()) for network, steps in result.items()}


def read(sweep: Sweep) -> tuple[dict, dict[str, Speed]] | None:
    """What `measure` wrote: all of it, and by label the speed of the variants that it covers; None if it was not measured."""
    try:
        found = json.loads((sweep.folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    speeds = {}
    for variant in sweep.variants:
        network, step = step_of(variant.config, False), step_of(variant.config, True)
        groups_ = [group for group in found["groups"] if group["network"] == network]
        rows = [row for group in groups_ for known, row in zip(group["steps"], group["variants"][1:]) if known == step]
        if groups_ and (rows or not variant.config.routes):
            speeds[variant.label] = _speed(groups_[0]["variants"][0], rows[0] if variant.config.routes else None)
    return found, speeds


def _speed(dense: dict, routed: dict | None) -> Speed:
    dense_s, memory, batch = dense["step"]["median_s"], dense["peak_memory_bytes"], dense["batch_size"]
    if routed is None:
        return Speed(dense_s, None, None, memory, memory, batch)
    step = routed["step"]
    speedup = (step["speedup"], *step["speedup_interval"])
    routed_s = dense_s / step["speedup"] if step["speedup"] else step["median_s"]
    return Speed(dense_s, routed_s, speedup, memory, routed["peak_memory_bytes"], batch)


def run_gain(config: Config, speedup: float) -> float:
    """How many times as fast as dense a whole run trains, dense epochs counted, if its routed steps are so many times as fast."""
    warmup, routed, cooldown = config.phase_lengths()
    return config.optim.epochs / (warmup + cooldown + routed / speedup)


def seconds_until(config: Config, steps_per_epoch: int, speed: Speed, epochs: int) -> float:
    """Seconds of training steps in the first epochs of a run; no compilation, no evaluation, no data."""
    warmup, routed, _ = config.phase_lengths()
    routed_epochs = min(max(0, epochs - warmup), routed)
    dense_epochs = epochs - routed_epochs
    return steps_per_epoch * (dense_epochs * speed.dense_s + routed_epochs * (speed.routed_s or 0.0))
