"""Everything runs as it trains: compiled graphs, here on the CPU."""

import mindspore as ms
import pytest

from support.runs import make_run  # noqa: F401  a fixture


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
