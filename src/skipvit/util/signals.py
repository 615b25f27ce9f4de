"""SIGTERM and Ctrl-C as a request: the step is finished and the state saved first."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from skipvit.util import processes


def stop_signals() -> list[int]:
    """What asks a command that follows other processes to stop; not SIGHUP where nohup has it ignored."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `name`; the second one acts as it would without.

    Where another process follows this one, and kills if it is asked twice, all of them only set `name`: a batch system
    may signal the launcher and each rank.
    """

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
        known, self.name = self.name, signal.Signals(number).name
        if known is None:
            print(
                f"\n{self.name}: finishing the step, then saving; once more stops at once", file=sys.stderr, flush=True
            )
        if not processes.is_followed():
            self.__exit__()
