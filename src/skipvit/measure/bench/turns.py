"""The parent's end of a measurement: processes that work one at a time, each in its turn.

A process that does not have its turn is stopped (SIGSTOP): neither MindSpore's threads, which spin for a while, nor
data threads that read ahead take processor time from the one that is measured, and a queue of batches is as full as it
was left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any

from skipvit.util.errors import RunError
from skipvit.util.processes import clean_environment

ENDS_WITHIN_S = 10


class Worker:
    """A process that runs `timed.serve`.

    Args:
        name: what to call it in a message.
        words: what Python is to run, e.g. ["-m", "skipvit.measure.bench.worker"]; `serve`'s two words are added.
        python: the interpreter, e.g. of another environment.
    """

    def __init__(self, name: str, words: Sequence[str], python: str = sys.executable):
        self.name, self.said = name, tempfile.TemporaryFile()
        self.connection, theirs = Pipe()
        self.process = subprocess.Popen(
            [python, *words, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=self.said,
            stderr=self.said,
            pass_fds=[theirs.fileno()],
            env=clean_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which ends all
        )
        theirs.close()

    def ready(self) -> None:
        """Wait until it has started."""
        self._answer()

    def ask(self, method: str, *arguments) -> Any:
        """Give it its turn: what that method of `serve`'s subject returns.

        Raises:
            UsageError, RunError: what the method raised, after the worker's name; or how the process died.
        """
        self.process.send_signal(signal.SIGCONT)
        try:
            self.connection.send((method, arguments))
        except OSError:
            raise self._death() from None
        return self._answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.said.close()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self.process.send_signal(signal.SIGSTOP)
        if isinstance(answer, Exception):
            raise type(answer)(f"{self.name}: {answer}")
        return answer

    def _death(self) -> RunError:
        try:
            code = self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return RunError(f"{self.name}: its process does not answer any more")
        if code == -signal.SIGKILL:
            how = "its process was killed, most likely for want of memory; use a smaller data.batch_size"
            return RunError(f"{self.name}: {how}")
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        return RunError(f"{self.name}: its process ended {how}; it printed last: {lines[-1][:300]}")
