"""Processes that follow others: what a child's environment says, and that it ends when its parent does."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import select
import signal
import sys
import threading
from collections.abc import Collection
from pathlib import Path

SAVED = 3  # exit code of a process that was asked to stop and has saved
SAVES_WITHIN_S = 45  # after its parent has gone; then it is taken for one that hangs
LAUNCHER = "SKIPVIT_LAUNCHER"  # number of the process that has started this one and follows it
LIFELINE = "SKIPVIT_LIFELINE"  # number of the file of `end_with_pipe`
CORES = "SKIPVIT_CORES"  # cores that this process is to keep to, e.g. 0,2
# Set for the processes of a job, by us, by MindSpore's launcher or by hand: with another job's, one waits for that job.
OF_A_JOB = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_NODE_ID",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "RANK_SIZE",
    "RANK_ID",
    "RANK_TABLE_FILE",
)
OURS = (LAUNCHER, LIFELINE, CORES)
_parent: int | None = None  # of `settle`


def clean_environment() -> dict[str, str]:
    """This process's variables for a child that finds this package, without those of a job."""
    variables = {name: value for name, value in os.environ.items() if name not in (*OF_A_JOB, *OURS)}
    paths = [str(Path(__file__).parents[2]), *filter(None, [variables.get("PYTHONPATH")])]
    return variables | {"PYTHONPATH": os.pathsep.join(paths)}


def followed_environment(cores: Collection[int] | None = None) -> dict[str, str]:
    """As `clean_environment`, for a child that this process follows: see `settle`. `cores`: those that the child is to
    keep to."""
    variables = clean_environment() | {LAUNCHER: str(os.getpid())}
    return variables | ({CORES: ",".join(map(str, sorted(cores)))} if cores else {})


def command(*words: str) -> list[str]:
    """What starts `skipvit` with this Python: `command("train", "--config", ...)`."""
    return [sys.executable, "-m", "skipvit", *words]


def settle() -> None:
    """First thing in a process that may be followed: end when its launcher does, however; keep to the cores it gave.

    A SIGTERM, which saves, comes from the kernel. A rank that waits for one that has gone cannot take it, so after
    SAVES_WITHIN_S it is killed.
    """
    global _parent
    cores, launcher, lifeline = (os.environ.pop(name, "") for name in (CORES, LAUNCHER, LIFELINE))
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if launcher:
        _parent = int(launcher)
    if lifeline:
        end_with_pipe(int(lifeline))
    elif launcher:
        end_with_parent(int(launcher))
        over = threading.Event()
        thread = threading.Thread(target=_end_late, args=(int(launcher), over), daemon=True, name="end with launcher")
        thread.start()
        # A thread of Python that wakes while the interpreter is taken down is a hazard.
        atexit.register(lambda: (over.set(), thread.join()))


def is_followed() -> bool:
    """Whether another process follows this one, hands signals on and kills where it is asked twice."""
    return _parent is not None


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends, however it ends. If it has ended already, exit.
    `parent`: the number of the process that started this one. It has to do so in a thread that lives as long as it."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def end_with_pipe(reader: int) -> None:
    """Have the kernel kill this process when no other one has the writing end of a pipe any more.

    For MindSpore's scheduler: it has to stay until the ranks have saved, and while it waits no thread of Python runs.
    """
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    if select.select([reader], [], [], 0)[0]:  # nobody writes: there is only an end to be read
        os._exit(1)


def kill_group(number: int) -> None:
    """Kill a child that leads a group of its own (`start_new_session`), and what it started."""
    try:
        os.killpg(number, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended


def signal_name(number: int) -> str:
    """E.g. SIGKILL."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _end_late(parent: int, over: threading.Event) -> None:
    while os.getppid() == parent and not over.is_set():
        over.wait(1)
    if not over.wait(SAVES_WITHIN_S):
        os.kill(os.getpid(), signal.SIGKILL)
