"""The folder of a run: configuration, versions and command, metrics, curves, checkpoints."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import mindspore
import numpy
from matplotlib.figure import Figure

import skipvit
from skipvit.errors import UsageError
from skipvit.training.phases import Phase


class RunFolder:
    """Paths and logs of one run. Only the process that writes (rank 0) makes changes."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.checkpoints = path / "checkpoints"
        self.config = path / "config.yaml"

    def refuse_existing(self) -> None:
        """Raises UsageError if a run of this name is there already."""
        if self.writes and self.path.exists():
            raise UsageError(
                f"{self.path} exists; go on with it with --resume auto, start another with --name, or remove it"
            )

    def create(self, config_text: str, command: list[str]) -> None:
        """Start a new run.

        Raises:
            UsageError: the folder exists, or cannot be made.
        """
        self.refuse_existing()
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{self.path}: the run folder cannot be made ({error.strerror}); choose another --runs") from None
        self.config.write_text(config_text)
        self.note(command)

    def note(self, command: list[str]) -> None:
        """Add a start of the run to `versions.json`: when, with what."""
        if not self.writes:
            return
        entry = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": " ".join(command),
            "skipvit": skipvit.__version__,
            "mindspore": mindspore.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
        }
        path = self.path / "versions.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([*starts, entry], indent=2) + "\n")

    def log(self, record: dict) -> None:
        """Append a line to `metrics.jsonl`."""
        if self.writes:
            path = self.path / "metrics.jsonl"
            torn = path.exists() and not path.read_bytes().endswith(b"\n")  # a run that was killed in mid-line
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n" * torn + json.dumps(record) + "\n")

    def records(self) -> list[dict]:
        """The lines of `metrics.jsonl`; of an epoch that was trained twice (after a resume), the later one."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        by_epoch = {}
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a killed run left unfinished
            by_epoch[record["epoch"]] = record
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def draw_curves(self, phases: tuple[Phase, ...]) -> None:
        """`curves.png`: loss, accuracy, learning rate and throughput over epochs, phase boundaries marked."""
        if self.writes:
            curves(self.records(), phases).savefig(self.path / "curves.png", dpi=110)


def curves(records: list[dict], phases: tuple[Phase, ...]) -> Figure:
    """A figure of a run's records (see `loop.Trainer`), one panel a quantity."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).flat
    epochs = [record["epoch"] for record in records]
    panels = (
        ("loss", [("training (smoothed target)", "train_loss"), ("validation dense", ("dense", "loss")),
                  ("validation routed", ("routed", "loss"))]),
        ("top-1, %", [("dense", ("dense", "top1")), ("routed", ("routed", "top1"))]),
        ("learning rate", [("", "lr")]),
        ("training images/s", [("", "images_per_s")]),
    )  # fmt: skip
    for axis, (title, series) in zip(axes, panels):
        for label, key in series:
            values = [_value(record, key) for record in records]
            if any(value is not None for value in values):
                axis.plot(epochs, values, marker="o", markersize=3, label=label)
        for phase in phases[1:]:
            axis.axvline(phase.first + 0.5, color="grey", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend()
    return figure


def _value(record: dict, key):
    for part in (key,) if isinstance(key, str) else ("val", *key):
        record = record.get(part) if record is not None else None
    return record
