"""What a sweep's folder holds: its finished runs, method by method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from skipvit.config.config import Config
from skipvit.config.reading import first_problem
from skipvit.lab.intervals import Mean, mean_of
from skipvit.lab.jobs import FAILED
from skipvit.lab.plan import Entry
from skipvit.measure.cost import Cost, cost
from skipvit.runs.run import Run
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import read_json, read_text
from skipvit.util.text import one_line


class SweepFile(BaseModel):
    """What a sweep writes into its folder: `sweep.json`."""

    plan: str
    baseline: str
    target: float | None = Field(None, gt=0, lt=100)
    command: str = ""
    runs: list[Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        forward: the one that counts, e.g. `routed`.
        top1: percent, by forward, after the last epoch.
        curve: epochs trained, and top-1 of the forward that counts where it was evaluated.
        steps: updates of an epoch.
    """

    seed: int
    run: Run
    forward: str
    top1: dict[str, float]
    curve: list[tuple[int, float]]
    steps: int

    def reaches(self, target: float) -> int | None:
        """Epochs until an evaluation first reached a top-1; None: none did."""
        return next((epoch for epoch, top1 in self.curve if top1 >= target), None)


def outcome(path: Path, seed: int) -> Outcome | None:
    """The run in a folder; None if it is not finished. Raises UsageError if its files cannot be read."""
    if not (path / "config.yaml").is_file() or not (run := Run(path)).finished:
        return None
    main, records = run.config.main() + ("_ema" if run.config.ema.decay else ""), run.records()
    forwards = (run.summary() or {})["forwards"]
    top1 = {name: value for name in forwards if (value := _number(forwards, name, "top1")) is not None}
    if main not in top1:
        raise UsageError(f"{path / 'summary.json'}: it has no top-1 of {main}; train the run again")
    points = [(record["epoch"], _number(record, "val", main, "top1")) for record in records]
    curve = [(epoch, value) for epoch, value in points if value is not None and epoch <= run.config.optim.epochs]
    steps = max((_number(record, "steps", most=10**9) or 0 for record in records), default=0)
    return Outcome(seed, run, main, top1, curve if steps else [], int(steps))


def _number(values: Any, *keys: str, most: float = 100.0) -> float | None:
    """A number from 0 on within nested mappings, by default percent; None if there is no such."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if type(values) in (int, float) and 0 <= values <= most else None


@dataclass
class Arm:
    """An arm of a study: a method, at a point of its grids, with its finished runs by seed."""

    name: str
    method: str
    cell: str
    point: dict[str, Any]
    runs: dict[int, Outcome]

    @property
    def label(self) -> str:
        return f"{self.name} {self.cell}".strip()

    @property
    def first(self) -> Outcome:
        return self.runs[min(self.runs)]

    @property
    def config(self) -> Config:
        return self.first.run.config

    @cached_property
    def cost(self) -> Cost:
        return cost(self.config)

    @cached_property
    def others(self) -> list[str]:
        """The forwards that it trains, but for the dense one, in order."""
        names = (phase.forward for phase in self.config.resolved_phases())
        return list(dict.fromkeys(name for name in names if name != "dense"))

    @property
    def forward(self) -> str:
        """The one that counts, with `_ema` behind it where averaged weights do."""
        return self.first.forward

    def values(self) -> dict[int, float]:
        """Top-1 of the forward that counts, percent, by seed."""
        return {seed: run.top1[self.forward] for seed, run in self.runs.items()}

    @property
    def top1(self) -> Mean:
        return mean_of(self.values().values())

    def evaluations(self) -> dict[str, Mean]:
        """Top-1 by forward, as it was evaluated with the weights, averaged or not, that count."""
        ema = "_ema" if self.forward.endswith("_ema") else ""
        names = [name for name in self.config.evaluated() if all(name + ema in run.top1 for run in self.runs.values())]
        return {name: mean_of(run.top1[name + ema] for run in self.runs.values()) for name in names}


@dataclass
class Study:
    """The finished runs of a sweep's folder.

    Attributes:
        about: the sweep; baseline and target may be changed.
        missing: names of runs that are not finished.
        failed: why runs failed, or cannot be read, by name.
    """

    folder: Path
    about: SweepFile
    arms: list[Arm]
    missing: list[str]
    failed: dict[str, str]

    def baseline_of(self, arm: Arm) -> Arm | None:
        """What an arm is compared to: the baseline method, at the same point of the plan's own grid."""
        same = (other for other in self.arms if other.method == self.about.baseline)
        return next((other for other in same if other.cell == arm.cell), None)

    def dense_of(self, arm: Arm) -> Arm | None:
        """The arm of the same network, at the same point of the plan's own grid, that was trained dense alone."""
        same = (other for other in self.arms if other.cell == arm.cell and other.config.model == arm.config.model)
        return next((other for other in same if not other.others), None)


def read_study(folder: Path) -> Study:
    """Read a sweep's folder; runs that are not finished are named, and left out.

    Raises:
        UsageError: not the folder of a sweep.
        RunError: no run of it is finished.
    """
    path = folder / "sweep.json"
    try:
        about = SweepFile.model_validate_json(read_text(path))
    except FileNotFoundError:
        raise UsageError(f"{folder}: not the folder of a sweep, it has no sweep.json") from None
    except (OSError, ValueError) as error:
        known = getattr(error, "strerror", None) or one_line(error)
        why = first_problem(error, SweepFile) if isinstance(error, ValidationError) else known
        raise UsageError(f"{path}: {why}; `skipvit sweep` writes it anew") from None
    failures = read_json(folder / FAILED)
    failed = {name: str(why) for name, why in failures.items()} if isinstance(failures, dict) else {}
    arms: dict[str, Arm] = {}
    missing = []
    for entry in about.runs:
        try:
            found = outcome(folder / entry.name, entry.seed)
        except UsageError as error:
            found, failed[entry.name] = None, str(error)
        if found is None:
            missing.append(entry.name)
        else:
            arm = Arm(entry.variant, entry.method, entry.cell, entry.point, {})
            arms.setdefault(arm.label, arm).runs[entry.seed] = found
    if not arms:
        raise RunError(f"{folder}: no run of this sweep is finished yet; `skipvit sweep` goes on with it")
    return Study(folder, about, list(arms.values()), missing, failed)
