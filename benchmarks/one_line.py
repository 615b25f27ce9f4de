"""What the hostile checks of this folder have in common: a command line is run in this process, and its end is judged.

Good is exit code 0, or 1 or 2 with exactly one short line that says `error: `; never a traceback, never a hang.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GLOG_v", "4")
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # support/ makes runs, images and damages for both

from tqdm import tqdm

from skipvit.cli import COMMANDS, main, run

LONGEST_LINE = 700  # characters of an error line
LIMIT_S = 60  # of computing, or of waiting for nothing
IDLE_S = 1.0  # of processor time in LIMIT_S: less is a hang
MOST_MEMORY = 6 << 30  # bytes: a file that never ends is then an error, not the machine's
NO_MEMORY = "not enough memory"
WRONG = "did neither"


class End(NamedTuple):
    """How a command line ended: `ran`, `was refused in one line` or WRONG; the line, or what went wrong."""

    what: str
    line: str
    out: str = ""


class Hang(BaseException):
    """Raised by the alarm."""


def attempt(words: list[str], limit_s: float = LIMIT_S) -> End:
    """Run `skipvit WORDS` here."""
    out, err = io.StringIO(), io.StringIO()
    before, code = signal.signal(signal.SIGALRM, _alarm(limit_s)), None
    argv, sys.argv = sys.argv, ["skipvit", *words]  # for `main`, and for what a run notes of its start
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, LIMIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            known = bool(words) and words[0] in COMMANDS  # of which `main` would end this process
            code = run(words[0], words[1:]) if known else main()
    except SystemExit as end:
        code = end.code
    except Hang:
        return End(WRONG, f"hangs, or computes for more than {limit_s:g} s")
    except BaseException:
        return End(WRONG, traceback.format_exc()[-3000:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    return judged(code, err.getvalue(), out.getvalue())


def judged(code: int | str | None, err: str, out: str) -> End:
    """Libraries and the log warn on stderr too; what matters is one line that says error."""
    own = [line for line in err.splitlines() if not line.startswith(("warning: ", "[WARNING]")) and line.strip()]
    errors = [line for line in own if line.startswith(("error", "Traceback"))]
    if code in (0, None) and not errors:
        return End("ran", "", out)
    good = len(errors) == 1 and errors[0].startswith("error: ") and own[-1] == errors[0] and NO_MEMORY not in err
    if code in (1, 2) and good and len(errors[0]) <= LONGEST_LINE and errors[0].isprintable():
        return End("was refused in one line", errors[0], out)
    return End(WRONG, f"exit code {code}\n{err[-3000:]}", out)


def _alarm(limit_s: float) -> Callable[..., None]:
    """Ends what computes for longer, or hardly computes at all; on a busy machine it may take its time."""
    times = [time.process_time()]

    def look(*_) -> None:
        times.append(time.process_time())
        if times[-1] - times[-2] < IDLE_S or times[-1] - times[0] > limit_s:
            raise Hang

    return look


def run_all(cases: Iterable[tuple[str, End]], total: int, what: str, show: bool) -> int:
    """Follow the cases, print what is wrong and at the end how many there are of which kind; 1 if one is wrong."""
    tally: Counter[str] = Counter()
    for label, end in tqdm(cases, total=total, disable=None, unit="case"):
        tally[end.what] += 1
        if end.what == WRONG or show:
            print(f"{label}: {end.what}: {end.line}", flush=True)
    counts = ", ".join(f"{tally[kind]} {kind}" for kind in ("ran", "was refused in one line", WRONG))
    print(f"{tally.total()} {what}: {counts}")
    return 1 if tally[WRONG] else 0


def chosen(cases: list, count: int | None, seed: int) -> list:
    """So many of them by lot, in their order; all without a number."""
    if count is None or count >= len(cases):
        return cases
    numbers = sorted(random.Random(seed).sample(range(len(cases)), count))
    return [cases[number] for number in numbers]


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[list[str]]:
    """A list that has, afterwards, the files of a folder that were changed or are gone."""
    changed: list[str] = []
    before = _state(folder)
    yield changed
    after = _state(folder)
    changed += sorted(str(path) for path in before if after.get(path) != before[path])


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
