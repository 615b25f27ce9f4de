"""Devices: choose one, join the other processes, average over them."""

from __future__ import annotations

import os
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, communication, device_context, nn, ops

from skipvit.data.order import Shard
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import one_line


def choose(device: str) -> str:
    """`cpu` or `ascend`, of auto, cpu or ascend. Raises UsageError if ascend is asked for where MindSpore finds no
    device."""
    has_device = device_context.ascend.is_available() if device != "cpu" else False
    if device == "ascend" and not has_device:
        raise UsageError(
            "device: ascend asked for, but MindSpore finds no Ascend device or driver here; use device: cpu"
        )
    return "ascend" if has_device else "cpu"


def start(device: str, deterministic: bool = False) -> tuple[str, Shard]:
    """Set graph mode and the device, and join the other processes if a launcher (`msrun`) started several.

    Args:
        device: auto, cpu or ascend.
        deterministic: choose kernels and collectives whose results repeat bit by bit.

    Returns:
        the device (`cpu` or `ascend`) and this process's shard.

    Raises:
        UsageError: ascend is asked for where MindSpore finds no device, or a device other than the one in use.
        RunError: the processes did not find each other.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    chosen = choose(device)
    _set_device("Ascend" if chosen == "ascend" else "CPU")
    if deterministic and ms.get_context("deterministic") != "ON":  # MindSpore takes it once, before the devices join
        ms.set_deterministic(True)
    if world_size() <= 1:
        return chosen, Shard()
    try:
        communication.init("hccl" if chosen == "ascend" else "mccl")
    except (RuntimeError, ValueError, TypeError) as error:
        raise RunError(f"the processes could not join: {one_line(error)}") from None
    return chosen, Shard(communication.get_rank(), communication.get_group_size())


def _set_device(target: str) -> None:
    """MindSpore takes it once, and only before anything is computed; in a notebook something may have been."""
    before = ms.get_context("device_target")
    try:
        ms.set_device(target)
    except RuntimeError:
        if before != target:
            ms.set_context(device_target=before)
            raise UsageError(
                f"device: {target} asked for, but this process computes on {before} already; start a new one"
            ) from None


def gradient_average(parameters, shard: Shard) -> nn.Cell | None:
    """A cell that averages gradients over the devices; None on one device."""
    if shard.world_size == 1:
        return None
    return nn.DistributedGradReducer(parameters, mean=True, degree=shard.world_size)


class AllSum(nn.Cell):
    """Sum of a tensor over all devices."""

    def __init__(self):
        super().__init__()
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, x):
        return self.reduce(x)


_all_sum = lru_cache(AllSum)  # one cell for the whole run, so that each shape compiles once


def refuse_disagreement(numbers: dict[str, int], shard: Shard) -> None:
    """Compare numbers over the devices: each device has its own, by what they are of, unsigned and below 2^33. Raises
    RunError: they differ, naming the first."""
    # Parts of 11 bits: their float32 sums are exact on up to 8192 devices.
    mine = np.array([[value >> 22, value >> 11 & 0x7FF, value & 0x7FF] for value in numbers.values()], np.float64)
    same = (sum_over_devices(mine, shard) == shard.world_size * mine).all(1)
    for name, agrees in zip(numbers, same):
        if not agrees:
            raise RunError(f"the devices do not have the same {name} (noticed by device {shard.rank})")


def sum_over_devices(values: np.ndarray, shard: Shard) -> np.ndarray:
    """Sum of a float64 array over all devices, on every device (in float32: counts are exact up to 2^24)."""
    if shard.world_size == 1:
        return values
    return _all_sum()(Tensor(values.astype(np.float32))).asnumpy().astype(np.float64)


def connected_on_cpu() -> bool:
    """Whether this process has joined others on CPU."""
    return communication.GlobalComm.INITED and communication.GlobalComm.BACKEND == "mccl"


def rank() -> int:
    """This process's number in the run; 0 of a single one."""
    return _variable("RANK_ID", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes the run has. MS_WORKER_NUM is of msrun, RANK_SIZE of a start by rank table."""
    return max(_variable(name, 1) for name in ("MS_WORKER_NUM", "RANK_SIZE"))


def _variable(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "").strip() or str(otherwise)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(
            f"{name}: '{text[:40]}' in the environment is not a number; unset it, or start with the launcher"
        )
    return int(text)
