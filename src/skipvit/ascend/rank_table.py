"""Rank tables: the file in which some Ascend clusters say which device is which rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from skipvit.util.errors import UsageError
from skipvit.util.files import read_text


@dataclass(frozen=True)
class Device:
    """A device of this server: its number here, and its rank in the run."""

    device: int
    rank: int


def devices_of(path: Path, server: int, servers: int, count: int) -> list[Device]:
    """The devices of one server of a rank table (version 1.0), by rank.

    Args:
        server: which of the table's servers this one is, from 0.
        servers, count: how many servers, and devices on each, the run is to have.

    Raises:
        UsageError: no such file, not a rank table, or one of another number of servers or devices.
    """
    try:
        table = json.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"{path}: the rank table cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: the rank table is not JSON ({error})") from None
    try:
        found = [[Device(int(d["device_id"]), int(d["rank_id"])) for d in s["device"]] for s in table["server_list"]]
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"{path}: not a rank table of version 1.0 ({type(error).__name__}: {error}); it has server_list, and each "
            f"server a list of device with device_id and rank_id"
        ) from None
    if len(found) != servers:
        raise UsageError(
            f"{path}: the rank table has {len(found)} servers, the run {servers}; set --nnodes {len(found)}"
        )
    for number, devices in enumerate(found):
        if len(devices) != count:
            raise UsageError(
                f"{path}: server {number} of the rank table has {len(devices)} devices, the run {count} on each server"
            )
        if len({device.device for device in devices}) != count:
            raise UsageError(f"{path}: server {number} of the rank table has the same device_id twice")
    ranks = sorted(device.rank for devices in found for device in devices)
    if ranks != list(range(servers * count)):
        raise UsageError(f"{path}: the ranks of the rank table are not 0 to {servers * count - 1}, each once")
    return sorted(found[server], key=lambda device: device.rank)
