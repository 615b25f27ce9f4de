"""The processes of a run."""

from __future__ import annotations

from pathlib import Path

import psutil


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those whose working folder is this one: ranks, scheduler, launcher."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found
