"""Everything runs as it trains: compiled graphs, here on the CPU; each process of pytest-xdist on a core of its own."""

import os

import pytest

from skipvit.util.cores import cores
from support.runs import make_run  # noqa: F401  a fixture

MOST_PROCESSES = 4  # each takes up to two GiB

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
    # Two MindSpore processes on two cores run at less than half speed unless each has one. Before MindSpore makes its
    # threads.
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {mine[int(worker[2:]) % len(mine)]})


def pytest_xdist_auto_num_workers(config):
    """How many processes `-n auto` starts: one a core; on a single core none besides pytest itself."""
    return min(cores(), MOST_PROCESSES) if cores() > 1 else 0


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
