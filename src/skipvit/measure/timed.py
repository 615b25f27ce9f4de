"""Steps that are timed, and the memory of their process. Needs no MindSpore: benchmarks/pytorch_worker.py uses it too."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 2  # after the first one, which compiles


class Timed(ABC):
    """What a process does in its turns (`turns.serve`): jobs by name, each a function that runs a step.

    A subclass has a method `_NAME` for each job, which builds that function, and `wait`.
    """

    warm_up = WARM_UP_STEPS

    def __init__(self):
        self.jobs: dict[str, Callable[[], Any]] = {}
        self.base = 0

    def begin(self) -> None:
        """What is in use from now on counts as memory of the network."""
        self.base = self.memory()

    def prepare(self, job: str) -> tuple[float, float, int]:
        """Build a job and warm it up: seconds of its first and of its last step, and the peak memory of a step, bytes."""
        self.jobs[job] = getattr(self, f"_{job}")()
        first = self.turn(job, 1)
        self.forget_peak()
        for _ in range(self.warm_up):
            last = self.turn(job, 1)
        return first, last, self.peak() - self.base

    def turn(self, job: str, steps: int) -> float:
        """Seconds of so many steps, with a wait for the device after the last one only, as in training."""
        run = self.jobs[job]
        begun = time.perf_counter()
        for _ in range(steps):
            result = run()
        self.wait(result)
        return time.perf_counter() - begun

    @abstractmethod
    def wait(self, result: Any) -> None:
        """Return when a step's result is there."""

    def memory(self) -> int:
        """Bytes in use: here those of the process (resident)."""
        return _of_process("VmRSS")

    def peak(self) -> int:
        """The most bytes in use since `forget_peak`."""
        return _of_process("VmHWM")

    def forget_peak(self) -> None:
        with suppress(OSError):  # where it is not allowed, the peak may be that of compiling
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes VmRSS


def _of_process(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
