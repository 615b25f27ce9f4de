"""The images of a split that could not be read."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np

from skipvit.data.sources import Source
from skipvit.util.errors import RunError
from skipvit.util.files import append_line, read_text
from skipvit.util.text import printable


class Broken:
    """Counts them, lists them once each, and ends the run when they are more than a share of all.

    Args:
        images: how many the split has.
        share: the largest share of them that may be broken, but one in any case; 0: the first one ends the run.
        path: a text file that gets a line an image, name and reason; what it lists already counts. None: no list.
    """

    def __init__(self, images: int, share: float, path: Path | None = None):
        self.limit = max(1, math.floor(share * images)) if share else 0
        self.share, self.path = share, path
        self.lock = threading.Lock()
        self.names: set[str] = set()
        self.size = 0  # of the list when it was read last
        self._read()

    def add(self, name: str, reason: str) -> None:
        """Raises RunError if there are too many now."""
        name = printable(name)
        with self.lock:
            if name not in self.names:
                self._read()  # other devices may have listed it
            if name not in self.names:
                self.names.add(name)
                self._list(f"{name}\t{reason}")
            count = len(self.names)
        text = f"{name}: not an image that can be decoded ({reason})"
        if self.limit == 0:
            raise RunError(f"{text}; replace it, remove it or allow data.broken_share")
        if count > self.limit:
            where = f"; they are listed in {self.path}: mend them and remove it" if self.path else ""
            raise RunError(f"{text}, number {count}; data.broken_share {self.share} allows {self.limit}{where}")

    def _read(self) -> None:
        try:
            if self.path is not None and self.path.stat().st_size != self.size:
                text = read_text(self.path, errors="replace")
                self.names |= {line.split("\t")[0] for line in text.splitlines()}
                self.size = self.path.stat().st_size
        except OSError:
            pass  # there is none yet

    def _list(self, line: str) -> None:
        if self.path is not None:
            try:
                append_line(self.path, line)
            except OSError:
                pass  # a full disk is no reason to stop; the count goes on


class Bad:
    """What is wrong with which file (`reasons`); takes the place of the list of broken images that a run keeps."""

    def __init__(self, reasons: dict[str, str]):
        self.reasons = reasons

    def add(self, name: str, reason: str) -> None:
        self.reasons[name] = reason


def lost_classes(source: Source, broken: Broken) -> list[str]:
    """Classes all of whose images are broken: nothing of them is learnt."""
    counts = np.bincount(source.labels, minlength=len(source.classes))
    lost = []
    for label in np.flatnonzero((counts > 0) & (counts <= len(broken.names))).tolist():
        images = np.flatnonzero(source.labels == label).tolist()
        if all(printable(source.name(i)) in broken.names for i in images):
            lost.append(source.classes[label])
    return lost
