"""What a report says about speed, memory and training time, measured side by side as `skipvit bench` does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field

from skipvit.config.config import Config
from skipvit.config.groups import OptimConfig
from skipvit.lab.intervals import Mean, mean_of
from skipvit.lab.plan import forward_of
from skipvit.lab.report.figures import Gain, curves_figure, front_figure
from skipvit.lab.report.origin import load, save
from skipvit.lab.report.page import Block, Heading, Plot, Table, Text
from skipvit.lab.study import Arm, Outcome, Study
from skipvit.measure.bench.result import compared
from skipvit.measure.bench.variants import Variant, begun
from skipvit.measure.bench.variants import measure as take_turns
from skipvit.util.text import counted

AT_ONCE = 5  # forwards in one interleaved run, beside the dense one: each is a process that holds its memory
FILE = "bench.json"
# What a training step's time does not depend on. Model, routes and phases are replaced by what they come to.
_OTHER: dict = {group: True for group in ("name", "seed", "model", "routes", "phases", "eval", "checkpoint", "log")} | {
    "data": {"path", "kind", "train_size", "val_size", "eval_crop", "workers", "broken_share", "sink"},
    "optim": set(OptimConfig.model_fields) - {"accumulate", "clip_norm", "train"},
}
IDEAL = (
    "ideal gain: training throughput against the same network trained dense, if it followed the multiply-accumulates; "
    "whole run: all its epochs counted, dense ones too",
)
UNKNOWN = (
    "no speed was measured yet: `skipvit report FOLDER --bench` does, side by side. The training's own logs are no "
    "measurement.",
)
MEASURED = (
    "images/s and seconds: the dense step's median, and the others by their ratios to it",
    "measured whole run: each epoch at the speed of the forward that it trains; no compilation, evaluation or reading",
    "memory: the peak during a step, less what the process had before its network was built",
)
TIME = (
    "time: epochs × measured seconds of an epoch's steps, by the forward that each epoch trained; it contains no "
    "compilation, no evaluation and no reading of images",
    "epochs until the target: the first evaluation that reached it, so up to the distance of evaluations too many; "
    "only where all seeds reach it",
)


def step_of(config: Config, forward: str) -> str:
    """What decides about the time of a training step, as text."""
    values = config.model_dump(mode="json", exclude=_OTHER)
    return json.dumps(values | {"model": asdict(config.model.spec()), "forward": forward_of(config, forward)})


@dataclass(frozen=True)
class Step:
    """A training step of a forward, as measured.

    Attributes:
        images: of a step.
        seconds: of the dense step the median, of the others by their gain.
        memory: peak bytes.
        gain: images/s against dense, with the ends of the 95 % interval.
        sure: whether the gain can be quoted.
    """

    images: int
    seconds: float
    memory: int
    gain: Gain = (1.0, 1.0, 1.0)
    sure: bool = True


Positive = Annotated[float, Field(gt=0, lt=1e12)]


class Timed(BaseModel):
    """A step in `bench.json`; the dense one has no speed-up."""

    median_s: Positive
    speedup: Positive | None = None
    speedup_interval: tuple[Positive, Positive] | None = None


class Row(BaseModel):
    batch_size: int = Field(gt=0)
    step: Timed
    peak_memory_bytes: int = Field(ge=0)


class Group(BaseModel):
    """A network's dense step and others that were timed with it."""

    network: str
    device: str
    steps: list[str]
    variants: list[Row] = Field(min_length=1)


class BenchFile(BaseModel):
    """What a report reads of `bench.json`."""

    date: str
    cores: int
    load_before: float = Field(ge=0, lt=1e12)
    rounds: int
    widest: Positive
    groups: list[Group] = Field(min_length=1)


Steps = dict[str, Step]  # by forward, of those that an arm trains and of the dense one, which is the first
Speeds = dict[str, Steps]  # by an arm's label


def measure(study: Study, rounds: int = 30, widest: float = 0.05) -> None:
    """Time a training step of every distinct network and forward of a study, and write `bench.json` into its folder.

    All forwards of one network are timed against its dense one in interleaved runs, `AT_ONCE` at a time.

    Args:
        rounds: turns of each.
        widest: 95 % interval, as a share, with which a ratio is still quoted.

    Raises:
        UsageError, RunError: as `skipvit bench`.
    """
    found: dict[str, Any] = begun("training", rounds, widest) | {"groups": []}
    for network, steps in groups(study).items():
        (_, (first, _)), *others = steps.items()
        for i in range(0, max(1, len(others)), AT_ONCE):
            chosen = others[i : i + AT_ONCE]
            timed = [Variant("dense", first.config, "dense")]
            timed += [Variant(arm.label, arm.config, forward) for _, (arm, forward) in chosen]
            rows = compared(take_turns(timed, rounds), [], widest)
            found["groups"].append({"network": network, "steps": [step for step, _ in chosen], **rows})
            save(study.folder / FILE, rows["device"], found)


def groups(study: Study) -> dict[str, dict[str, tuple[Arm, str]]]:
    """By network, each distinct step once, with the first arm that takes it and the forward; the dense one first."""
    result: dict[str, dict[str, tuple[Arm, str]]] = {}
    for arm in study.arms:
        network = step_of(arm.config, "dense")
        for forward in ("dense", *arm.others):
            result.setdefault(network, {}).setdefault(step_of(arm.config, forward), (arm, forward))
    return result


def read(study: Study, device: str) -> tuple[tuple[str, ...], Speeds, list[str]]:
    """What `measure` wrote: lines about it, by label the steps of the arms that it covers, why it is left out if it
    is."""

    def parse(content: dict[str, Any]) -> tuple[tuple[str, ...], Speeds]:
        bench = BenchFile.model_validate(content).model_dump()
        found = {arm.label: _steps(bench, arm) for arm in study.arms}
        return (*IDEAL, _about(bench), *MEASURED), {label: steps for label, steps in found.items() if steps}

    found, left_out = load(study.folder / FILE, device, "--bench", parse)
    notes, speeds = found or ((*IDEAL, *UNKNOWN), {})
    return notes, speeds, left_out


def _steps(bench: dict[str, Any], arm: Arm) -> Steps:
    """Empty if not all forwards that it trains are there. All arms of a network have the dense step of its first
    run."""
    network = step_of(arm.config, "dense")
    known = [group for group in bench["groups"] if group["network"] == network]
    rows = {step: row for group in known for step, row in zip(group["steps"], group["variants"][1:])}
    wanted = {forward: step_of(arm.config, forward) for forward in arm.others}
    if not known or not all(step in rows for step in wanted.values()):
        return {}
    dense = known[0]["variants"][0]
    images, dense_s = dense["batch_size"], dense["step"]["median_s"]
    result = {"dense": Step(images, dense_s, dense["peak_memory_bytes"])}
    for forward, step in wanted.items():
        row = rows[step]
        (low, high), median = row["step"]["speedup_interval"], row["step"]["speedup"]
        gain = median or (low + high) / 2, low, high
        result[forward] = Step(images, dense_s / gain[0], row["peak_memory_bytes"], gain, median is not None)
    return result


def _about(bench: dict[str, Any]) -> str:
    group, machine = bench["groups"][0], f"{counted(bench['cores'], 'core')} (load before: {bench['load_before']:.1f})"
    return (
        f"measured on {bench['date']}: whole training steps on {group['device']}, {machine}, batch "
        f"{group['variants'][0]['batch_size']}; every method in a process of its own, beside the dense one and up to "
        f"{AT_ONCE - 1} others, one at a time, in a new order in each of {bench['rounds']} rounds; medians and 95 % "
        f"intervals of the ratios within rounds (as `skipvit bench`); a ratio whose interval is wider than "
        f"{bench['widest']:g} of it is not quoted"
    )


def run_gain(config: Config, steps: Steps) -> Gain:
    """How many times as fast as dense a whole run trains, all its epochs counted, with the ends of the interval."""
    phases = config.resolved_phases()
    times = [sum(phase.epochs / steps[phase.forward].gain[i] for phase in phases) for i in range(3)]
    value, low, high = (config.optim.epochs / time for time in times)
    return value, low, high


def seconds_until(run: Outcome, steps: Steps, epochs: int) -> float:
    """Seconds of training steps in the first epochs of a run; no compilation, no evaluation, no data."""
    phases = [phase for phase in run.run.config.resolved_phases() if phase.first < epochs]
    return run.steps * sum(steps[p.forward].seconds * (min(epochs, p.end) - p.first) for p in phases)


def sure(steps: Steps | None) -> bool:
    """Whether all its speeds can be quoted."""
    return bool(steps) and all(step.sure for step in steps.values())


def gains_of(study: Study, speeds: Speeds) -> dict[str, Gain]:
    """Of whole runs, by label: ideal if none was measured; without those that cannot be quoted."""
    if not speeds:
        ideal = {arm.label: arm.cost.run_gain for arm in study.arms}
        return {label: (gain, gain, gain) for label, gain in ideal.items()}
    known = [arm for arm in study.arms if sure(speeds.get(arm.label))]
    return {arm.label: run_gain(arm.config, speeds[arm.label]) for arm in known}


def speed_blocks(study: Study, speeds: Speeds, notes: tuple[str, ...]) -> list[Block]:
    """Speed and memory, the accuracy-speed front, accuracy over training time."""
    head = ["method", "GMACs an image", "ideal gain of a step", "ideal gain, whole run"]
    if speeds:
        head += ["measured images/s", "measured gain of a step", "measured gain, whole run"]
        head += ["peak memory of a step, MiB"]
    rows = [_ideal(arm) + (_measured(arm, speeds.get(arm.label)) if speeds else []) for arm in study.arms]
    gains, measured = gains_of(study, speeds), "measured" if speeds else "ideal by multiply-accumulates"
    label = f"training speed of the whole run against dense, its dense epochs counted, {measured}, ×"
    caption = "Accuracy against training speed; filled where it is the forward that counts."
    if not speeds:
        caption += " The speeds are ideal, not measured."
    missing = ", ".join(arm.label for arm in study.arms if arm.label not in gains)
    if missing:
        caption += f" Without a speed that could be quoted, and so not here: {missing}."
    front = Plot("front", front_figure(study.arms, gains, label), caption)
    return [Heading("Speed and memory"), Table(head, rows), Text(notes, True), front, *_time_blocks(study, speeds)]


def _ideal(arm: Arm) -> list[str]:
    """GMACs and gain of a step, by the forwards that it trains but for the dense one; gain of the whole run."""
    trained = [arm.cost.forwards[name] for name in arm.others or ["dense"]]
    macs, gains = (f"{f.macs / 1e9:.4f}" for f in trained), (f"{f.gain:.2f} ×" for f in trained if arm.others)
    return [arm.label, "; ".join(macs), "; ".join(gains), f"{arm.cost.run_gain:.2f} ×" if arm.others else ""]


def _measured(arm: Arm, steps: Steps | None) -> list[str]:
    """Images/s, gain of a step, gain of the whole run, memory; of several forwards in the order in which they train."""
    if not steps:
        return ["not measured", "", "", ""]
    dense, *others = steps.values()
    if not others:
        return [f"{dense.images / dense.seconds:.0f}", "", "", f"{dense.memory / 2**20:.0f}"]
    images = [f"{step.images / step.seconds:.0f}" for step in others if sure(steps)]
    gains = [_gain(step.gain, step.sure) for step in others]
    memory = [f"{step.memory / 2**20:.0f} ({step.memory / dense.memory:.2f} ×)" for step in others]
    whole = _gain(run_gain(arm.config, steps), True) if sure(steps) else ""
    return ["; ".join(images), "; ".join(gains), whole, "; ".join(memory)]


def _gain(gain: Gain, sure: bool) -> str:
    value, low, high = gain
    return f"{value:.2f} × ({low:.2f} to {high:.2f})" if sure else f"too noisy to say ({low:.2f} to {high:.2f})"


def _time_blocks(study: Study, speeds: Speeds) -> list[Block]:
    """Accuracy against time; the time to the target, if the plan has one."""
    curves = {arm.label: _curve(arm, speeds[arm.label]) for arm in study.arms if sure(speeds.get(arm.label))}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return []
    result: list[Block] = [Heading("Accuracy over training time")]
    target = study.about.target
    if target is not None:
        head = ("method", f"seeds that reach {target:g} %", "epochs until then", "seconds until then")
        result.append(Table(head, [_target_row(target, arm, speeds.get(arm.label)) for arm in study.arms]))
    caption = "Top-1 of the forward that counts at each evaluation, against measured training time."
    return [*result, Text(TIME, True), Plot("time", curves_figure(curves, "training time, s", target), caption)]


def _curve(arm: Arm, steps: Steps) -> list[tuple[float, Mean]]:
    by_epoch: dict[int, list[float]] = {}
    for run in arm.runs.values():
        for epoch, top1 in run.curve:
            by_epoch.setdefault(epoch, []).append(top1)
    return [(seconds_until(arm.first, steps, epoch), mean_of(values)) for epoch, values in sorted(by_epoch.items())]


def _target_row(target: float, arm: Arm, steps: Steps | None) -> list[str]:
    found = [(run, epochs) for run in arm.runs.values() if (epochs := run.reaches(target)) is not None]
    row = [arm.label, f"{len(found)} of {len(arm.runs)}"]
    if len(found) < len(arm.runs):
        return [*row, "–", "–"]
    row.append(mean_of(epochs for _, epochs in found).text(digits=1))
    if not steps or not sure(steps):
        return [*row, "too noisy to say" if steps else "not measured"]
    return [*row, mean_of(seconds_until(run, steps, epochs) for run, epochs in found).text(digits=1)]
