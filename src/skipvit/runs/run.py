"""The object that reads what training left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.engine import checkpoint
from skipvit.routing.forward import Forward
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded, is_locked, read_json, read_text
from skipvit.util.log import log

MOST = 1e18  # of a number in a log


class Run:
    """The folder of a run: what it was to be, what it has reached, its network.

    Args:
        path: the folder that `skipvit.train` made.

    Raises:
        UsageError: it is not the folder of a run.
    """

    def __init__(self, path: str | Path):
        self.path = expanded(path)
        if not (self.path / "config.yaml").is_file():
            raise UsageError(f"{path}: not a run folder, it has no config.yaml")
        self._trained: dict[str, Trained] = {}

    @cached_property
    def config(self) -> Config:
        """As it was trained. Raises UsageError if it cannot be read."""
        return load_config(self.path / "config.yaml")

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the network's outputs; None if they were not noted.

        Raises:
            RunError: the list is not what it should be.
        """
        path, count = self.path / "classes.json", self.config.model.num_classes
        if not path.exists():
            return None
        names = read_json(path)
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
            what_to_do = "mend it, or remove it to read them from the data set"
            raise RunError(f"{path}: not a list of {count} class names; {what_to_do}")
        return tuple(names)

    def records(self) -> list[dict[str, Any]]:
        """The epochs of `metrics.jsonl`, in order; where one was evaluated twice (after a resume), later values win."""
        return read_records(self.path)

    def summary(self) -> dict[str, Any] | None:
        """What `summary.json` says; None if there is none that can be read."""
        found = read_json(self.path / "summary.json")
        return found if isinstance(found, dict) and isinstance(found.get("forwards"), dict) else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained and summed up."""
        found = self.summary()
        return found is not None and found.get("epochs") == self.config.optim.epochs

    @property
    def in_use(self) -> bool:
        """Whether another process trains in it."""
        return is_locked(self.path / ".lock")

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Its checkpoints, oldest first; without the best one's second name."""
        return checkpoint.saved(self.path / "checkpoints")

    def checkpoint(self, which: str | Path = "last") -> Path:
        """The file of a checkpoint that is whole.

        Args:
            which: `last`, the newest, or one before it if it is damaged (a warning says so); `best`, that of the best
                top-1, or the last where there is none; or a file.

        Raises:
            UsageError: there is none.
            RunError: all are damaged.
        """
        if str(which) not in ("last", "best"):
            return expanded(which)
        best = self.path / "checkpoints" / checkpoint.BEST
        newest, best = self.checkpoints()[::-1], [best] if os.path.lexists(best) else []
        candidates = [*best, *newest] if which == "best" else [*newest, *best]
        if not candidates:
            raise UsageError(f"{self.path}: no checkpoint in it yet")
        shapes = self.config.model.spec().shapes()
        for path in candidates:
            try:
                checkpoint.read_fitting(path, shapes)
                return path
            except checkpoint.Damaged as error:
                log.warning(str(error))
        raise RunError(f"{self.path / 'checkpoints'}: no checkpoint in it is whole, see above; name another --weights")

    # Network

    def trained(
        self,
        which: str | Path = "last",
        forward: str | None = None,
        averaged: bool = True,
        device: str = "auto",
        config: Config | None = None,
    ) -> Trained:
        """One of its forwards with trained weights.

        Args:
            which: see `checkpoint`.
            forward: name; None: the one that counts.
            averaged: take the averaged weights if the run has any.
            device: auto, cpu or ascend.
            config: instead of the run's, e.g. for other images.

        Raises:
            UsageError, RunError: no such forward, no checkpoint; and when it is used, a checkpoint of another network.
        """
        return Trained(config or self.config, self.checkpoint(which), forward, averaged, device, self)

    def network(self, forward: str | None = None, outputs: tuple[str, ...] = ("logits",), **chosen: Any) -> Forward:
        """One of its forwards with trained weights as a cell, ready to evaluate.

        Args:
            forward: name; None: the one that counts.
            outputs: what it returns, see `routing.forward.Forward`.
            chosen: as of `trained`.
        """
        return self.trained(forward=forward, **chosen).walk(outputs)

    def predict(self, images: np.ndarray, forward: str | None = None, batch_size: int = 16) -> np.ndarray:
        """Probabilities, float32 (n, classes), of images (n, S, S, 3), uint8 or normalised float32, of the size that
        the forward takes."""
        name = forward or self.config.main()
        if name not in self._trained:
            self._trained[name] = self.trained(forward=name)
        return self._trained[name].predict(images, batch_size)


def run_of(path: Path) -> Run | None:
    """The run in whose folder a checkpoint lies; None for one elsewhere."""
    folder = path.absolute().parent.parent
    return Run(folder) if path.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def trained_of(run: Run | Trained | str | Path, **chosen: Any) -> Trained:
    """What is named, a run or its folder, with trained weights; `chosen` as of `Run.trained`."""
    if isinstance(run, Trained):
        return run
    return (run if isinstance(run, Run) else Run(run)).trained(**chosen)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """See `Run.records`."""
    try:
        lines = read_text(folder / "metrics.jsonl", errors="replace").splitlines()
    except OSError:
        return []
    return by_epoch(record for record in map(_record, lines) if record)


def _record(line: str) -> dict[str, Any] | None:
    """An epoch's line of the log, its values as far as they are of their types; None for a line that is none, e.g. one
    that a killed run left unfinished."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_number(found.get("epoch"), int):
        return None
    words = ("phase", "trained")
    result = {k: v for k, v in found.items() if (_is_number(v) and k not in words) or v is None}
    result |= {name: found[name] for name in words if isinstance(found.get(name), str)}
    if isinstance(found.get("val"), dict):
        scores = {name: scores for name, scores in found["val"].items() if isinstance(scores, dict)}
        result["val"] = {name: {k: v for k, v in s.items() if _is_number(v) or v is None} for name, s in scores.items()}
    return result


def _is_number(value: Any, kind: type = object) -> bool:
    """Whether it is one that a log can have: finite, of the kind if that matters, and no truth value."""
    return type(value) in (int, float) and isinstance(value, kind) and abs(value) < MOST


def by_epoch(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record an epoch, in order; of several, later values win that are known."""
    result: dict[int, dict[str, Any]] = {}
    for record in records:
        known = {name: value for name, value in record.items() if value is not None}
        result[record["epoch"]] = result.get(record["epoch"], {}) | known
    return [result[epoch] for epoch in sorted(result)]
