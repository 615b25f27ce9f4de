"""Choosing a device in a process that has computed already, as notebooks have."""

import subprocess
import sys


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
