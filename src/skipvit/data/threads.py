"""Threads that make batches."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any
from weakref import WeakSet

ENDS_WITHIN_S = 5  # a thread, when the process does; one whose storage does not answer is left behind


class Threads:
    """Like an executor's, but daemons: one that waits for storage that does not answer keeps no process alive."""

    running: WeakSet[Threads] = WeakSet()

    def __init__(self, count: int):
        self.tasks: SimpleQueue = SimpleQueue()
        self.over = False
        self.all = [threading.Thread(target=self._work, daemon=True, name="batches") for _ in range(count)]
        Threads.running.add(self)
        for thread in self.all:
            thread.start()

    def submit(self, make: Callable[..., Any], *arguments: Any) -> Future:
        future: Future = Future()
        self.tasks.put((future, make, arguments))
        return future

    def end(self, wait: bool) -> None:
        """After what was submitted and not cancelled."""
        for _ in self.all:
            self.tasks.put(None)
        for thread in self.all if wait else ():
            thread.join()

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            future, make, arguments = task
            if self.over:
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(make(*arguments))
                except BaseException as error:
                    future.set_exception(error)


@atexit.register
def end_all() -> None:
    """Before the interpreter is taken down: a thread that comes back from a library meanwhile can end the process by
    SIGSEGV."""
    latest, left = time.monotonic() + ENDS_WITHIN_S, list(Threads.running)
    for threads in left:
        threads.over = True
        threads.end(wait=False)
    for thread in (thread for threads in left for thread in threads.all):
        thread.join(max(0, latest - time.monotonic()))
