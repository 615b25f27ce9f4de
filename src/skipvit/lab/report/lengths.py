"""What a report says of methods that were trained for several lengths: how much sooner they are as accurate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skipvit.lab.intervals import Mean, mean_of
from skipvit.lab.report.figures import curves_figure
from skipvit.lab.report.page import Block, Heading, Plot, Table, Text
from skipvit.lab.report.speed import Speeds, seconds_until, sure
from skipvit.lab.study import Arm, Study

LENGTH = "optim.epochs"  # the grid's key
HOW_TO_READ = (
    "speed-up at equal accuracy: the time that the baseline needs for the highest top-1 that both reach, over the time "
    "that the method needs for it; within each seed, between lengths of training on a line over the logarithm of time, "
    "then the geometric mean over seeds with its 95 % interval. Above 1 × the method is sooner as accurate",
    "each point is a whole training with its own learning-rate schedule, evaluated at its end, not a stage of a longer "
    "one",
    "at equal time: top-1 at the end of the method's longest training, less what the baseline reaches in that time",
)
Points = Sequence[tuple[float, float]]  # time and top-1 of whole trainings of one seed, by rising time


@dataclass(frozen=True)
class Lengths:
    """A method at one point of its other grids, with its arms by rising epochs."""

    label: str
    method: str
    arms: list[Arm]
    times: list[float]  # of the whole runs: seconds, or epochs of the dense network

    def points(self, seed: int) -> Points:
        return [(time, arm.values()[seed]) for time, arm in zip(self.times, self.arms)]

    @property
    def seeds(self) -> set[int]:
        """Those that all lengths have."""
        return set.intersection(*(set(arm.runs) for arm in self.arms))


def time_of(points: Points, top1: float) -> float | None:
    """When an accuracy is first reached: between two trainings on a line over the logarithm of time. None: later than
    the longest, or before the shortest, where nothing is known."""
    best = np.maximum.accumulate([value for _, value in points])
    if not best[0] <= top1 <= best[-1]:
        return None
    after = int(np.argmax(best >= top1))
    if after == 0:
        return points[0][0]
    share = (top1 - best[after - 1]) / (best[after] - best[after - 1])
    before, then = np.log([points[after - 1][0], points[after][0]])
    return float(np.exp(before + share * (then - before)))


def top1_at(points: Points, time: float) -> float | None:
    """Accuracy after a time, as `time_of`; None outside of the trainings' times."""
    times = [when for when, _ in points]
    if not times[0] <= time <= times[-1]:
        return None
    return float(np.interp(np.log(time), np.log(times), [value for _, value in points]))


def speed_up(points: Points, baseline: Points) -> float | None:
    """Time of the baseline over that of the method, at the highest accuracy that both reach; None if one of them is
    above it already in its shortest training."""
    target = min(max(value for _, value in points), max(value for _, value in baseline))
    ours, theirs = time_of(points, target), time_of(baseline, target)
    return theirs / ours if ours and theirs else None


def families(study: Study, speeds: Speeds) -> list[Lengths]:
    """The methods that were trained for more than one length. Times are measured seconds, or ideal ones in epochs of
    the dense network where no speed was measured."""
    found: dict[str, list[Arm]] = {}
    for arm in study.arms:
        if type(arm.point.get(LENGTH)) is int:
            others = (f"{key.split('.')[-1]}={value}" for key, value in arm.point.items() if key != LENGTH)
            found.setdefault(" ".join([arm.method, *others]), []).append(arm)
    result = []
    for label, arms in found.items():
        arms.sort(key=lambda arm: arm.config.optim.epochs)
        times = [_time(arm, speeds) for arm in arms]
        family = Lengths(label, arms[0].method, arms, [time for time in times if time is not None])
        if len(arms) > 1 and len(family.times) == len(arms) and family.seeds:
            result.append(family)
    return result


def _time(arm: Arm, speeds: Speeds) -> float | None:
    epochs, steps = arm.config.optim.epochs, speeds.get(arm.label)
    if not speeds:
        return epochs / arm.cost.run_gain
    return seconds_until(arm.first, steps, epochs) if steps and sure(steps) else None


def lengths_blocks(study: Study, speeds: Speeds) -> list[Block]:
    """The table of speed-ups at equal accuracy, and accuracy over the time of whole trainings."""
    found = families(study, speeds)
    base = next((family for family in found if family.method == study.about.baseline), None)
    if base is None:
        return []
    unit = "s" if speeds else "ideal, in epochs of the dense network"
    head = ["method", "speed-up at equal accuracy", "seeds", f"reaches {base.label}'s best top-1"]
    head += [f"at equal time to {base.label}, points", "epochs", f"time, {unit}", "top-1, %"]
    curves = {f.label: [(time, arm.top1) for time, arm in zip(f.times, f.arms)] for f in found}
    caption = "Top-1 at the end of whole trainings of several lengths, against the time of their training steps."
    return [
        Heading("Time to equal accuracy"),
        Table(head, [_row(family, base) for family in found]),
        Text(HOW_TO_READ if speeds else (*HOW_TO_READ, "times are ideal, by multiply-accumulates, not measured"), True),
        Plot("lengths", curves_figure(curves, f"training time of the whole run, {unit}"), caption),
    ]


def _row(family: Lengths, base: Lengths) -> list[str]:
    seeds = sorted(family.seeds & base.seeds)
    epochs = ", ".join(str(arm.config.optim.epochs) for arm in family.arms)
    times, tops = ", ".join(f"{time:.3g}" for time in family.times), ", ".join(arm.top1.text() for arm in family.arms)
    if family is base or not seeds:
        return [family.label, "baseline" if family is base else "no seed in common", "", "", "", epochs, times, tops]
    ratios = [speed_up(family.points(seed), base.points(seed)) for seed in seeds]
    known = [ratio for ratio in ratios if ratio is not None]
    best = {seed: max(value for _, value in base.points(seed)) for seed in seeds}
    reach = sum(max(value for _, value in family.points(seed)) >= best[seed] for seed in seeds)
    said = _times(mean_of(np.log(known))) if known else "shorter trainings are needed to say"
    row = [family.label, said, f"{len(known)} of {len(seeds)}", f"{reach} of {len(seeds)} seeds"]
    return [*row, _at_equal_time(family, base, seeds), epochs, times, tops]


def _at_equal_time(family: Lengths, base: Lengths, seeds: list[int]) -> str:
    differences = []
    for seed in seeds:
        time, top1 = family.points(seed)[-1]
        other = top1_at(base.points(seed), time)
        if other is not None:
            differences.append(top1 - other)
    return mean_of(differences).text(signed=True) if differences else "–"


def _times(log: Mean) -> str:
    """A geometric mean with the ends of its interval."""
    if log.half is None:
        return f"{np.exp(log.mean):.2f} ×"
    return f"{np.exp(log.mean):.2f} × ({np.exp(log.low):.2f} to {np.exp(log.high):.2f})"
