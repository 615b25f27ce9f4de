"""The child's end of a measurement: a process that builds something, and runs steps of it whenever it has its turn.

Needs Python alone: benchmarks/pytorch_worker.py uses it in an environment that has PyTorch instead of our packages.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from skipvit.util.errors import RunError, UsageError
from skipvit.util.processes import end_with_parent
from skipvit.util.text import one_line

WARM_UP_STEPS = 2  # after the first one, which compiles


class Timed(ABC):
    """Jobs by name, each a function that runs a step.

    A subclass has a method `_NAME` for each job, which builds that function, and `wait`.
    """

    warm_up = WARM_UP_STEPS

    def __init__(self):
        self.jobs: dict[str, Callable[[], Any]] = {}
        self.base = 0  # bytes in use before the network was built

    def prepare(self, job: str) -> tuple[float, float, int]:
        """Build a job and warm it up: seconds of its first and of its last step, peak memory of a step in bytes."""
        self.jobs[job] = getattr(self, f"_{job}")()
        first = last = self.turn(job, 1)
        self.forget_peak()
        for _ in range(self.warm_up):
            last = self.turn(job, 1)
        return first, last, self.memory(peak=True) - self.base

    def turn(self, job: str, steps: int) -> float:
        """Seconds of so many steps, with a wait for the device after the last one only, as in training."""
        run, result = self.jobs[job], None
        begun = time.perf_counter()
        for _ in range(steps):
            result = run()
        self.wait(result)
        return time.perf_counter() - begun

    @abstractmethod
    def wait(self, result: Any) -> None:
        """Return when a step's result is there."""

    def memory(self, peak: bool = False) -> int:
        """Bytes in use, or the most since `forget_peak`: here those of the process, resident."""
        name = "VmHWM:" if peak else "VmRSS:"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

    def forget_peak(self) -> None:
        with suppress(OSError):  # where it is not allowed, the peak may be that of compiling
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes VmRSS


def serve(subject: object, words: list[str]) -> None:
    """Call subject's methods as the parent (`turns.Worker`) asks, and send what they return or raise, until it is gone.

    Args:
        words: the number of the pipe's file and the parent's process.
    """
    end_with_parent(int(words[1]), signal.SIGKILL)  # a stopped process would not notice anything less
    connection = Connection(int(words[0]))
    connection.send(None)
    with suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            connection.send(_attempt(subject, method, arguments))


def _attempt(subject: object, method: str, arguments: tuple) -> Any:
    try:
        return getattr(subject, method)(*arguments)
    except (UsageError, RunError) as error:
        return error
    except MemoryError:
        return RunError("not enough memory; use a smaller data.batch_size")
    except Exception as error:  # whatever it is, the parent says it
        return RunError(one_line(error))
