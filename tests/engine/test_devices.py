"""What a rank reads of its environment; choosing a device in a process that has computed already, as notebooks have."""

import subprocess
import sys

import pytest

from skipvit.engine import devices
from skipvit.util.errors import UsageError


def test_a_single_process_is_rank_0_whatever_is_left_over(monkeypatch):
    for name in ("MS_WORKER_NUM", "RANK_SIZE", "RANK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (devices.rank(), devices.world_size()) == (0, 1)
    monkeypatch.setenv("RANK_ID", "7")
    assert (devices.rank(), devices.world_size()) == (0, 1)
    monkeypatch.setenv("RANK_SIZE", " 8 ")
    assert (devices.rank(), devices.world_size()) == (7, 8)


@pytest.mark.parametrize("text", ["eight", "-1", "1e3", "8 8", "²", "9" * 5000])
def test_a_variable_that_is_no_number_is_one_line(monkeypatch, text):
    monkeypatch.setenv("MS_WORKER_NUM", text)
    with pytest.raises(UsageError, match="^MS_WORKER_NUM: '.*' in the environment is not a number; unset it"):
        devices.world_size()


def test_the_device_that_is_in_use_may_be_chosen_again():
    code = (
        "import mindspore as ms\n"
        "(ms.Tensor([1.0]) + 1).asnumpy()\n"
        "from skipvit.engine.devices import start\n"
        "print(start('cpu'), start('cpu')[0])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "('cpu', Shard(rank=0, world_size=1)) cpu\n"
