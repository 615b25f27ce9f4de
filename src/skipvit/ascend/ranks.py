"""The processes of a distributed run on this machine: follow them, hand signals on, name the one that fails."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skipvit.util.processes import SAVED, kill_group, signal_name

LOOK_EVERY_S = 0.2
OTHERS_END_WITHIN_S = 10  # after one process failed: the others wait for it in an exchange, or fail for the same reason
SAVING_ENDS_WITHIN_S = 120  # after a stop was asked for, where one has ended already
SCHEDULER_ENDS_WITHIN_S = 3  # after the ranks, which need it no more
KILLED_WITHIN_S = 10
END_OF_LOG = 15  # lines
STOPPED = 130


@dataclass
class Member:
    """A process of the run, which leads a group of its own: a rank, or MindSpore's scheduler (rank None)."""

    process: subprocess.Popen
    rank: int | None
    log: Path

    @property
    def name(self) -> str:
        return "the scheduler" if self.rank is None else f"rank {self.rank}"

    @property
    def exit_code(self) -> int | None:
        """None: it runs; below 0: the number of the signal that ended it."""
        return self.process.returncode

    def look(self) -> None:
        """Notice its end; what it had started ends with it."""
        if self.exit_code is None and self.process.poll() is not None:
            self.kill()

    def kill(self) -> None:
        """Kill it and what it started."""
        kill_group(self.process.pid)


@dataclass(frozen=True)
class End:
    """How a run ended: an exit code, and a line to say about it ("" where there is nothing to say)."""

    code: int
    line: str = ""


class Tail:
    """Shows the lines that are added to a log, without MindSpore's own, for as long as somebody reads them."""

    def __init__(self, path: Path, show: Callable[[str], None]):
        self.path, self.show, self.shown, self.read = path, show, 0, True

    def look(self) -> None:
        if not (self.read and self.path.exists()):
            return
        with open(self.path, "rb") as file:
            file.seek(self.shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.shown += len(whole)
        try:
            for line in whole.decode(errors="replace").splitlines():
                if not line.startswith(("[INFO] ", "[WARNING] ")):
                    self.show(line)
        except OSError:
            self.read = False  # a pipe whose other end is gone, a full disk: the log has it all


class Job:
    """Follows the processes until they have all ended.

    Args:
        ranks: the processes that train.
        scheduler: MindSpore's, where this machine runs it.
        saves: whether the processes save when they are asked to stop.
        show: takes each line that the first rank prints.
    """

    def __init__(
        self,
        ranks: list[Member],
        scheduler: Member | None = None,
        saves: bool = True,
        show: Callable[[str], None] = print,
    ):
        self.ranks, self.scheduler, self.saves = ranks, scheduler, saves
        self.tail = Tail(ranks[0].log, show)
        self.stops = 0
        self.failed: Member | None = None

    def ask_to_stop(self, number: int = signal.SIGTERM, *_) -> None:
        """Signal handler. First the processes save, and say what stopped them; then they are killed."""
        self.stops += 1
        for member in self.running():
            if self.stops == 1:
                member.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            else:
                member.kill()

    def running(self) -> list[Member]:
        return [member for member in self.ranks if member.exit_code is None]

    def members(self) -> list[Member]:
        return self.ranks + ([self.scheduler] if self.scheduler else [])

    def follow(self) -> End:
        """Wait for all to end."""
        try:
            deadline = float("inf")
            while self.running() and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY_S)
                self.look()
                if self.failed is not None and deadline == float("inf"):
                    deadline = time.monotonic() + (SAVING_ENDS_WITHIN_S if self.stops else OTHERS_END_WITHIN_S)
            if self.scheduler is not None and self.failed is None:
                _wait([self.scheduler], SCHEDULER_ENDS_WITHIN_S)
        finally:
            left = end(self.members())
        self.tail.look()
        result = self.result()
        stuck = "".join(f"\nprocess {number} does not end, not even by SIGKILL" for number in left)
        return End(result.code, result.line + stuck)

    def look(self) -> None:
        """Notice who has ended, and the first that failed."""
        running = [member for member in self.members() if member.exit_code is None]
        for member in running:
            member.look()
        self.tail.look()
        ended = [member for member in running if member.exit_code not in (None, 0, SAVED)]
        if self.failed is None and ended:
            # A process that a signal ended before one that failed without it: a rank before the scheduler.
            self.failed = min(ended, key=lambda member: (member.rank is None, (member.exit_code or 0) >= 0))

    def result(self) -> End:
        codes = {member.exit_code for member in self.ranks}
        of_a_stop = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL, STOPPED)
        if self.failed is self.scheduler and codes <= {0, SAVED}:
            self.failed = None  # it misses ranks that are done
        if self.stops and (self.failed is None or self.failed.exit_code in of_a_stop):
            return self.stopped(codes)
        if self.failed is not None:
            code = self.failed.exit_code or 0
            return End(code if code > 0 else 128 - code, f"error: {last_words(self.failed)}")
        return End(SAVED if SAVED in codes else 0)

    def stopped(self, codes: set[int | None]) -> End:
        """The run was asked to stop."""
        said = [line for line in _lines(self.ranks[0].log) if line.startswith("stopped after")]
        if codes <= {0, SAVED} and SAVED in codes:
            return End(SAVED, said[-1] if said else "stopped and saved; --resume auto goes on from there")
        if codes == {0}:
            return End(0)  # it had just ended
        return End(STOPPED, "stopped at once; what had been saved before is there" if self.saves else "stopped")


def end(members: list[Member]) -> list[int]:
    """Kill what still runs, and what it started; returns the numbers of those that do not end (a hanging driver)."""
    for member in members:
        if member.exit_code is None:
            member.kill()
    return [member.process.pid for member in _wait(members, KILLED_WITHIN_S)]


def _wait(members: list[Member], seconds: float) -> list[Member]:
    """Wait for members to end; returns those that have not."""
    deadline = time.monotonic() + seconds
    while True:
        for member in members:
            member.look()
        left = [member for member in members if member.exit_code is None]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def last_words(member: Member) -> str:
    """Why a process ended: its own error line, or its exit and the end of its log."""
    lines, code = _lines(member.log), member.exit_code or 0
    own = [line for line in lines if line.startswith("error: ")]
    if own and code > 0:
        return f"{member.name}: {own[-1].removeprefix('error: ')}"
    how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    shown = [line for line in lines if line.strip()][-END_OF_LOG:] or ["(empty)"]
    return f"{member.name} {how}; the end of {member.log}:" + "".join(f"\n  {line}" for line in shown)


def _lines(path: Path) -> list[str]:
    try:
        return re.split(r"[\r\n]+", path.read_text(errors="replace"))
    except OSError:
        return []
