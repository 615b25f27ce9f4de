"""Cores and memory: a container's quota counts, of control groups of both versions."""

import os

import psutil
import pytest

from skipvit.util import cores as subject


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A made-up /sys/fs/cgroup; call it with files and their content, and /proc/self/cgroup."""
    monkeypatch.setattr(subject, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(subject, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def make(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("-", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def test_without_limits(groups):
    groups("0::/\n", **{"cpu-max": "max 100000\n", "memory-max": "max\n"})
    assert subject.cores() == 64 and subject.memory_limit() == psutil.virtual_memory().total


@pytest.mark.parametrize("quota, count", [("200000", 2), ("250000", 2), ("50000", 1)])
def test_a_quota_of_version_2(groups, quota, count):
    groups("0::/job/step\n", **{"job__cpu-max": f"{quota} 100000\n", "job__step__cpu-max": "max 100000\n"})
    assert subject.cores() == count


def test_a_quota_of_version_1_mounted_as_the_root(groups):
    """What a container sees: the kernel names the host's path, and its own group lies at the root."""
    groups(
        "4:memory:/docker/1f\n1:cpu,cpuacct:/docker/1f\n",
        **{"cpu__cpu-cfs_quota_us": "300000\n", "cpu__cpu-cfs_period_us": "100000\n"},
        **{"memory__memory-limit_in_bytes": f"{1 << 30}\n", "memory__memory-usage_in_bytes": f"{1 << 20}\n"},
    )
    assert subject.cores() == 3
    assert subject.memory_limit() == 1 << 30 and subject.memory_free() == (1 << 30) - (1 << 20)


def test_no_quota_of_version_1(groups):
    groups("1:cpu:/\n", **{"cpu__cpu-cfs_quota_us": "-1\n", "cpu__cpu-cfs_period_us": "100000\n"})
    assert subject.cores() == 64


def test_fewer_cores_than_the_quota(groups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    groups("0::/\n", **{"cpu-max": "400000 100000\n"})
    assert subject.cores() == 1
