"""What the runs of a sweep came to, method by method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.lab.intervals import Mean, mean_of, paired
from skipvit.lab.sweep_jobs import finished
from skipvit.measure.cost import cost as cost_of
from skipvit.runs.run_folder import RunFolder
from skipvit.util.errors import RunError, UsageError


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        forward: the one that counts, e.g. `routed`.
        top1: percent, by forward, after the last epoch.
        epochs: the epochs of `metrics.jsonl`.
    """

    seed: int
    path: Path
    config: Config
    forward: str
    top1: dict[str, float]
    epochs: list[dict]

    def curve(self) -> list[tuple[int, float]]:
        """Epochs trained, and top-1 of the forward that counts where it was evaluated."""
        return [(r["epoch"], r["val"][self.forward]["top1"]) for r in self.epochs if self.forward in r.get("val", {})]

    def reaches(self, target: float) -> int | None:
        """Epochs until an evaluation first reached a top-1; None: none did."""
        return next((epoch for epoch, top1 in self.curve() if top1 >= target), None)


@dataclass
class Variant:
    """A method, at a point of its grids, with its finished runs by seed."""

    name: str
    method: str
    cell: str
    point: dict
    runs: dict[int, Result]

    @property
    def label(self) -> str:
        return f"{self.name} {self.cell}".strip()

    @cached_property
    def config(self) -> Config:
        return next(iter(self.runs.values())).config

    @cached_property
    def cost(self):
        return cost_of(self.config)

    @property
    def forward(self) -> str:
        return next(iter(self.runs.values())).forward

    def values(self, forward: str | None = None) -> dict[int, float]:
        """Top-1, percent, by seed; of the forward that counts, or another. Empty if it was not evaluated."""
        return {
            seed: run.top1[forward or run.forward]
            for seed, run in self.runs.items()
            if (forward or run.forward) in run.top1
        }

    def top1(self, forward: str | None = None) -> Mean | None:
        values = self.values(forward)
        return mean_of(list(values.values())) if values else None

    def against(self, baseline: Variant | None) -> Mean | None:
        """Difference of top-1 to the baseline's, points, within seeds; None for the baseline itself, or without common seeds."""
        return None if baseline is None or baseline is self else paired(self.values(), baseline.values())


@dataclass
class Sweep:
    """A sweep's folder.

    Attributes:
        missing: names of runs that are not finished.
        failed: why runs failed, by name.
        command: what began it, or went on with it, last.
    """

    folder: Path
    name: str
    baseline: str
    target: float | None
    variants: list[Variant]
    planned: int
    missing: list[str]
    failed: dict[str, str]
    command: str = ""

    def baseline_of(self, variant: Variant) -> Variant | None:
        """The variant that another is compared to: the baseline method, at the same point of the plan's own grid."""
        return next((v for v in self.variants if v.method == self.baseline and v.cell == variant.cell), None)

    def dense_of(self, variant: Variant) -> Variant | None:
        """The variant of the same network, at the same point of the plan's own grid, that was trained without routes."""
        return next(
            (
                v
                for v in self.variants
                if not v.config.routes and v.cell == variant.cell and v.config.model == variant.config.model
            ),
            None,
        )

    def seeds(self) -> list[int]:
        return sorted({seed for variant in self.variants for seed in variant.runs})

    def versions(self) -> dict[str, str]:
        """Of the first run's last start."""
        path = next(iter(self.variants[0].runs.values())).path / "versions.json"
        try:
            return json.loads(path.read_text())[-1]
        except (OSError, ValueError, IndexError):
            return {}


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder; runs that are not finished are named, and left out.

    Raises:
        UsageError: not the folder of a sweep.
        RunError: no run of it is finished.
    """
    about = _read_json(folder / "sweep.json")
    if about is None:
        raise UsageError(f"{folder}: not the folder of a sweep, it has no sweep.json; `skipvit sweep PLAN` makes one")
    variants: dict[tuple, Variant] = {}
    missing = []
    for run in about["runs"]:
        result = _result(folder / run["name"], run["seed"])
        if result is None:
            missing.append(run["name"])
        else:
            key = run["variant"], run["cell"]
            variants.setdefault(key, Variant(run["variant"], run["method"], run["cell"], run["point"], {})).runs[
                run["seed"]
            ] = result
    if not variants:
        raise RunError(f"{folder}: no run of this sweep is finished yet; `skipvit sweep` goes on with it")
    failed = _read_json(folder / "failed.json") or {}
    return Sweep(
        folder,
        about["plan"],
        about["baseline"],
        about["target"],
        list(variants.values()),
        len(about["runs"]),
        missing,
        failed,
        about.get("command", ""),
    )


def _result(path: Path, seed: int) -> Result | None:
    folder = RunFolder(path)
    if not folder.config.exists():
        return None
    config = configuration.read(folder.config)
    if not finished(folder, config):
        return None
    summary = _read_json(path / "summary.json")
    top1 = {name: scores["top1"] for name, scores in summary["forwards"].items()}
    return Result(seed, path, config, config.main() + "_ema" * bool(config.ema.decay), top1, folder.records())


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
