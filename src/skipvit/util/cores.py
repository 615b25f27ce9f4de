"""Cores, memory and devices that this process may use: less than the machine's where a container allows less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer by a quota of processor time; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([bound, *_quotas()])))


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or a smaller limit of a control group."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def memory_free() -> int:
    """Bytes of memory that are free for a new process, or what a control group's limit leaves of them."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _memory_limits())])


def ascend_devices(dev: Path = Path("/dev")) -> list[int]:
    """Numbers of the Ascend devices that a process here may use."""
    found = sorted(int(path.name[7:]) for path in dev.glob("davinci[0-9]*") if path.name[7:].isdecimal())
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "").strip()
    return [i for i in found if str(i) in visible.split(",")] if visible else found


def _quotas() -> Iterator[float]:
    """Cores' worth of processor time that control groups allow."""
    for folder in _groups("cpu"):
        period, quota = _number(folder / "cpu.cfs_period_us"), _number(folder / "cpu.cfs_quota_us")  # version 1
        words = (_text(folder / "cpu.max") or "").split()  # version 2: "200000 100000", or "max 100000"
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
            quota, period = int(words[0]), int(words[1])
        if quota and period and quota > 0:
            yield quota / period


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limits of control groups, and what is used of them; bytes."""
    for folder in _groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most = _number(folder / limit)
            if most is not None:
                yield most, _number(folder / used) or 0


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, of versions 1 and 2, from its own up to the root."""
    for line in (_text(MEMBERSHIP) or "0::/").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "" or controller in controllers.split(","):
            root = CGROUPS / controller if controllers else CGROUPS
            # In a container its own group may be mounted as the root, whatever path the kernel names.
            inner = Path(path.lstrip("/"))
            yield from (root / part for part in (inner, *inner.parents))


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdecimal() else None
