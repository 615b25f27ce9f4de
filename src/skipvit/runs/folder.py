"""The folder of a run: configuration, versions and command, metrics, curves, checkpoints."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path

import mindspore
import numpy

import skipvit
from skipvit.config.phases import Phase
from skipvit.runs.curves import curves
from skipvit.runs.events import Events
from skipvit.runs.run import read_records
from skipvit.util.errors import UsageError
from skipvit.util.files import append_line, lock, make_folder, read_json, replacing, write_whole
from skipvit.util.log import log
from skipvit.util.text import as_json, one_line


class RunFolder:
    """Paths and logs of one run. Only the process that writes (rank 0) makes changes; all add to the lists of broken
    images.

    What cannot be logged (a full disk) is reported; it does not stop the training.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.checkpoints = path / "checkpoints"
        self.config = path / "config.yaml"
        self.classes = path / "classes.json"
        self.broken, self.broken_val = path / "broken_images.txt", path / "broken_images_val.txt"
        self.events = self.lock = None

    def refuse_existing(self, resuming: bool = False) -> None:
        """Raises UsageError if a run of this name is there already; resuming, one that was killed before it began is
        none."""
        never_began = resuming and self.path.is_dir() and not self.checkpoints.exists()
        if self.writes and self.path.exists() and not never_began:
            what_to_do = "go on with it with --resume auto, start another with --name, or remove it"
            raise UsageError(f"{self.path} exists; {what_to_do}")

    def claim(self) -> None:
        """Make the folder, if it is not there, and keep other processes from training in it as long as this one lives.

        Raises:
            UsageError: it cannot be made, or another process trains in it; its checkpoints have no folder.
        """
        if not self.writes:
            return
        make_folder(self.path, "run folder", "--runs")
        there, usable = self.checkpoints, os.R_OK | os.W_OK | os.X_OK
        if os.path.lexists(there) and not (there.is_dir() and os.access(there, usable)):
            raise UsageError(f"{there}: not a folder that can be read and written; mend it, or use --name")
        self.lock = lock(self.path / ".lock", f"{self.path}: another process trains in it; wait for its end or stop it")

    def release(self) -> None:
        """The opposite of `claim`, and the end of the TensorBoard events."""
        if self.lock is not None:
            self.lock.close()
        if self.events is not None:
            self.events.close()

    def refuse_no_room(self, checkpoint: int, keep: int) -> None:
        """Raises UsageError if the folder cannot be written, or has no room for `keep` checkpoints of so many bytes,
        the best and one being written. A machine that writes nothing needs none."""
        if not self.writes:
            return
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise UsageError(f"{self.path}: the run folder cannot be made in {existing}; choose another --runs")
        there = len(list(self.checkpoints.glob("*.ckpt")))
        needed, free = checkpoint * max(1, keep + 2 - there), shutil.disk_usage(existing).free
        if free < needed:
            room = f"{needed / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB free"
            what_to_do = "free some, or use another --runs or a smaller checkpoint.keep"
            raise UsageError(f"{self.path}: its checkpoints will take {room}; {what_to_do}")

    def write_config(self, text: str) -> None:
        if self.writes:
            write_whole(self.config, text)

    def write_classes(self, names: tuple[str, ...]) -> None:
        """The names of the classes, in the order of their numbers."""
        if self.writes:
            write_whole(self.classes, json.dumps(names, indent=0) + "\n")

    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self.config.exists()

    def note(self, command: list[str]) -> None:
        """Add a start of the run to `versions.json`: when, with what."""
        if not self.writes:
            return
        entry = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "command": " ".join(command)}
        entry |= versions() | {"machine": platform.platform()}
        path = self.path / "versions.json"
        found = read_json(path)
        starts = found if isinstance(found, list) else []
        write_whole(path, json.dumps([*starts, entry], indent=2) + "\n")

    def open_events(self) -> None:
        """Write TensorBoard event files from now on."""
        if self.writes:
            self.events = Events(self.path / "tensorboard")

    def log(self, record: dict) -> None:
        """Append a line to `metrics.jsonl`; numbers that are not finite become null, as JSON has none."""
        if not self.writes:
            return
        try:
            append_line(self.path / "metrics.jsonl", as_json(record))
            if self.events is not None:
                self.events.add(record)
        except OSError as error:
            self.warn(f"{self.path}: a line of the log could not be written ({error.strerror})")

    def warn(self, text: str) -> None:
        log.warning(text)

    def draw_curves(self, phases: tuple[Phase, ...]) -> None:
        """`curves.png`: loss, accuracy, learning rate, throughput, loss scale and skipped updates over epochs."""
        if self.writes:
            try:
                with replacing(self.path / "curves.png") as partial:
                    curves(read_records(self.path), phases).savefig(partial, dpi=110, format="png")
            except Exception as error:  # no figure stops a training, whatever it fails for
                self.warn(f"{self.path / 'curves.png'}: not drawn ({one_line(error)})")


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "skipvit": skipvit.__version__,
        "mindspore": mindspore.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
