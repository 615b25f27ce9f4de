"""What the devices compare before they train, with the other device's numbers added by hand."""

import numpy as np
import pytest

from skipvit.data.order import Shard
from skipvit.engine import devices
from skipvit.util.errors import RunError


def parts(numbers):
    return np.array([[n >> 22, n >> 11 & 0x7FF, n & 0x7FF] for n in numbers.values()], np.float64)


@pytest.fixture
def with_device(monkeypatch):
    """Have a second device with these numbers."""

    def join(other):
        monkeypatch.setattr(devices, "sum_over_devices", lambda mine, shard: mine + parts(other))

    return join


MINE = {"configuration": 17, "position": 3 << 20 | 5, "weights": 2**32 - 1}


def test_equal_numbers_agree(with_device):
    with_device(MINE)
    assert devices.refuse_disagreement(MINE, Shard(0, 2)) is None  # and raises nothing


@pytest.mark.parametrize(
    "name, value", [("configuration", 18), ("position", 3 << 20 | 6), ("weights", 2**32 - 2), ("weights", 0)]
)
def test_the_first_that_differs_is_named(with_device, name, value):
    with_device(MINE | {name: value})
    with pytest.raises(RunError, match=rf"the devices do not have the same {name} \(noticed by device 1\)"):
        devices.refuse_disagreement(MINE, Shard(1, 2))


def test_the_sum_of_thousands_of_devices_is_exact_in_float32():
    largest = np.float32(0x7FF)
    assert float(largest * np.float32(8192)) == 0x7FF * 8192 < 2**24
