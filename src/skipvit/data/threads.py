"""Threads that make batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Threads:
    """Like an executor's, but daemons: one that waits for storage that does not answer keeps no process alive."""

    def __init__(self, count: int):
        self.tasks: SimpleQueue = SimpleQueue()
        self.all = [threading.Thread(target=self._work, daemon=True, name="batches") for _ in range(count)]
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
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(make(*arguments))
                except BaseException as error:
                    future.set_exception(error)
