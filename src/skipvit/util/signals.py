"""SIGTERM and Ctrl-C as a request: the step is finished and the state saved first."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from skipvit.util import processes


def stop_signals() -> list[int]:
    """What asks a command that follows other processes to stop; not SIGHUP where nohup has it ignored."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `name`; the second one acts as it would without.

    Under the launcher, which kills where it is asked twice, all of them only set `name`: a batch system may signal it
    and each rank.
    """

    def __init__(self):
        self.name: str | None = None
        self.before: dict[int, Any] = {}
        self.came: int | None = None  # end of a pipe: a byte a signal
        self.reading, self.wakeup, self.said = threading.Lock(), -1, False

    def __enter__(self) -> StopRequest:
        self.came, write = os.pipe()
        os.set_blocking(self.came, False)
        os.set_blocking(write, False)
        self.wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._restore()
        os.close(signal.set_wakeup_fd(self.wakeup))
        with self.reading:
            if self.came is not None:
                os.close(self.came)
            self.came = None

    def asked(self) -> bool:
        """Whether a stop was asked for. Any thread may ask, also while the main one waits in MindSpore, where Python's
        handlers do not run."""
        with self.reading, suppress(BlockingIOError):
            while self.name is None and self.came is not None:
                numbers = {signal.SIGTERM, signal.SIGINT} & set(os.read(self.came, 64))
                self.name = next((signal.Signals(number).name for number in numbers), None)
        return self.name is not None

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if not self.said:
            self.said = True
            text = f"\n{self.name}: finishing the step, then saving; once more stops at once\n"
            with suppress(OSError):
                os.write(2, text.encode())  # a handler may interrupt a write to the buffered stderr
        if not processes.is_followed():
            self._restore()
