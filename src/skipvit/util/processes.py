"""The processes of a distributed run on this machine: follow them, hand signals on, name the one that fails."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from skipvit.util.errors import RunError

LOOK_EVERY_S = 0.3
OTHERS_END_WITHIN_S = 10  # after one process failed: the others wait for it in an exchange, or fail for the same reason
SAVING_ENDS_WITHIN_S = 120  # after a stop was asked for, where one has ended already
SCHEDULER_ENDS_WITHIN_S = 20
KILLED_WITHIN_S = 10
END_OF_LOG = 15  # lines
SAVED = 3  # exit code of a process that was stopped and has saved
STOPPED = 130
LAUNCHER = "SKIPVIT_LAUNCHER"  # process number of the launcher, for its ranks


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent ends: only a parent learns exit codes.

    msrun, told not to wait, starts the processes and ends; told to wait, it kills all a second after the first exit
    code that is not 0, even while they save, and hands no signal on.
    """
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def end_with_launcher() -> None:
    """In a rank: have the kernel send SIGTERM, which saves, when the launcher is gone, however it ended."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        end_with_parent()


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, however it ends; a new program in this process
    keeps that."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


@dataclass
class Member:
    """One process of the run: a rank, or MindSpore's scheduler (rank None)."""

    process: psutil.Process
    rank: int | None
    log: Path

    @property
    def name(self) -> str:
        return "the scheduler" if self.rank is None else f"rank {self.rank}"

    @property
    def exit_code(self) -> int | None:
        """None: it runs; below 0: the number of the signal that ended it."""
        return getattr(self.process, "returncode", None)


def members(log_dir: Path) -> list[Member]:
    """This process's children that belong to a run, by what their environment says."""
    result = []
    for process in psutil.Process().children():
        try:
            variables = process.environ()
        except psutil.Error:
            continue  # ended already
        if "RANK_ID" in variables:
            rank = None if variables.get("MS_ROLE") == "MS_SCHED" else int(variables["RANK_ID"])
            result.append(Member(process, rank, log_dir / ("scheduler.log" if rank is None else f"worker_{rank}.log")))
    return sorted(result, key=lambda member: -1 if member.rank is None else member.rank)


def end(found: list[Member]) -> None:
    """Kill processes and all that they and msrun started; an end that is not reached (a hanging driver) is no reason to
    wait for."""
    for member in found:
        _kill_group(member.process.pid)
    left = [member.process for member in found if member.exit_code is None] + psutil.Process().children(recursive=True)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            pass  # it has just ended
    _, alive = psutil.wait_procs(left, timeout=KILLED_WITHIN_S)
    for process in alive:
        print(f"warning: process {process.pid} does not end, not even by SIGKILL", file=sys.stderr)


def refuse_missing(found: list[Member], ranks: list[int], log_dir: Path) -> None:
    """Raises RunError, after ending the others, if a rank ended as it began."""
    missing = sorted(set(ranks) - {member.rank for member in found})
    if missing:
        end(found)
        raise RunError(f"rank {missing[0]} ended as it began; {_end_of(log_dir / f'worker_{missing[0]}.log')}")


class Tail:
    """Shows the lines that are added to a log, without MindSpore's own, for as long as somebody reads them."""

    def __init__(self, path: Path):
        self.path, self.shown, self.read = path, 0, True

    def show(self) -> None:
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
                    print(line, flush=True)
        except OSError:
            self.read = False  # a pipe whose other end is gone, a full disk: the log has it all


class Job:
    """Follows the processes until they have all ended.

    Args:
        ranks: the processes that train.
        scheduler: MindSpore's, where this machine runs it.
        saves: whether the processes save when they are asked to stop.
    """

    def __init__(self, ranks: list[Member], scheduler: Member | None, saves: bool = True):
        self.ranks, self.scheduler, self.saves = ranks, scheduler, saves
        self.tail = Tail(ranks[0].log)
        self.stops = 0
        self.failed: Member | None = None

    def ask_to_stop(self, *_) -> None:
        """Signal handler. First the processes save, then they are killed."""
        self.stops += 1
        for member in self.running():
            if self.stops == 1:
                member.process.send_signal(signal.SIGTERM)
            else:
                _kill_group(member.process.pid)

    def running(self) -> list[Member]:
        return [member for member in self.ranks if member.exit_code is None]

    def follow(self) -> int:
        """Wait for all to end; returns the exit code of the run, after a line about the process that failed."""
        try:
            deadline = None
            while self.running() and (deadline is None or time.monotonic() < deadline):
                self.look()
                if self.failed is not None and deadline is None:
                    deadline = time.monotonic() + (SAVING_ENDS_WITHIN_S if self.stops else OTHERS_END_WITHIN_S)
            if self.scheduler is not None:
                psutil.wait_procs([self.scheduler.process], timeout=0 if self.failed else SCHEDULER_ENDS_WITHIN_S)
        finally:
            end([*self.ranks, *([self.scheduler] if self.scheduler else [])])
        self.tail.show()
        return self.exit_code()

    def look(self) -> None:
        """Wait a moment; notice who has ended, and the first that failed."""
        watched = [*self.running(), *([self.scheduler] if self.scheduler and self.scheduler.exit_code is None else [])]
        psutil.wait_procs([member.process for member in watched], timeout=LOOK_EVERY_S)
        self.tail.show()
        ended = [member for member in watched if member.exit_code not in (None, 0, SAVED)]
        if self.failed is None and ended:
            # A process that a signal ended before one that failed without it: a rank before the scheduler.
            self.failed = min(ended, key=lambda member: (member.rank is None, member.exit_code >= 0))

    def exit_code(self) -> int:
        codes = {member.exit_code for member in self.ranks}
        of_a_stop = (-signal.SIGTERM, -signal.SIGKILL, STOPPED)
        if self.stops and (self.failed is None or self.failed.exit_code in of_a_stop):
            return self.stopped(codes)
        if self.failed is not None:
            print(f"error: {last_words(self.failed)}", file=sys.stderr)
            return self.failed.exit_code if self.failed.exit_code > 0 else 128 - self.failed.exit_code
        return SAVED if SAVED in codes else 0

    def stopped(self, codes: set[int | None]) -> int:
        """The run was asked to stop."""
        said = [line for line in _lines(self.ranks[0].log) if line.startswith("stopped after")]
        if codes <= {0, SAVED} and SAVED in codes:
            print(said[-1] if said else "stopped and saved; --resume auto goes on from there", file=sys.stderr)
            return SAVED
        if codes == {0}:
            return 0  # it had just ended
        print("stopped at once; what had been saved before is there" if self.saves else "stopped", file=sys.stderr)
        return STOPPED


def last_words(member: Member) -> str:
    """Why a process ended: its own error line, or its exit and the end of its log."""
    lines = _lines(member.log)
    own = [line for line in lines if line.startswith("error: ")]
    if own and member.exit_code > 0:
        return f"{member.name}: {own[-1].removeprefix('error: ')}"
    how = (
        f"was ended by {signal.Signals(-member.exit_code).name}"
        if member.exit_code < 0
        else f"ended with exit code {member.exit_code}"
    )
    return f"{member.name} {how}; {_end_of(member.log)}"


def _end_of(log: Path) -> str:
    shown = [line for line in _lines(log) if line.strip()][-END_OF_LOG:]
    return f"the end of {log}:" + "".join(f"\n  {line}" for line in shown or ["(empty)"])


def _lines(path: Path) -> list[str]:
    try:
        return re.split(r"[\r\n]+", path.read_text(errors="replace"))
    except OSError:
        return []


def _kill_group(group: int) -> None:
    """Kill a rank, which leads a group of its own, and what it started."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended
