"""The folder of a run: configuration, versions and command, metrics, curves, checkpoints."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from pathlib import Path

import mindspore
import numpy
from matplotlib.figure import Figure
from tqdm import tqdm

import skipvit
from skipvit.errors import UsageError
from skipvit.training.phases import Phase

FORWARDS = ("dense", "routed", "dense_ema", "routed_ema")


class RunFolder:
    """Paths and logs of one run. Only the process that writes (rank 0) makes changes.

    What cannot be logged (a full disk) is reported; it does not stop the training.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.checkpoints = path / "checkpoints"
        self.config = path / "config.yaml"
        self.broken, self.broken_val = path / "broken_images.txt", path / "broken_images_val.txt"
        self.events = None

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
        self.write_config(config_text)
        self.note(command)

    def write_config(self, text: str) -> None:
        """Renamed into place: a run that is killed here is one that has not begun."""
        if self.writes:
            partial = self.path / ".partial.config.yaml"
            partial.write_text(text)
            partial.replace(self.config)

    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self.config.exists()

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
        path, partial = self.path / "versions.json", self.path / ".partial.versions.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        partial.write_text(json.dumps([*starts, entry], indent=2) + "\n")
        partial.replace(path)

    def open_events(self) -> None:
        """Write TensorBoard event files from now on.

        Raises:
            UsageError: the library for it is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UsageError("log.tensorboard: needs `pip install tensorboardX`; or --log.tensorboard false") from None
        if self.writes:
            self.events = SummaryWriter(str(self.path / "tensorboard"), flush_secs=10)

    def close(self) -> None:
        """Have the last events on the disk: a thread of the library writes them."""
        if self.events is not None:
            self.events.close()

    def log(self, record: dict) -> None:
        """Append a line to `metrics.jsonl`; numbers that are not finite become null, as JSON has none."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        try:
            torn = path.exists() and not _ends_with_newline(path)  # a run that was killed in mid-line
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n" * torn + json.dumps(_finite(record), allow_nan=False) + "\n")
            if self.events is not None:
                self._add_events(record)
        except OSError as error:
            self.warn(f"{path}: a line could not be written ({error.strerror})")

    def _add_events(self, record: dict) -> None:
        unit = "epoch" if "epoch" in record else "step"
        values = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name != unit}
        for forward, scores in record.get("val", {}).items():
            values |= {f"{forward}/{name}": value for name, value in scores.items()}
        for name, value in values.items():
            self.events.add_scalar(f"{unit}/{name}", value, record[unit])

    def warn(self, text: str) -> None:
        """A line on stderr, above the progress bar."""
        tqdm.write(f"warning: {text}", file=sys.stderr)

    def records(self) -> list[dict]:
        """The epochs of `metrics.jsonl`, in order; where one was evaluated twice (after a resume), later values win."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        by_epoch: dict[int, dict] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a killed run left unfinished
            if "epoch" in record:
                known = {name: value for name, value in record.items() if value is not None}
                by_epoch[record["epoch"]] = by_epoch.get(record["epoch"], {}) | known
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def draw_curves(self, phases: tuple[Phase, ...]) -> None:
        """`curves.png`: loss, accuracy, learning rate, throughput, loss scale and skipped updates over epochs."""
        if self.writes:
            try:
                curves(self.records(), phases).savefig(self.path / "curves.png", dpi=110)
            except OSError as error:
                self.warn(f"{self.path / 'curves.png'}: not written ({error.strerror})")


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read() in (b"\n", b"")


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(records: list[dict], phases: tuple[Phase, ...]) -> Figure:
    """A figure of a run's records (see `loop.Trainer`), one panel a quantity, phase boundaries marked."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    axes = figure.subplots(2, 3).flat
    epochs = [record["epoch"] for record in records]
    panels = (
        ("loss", [("training", "train_loss"), *((f"validation {name}", (name, "loss")) for name in FORWARDS)]),
        ("top-1, %", [(name, (name, "top1")) for name in FORWARDS]),
        ("learning rate", [("", "lr")]),
        ("training images/s", [("", "images_per_s")]),
        ("loss scale", [("", "loss_scale")]),
        ("updates skipped", [("", "overflows")]),
    )
    for axis, (title, series) in zip(axes, panels):
        for label, key in series:
            points = [(epoch, _value(record, key)) for epoch, record in zip(epochs, records)]
            points = [point for point in points if point[1] is not None]
            if points:
                axis.plot(*zip(*points), marker="o", markersize=3, label=label)
        for phase in phases[1:]:
            axis.axvline(phase.first + 0.5, color="grey", linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if len(series) > 1 and axis.lines[: len(axis.lines) - len(phases[1:])]:
            axis.legend()
        if title == "loss scale":
            axis.set_yscale("log", base=2)
    return figure


def _value(record: dict, key):
    for part in (key,) if isinstance(key, str) else ("val", *key):
        record = record.get(part) if record is not None else None
    return record
