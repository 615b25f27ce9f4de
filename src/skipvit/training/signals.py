"""SIGTERM and Ctrl-C as a request: the step is finished and the state saved first."""

from __future__ import annotations

import signal
import sys
from types import FrameType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `name`; the second one acts as it would without."""

    def __init__(self):
        self.name: str | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        print(f"\n{self.name}: finishing the step, then saving; once more stops at once", file=sys.stderr, flush=True)
        self.__exit__()
