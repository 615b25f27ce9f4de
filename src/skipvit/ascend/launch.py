"""Start the ranks of a distributed run on this machine, a process a device, and stay with them to the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skipvit.ascend.rank_table import Device, devices_of
from skipvit.ascend.ranks import End, Job, Member, end
from skipvit.util import processes
from skipvit.util.cores import ascend_devices, cores
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import lock, make_folder, open_regular, resolved, rotate
from skipvit.util.signals import stop_signals
from skipvit.util.text import counted

OTHERS_JOIN_WITHIN_S = 600


@dataclass(frozen=True)
class Cluster:
    """Where the ranks of a run are: `count` of them on each of `nodes` machines, of which this one is number `node`.

    Args:
        address, port: of the scheduler, which the first machine runs.
        rank_table: file that says which device is which rank; the ranks then do without a scheduler. Ascend only.
        bind_core: whether each rank keeps to a share of this machine's cores.
    """

    count: int
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 8118
    rank_table: Path | None = None
    bind_core: bool = False

    @property
    def world_size(self) -> int:
        return self.nodes * self.count

    @property
    def has_scheduler(self) -> bool:
        return self.world_size > 1 and self.rank_table is None

    def devices(self) -> list[Device]:
        """This machine's devices and ranks. Raises UsageError: the rank table is not one, or of other machines."""
        if self.rank_table is not None:
            return devices_of(self.rank_table, self.node, self.nodes, self.count)
        return [Device(i, self.node * self.count + i) for i in range(self.count)]


def check(cluster: Cluster, device: str) -> list[str]:
    """Whether the ranks can be started here.

    Args:
        device: `cpu` or `ascend`.

    Returns:
        warnings.

    Raises:
        UsageError: not as many devices, a wrong rank table, an address or a port that cannot be used.
    """
    warnings = []
    if device == "ascend":
        _refuse_missing_devices(cluster, ascend_devices())
    elif cluster.rank_table is not None:
        raise UsageError("--rank_table: rank tables are for Ascend devices, and this run is on the CPU; leave it out")
    elif cluster.count > cores():
        warnings.append(f"{cluster.count} processes on {counted(cores(), 'core')} will be slow")
    return warnings + (_check_address(cluster) if cluster.has_scheduler else [])


def _refuse_missing_devices(cluster: Cluster, found: list[int]) -> None:
    if cluster.count > len(found):
        raise UsageError(
            f"DEVICES: {cluster.count} asked for, this machine has {len(found)} that may be used; "
            f"see npu-smi info and ASCEND_RT_VISIBLE_DEVICES"
        )
    unknown = [device.device for device in cluster.devices() if device.device not in found]
    if cluster.rank_table is not None and unknown:
        raise UsageError(
            f"{cluster.rank_table}: the rank table has device_id {unknown[0]}, this machine has "
            f"{', '.join(map(str, found))}"
        )


def _check_address(cluster: Cluster) -> list[str]:
    """Warnings. Raises UsageError if the scheduler's address or port cannot be used."""
    where = f"--master_addr {cluster.address} --master_port {cluster.port}"
    try:
        address = socket.gethostbyname(cluster.address)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{where}: the address is not known here ({reason}); give an IP address") from None
    if cluster.node == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, cluster.port))
            except OSError as error:
                reason = f"{error.strerror}; use a free port, and an address of this machine"
                raise UsageError(f"{where}: cannot be used ({reason})") from None
    if cluster.nodes > 1 and address.startswith("127."):
        return [f"{where} is this machine alone; other machines need another address of machine 0"]
    return []


def launch(
    words: list[str], cluster: Cluster, log_dir: Path, saves: bool = True, show: Callable[[str], None] = print
) -> End:
    """Start the ranks and follow them to the end, whatever signals come. For the main thread.

    Args:
        words: what each rank runs, after `skipvit`, e.g. ["train", "--config", ...].
        log_dir: folder of `worker_<rank>.log` and `scheduler.log`; those of the run before get the ending `.1`.
        saves: whether the ranks save when they are asked to stop.
        show: takes each line that the first rank prints.

    Raises:
        UsageError: another launcher writes its logs there, or as `Cluster.devices`.
        RunError: a process could not be started.
    """
    devices = cluster.devices()
    stops: list[int] = []
    with own_logs(log_dir, cluster.node, [device.rank for device in devices]), lifeline() as (reader, writer):
        before = {number: signal.signal(number, lambda asked, *_: stops.append(asked)) for number in stop_signals()}
        try:
            ranks, scheduler = start(words, cluster, devices, log_dir, reader, writer)
            job = Job(ranks, scheduler, saves, show)
            for number in before:
                signal.signal(number, job.ask_to_stop)
            for number in stops:  # those that came meanwhile
                job.ask_to_stop(number)
            return job.follow()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def own_logs(log_dir: Path, node: int, ranks: list[int]) -> Iterator[None]:
    """The folder of the logs, those of a run before moved out of the way, and kept from another launcher of this part.
    Raises UsageError: the folder cannot be made, or a launcher that runs writes there."""
    make_folder(log_dir, "folder of the logs", "--log_dir")
    taken = f"{log_dir}: another launcher writes its logs there; use another --log_dir, or wait for its end"
    with lock(log_dir / f".launcher_{node}", taken):
        for rank in ranks:
            rotate(log_dir / f"worker_{rank}.log")
        if node == 0:
            rotate(log_dir / "scheduler.log")
        yield


@contextmanager
def lifeline() -> Iterator[tuple[int, int]]:
    """A pipe: the scheduler reads and ends when neither the launcher nor a rank is left who could write."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def start(
    words: list[str], cluster: Cluster, devices: list[Device], log_dir: Path, reader: int, writer: int
) -> tuple[list[Member], Member | None]:
    """Start this machine's ranks and, on the first one, MindSpore's scheduler, which makes them known to each other.
    Raises RunError: a process could not be started; those that could be have been ended."""
    members: list[Member] = []
    try:
        if cluster.has_scheduler and cluster.node == 0:
            variables = common_variables(cluster) | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
            variables[processes.LIFELINE] = str(reader)
            log = log_dir / "scheduler.log"
            members.append(Member(_start(words, variables, log, reader), None, log))
        for number, device in enumerate(devices):
            own = share_of_cores(number, cluster.count) if cluster.bind_core else None
            variables = common_variables(cluster, own) | {"RANK_ID": str(device.rank), "DEVICE_ID": str(device.device)}
            if cluster.has_scheduler:
                variables |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(device.rank)}
            log = log_dir / f"worker_{device.rank}.log"
            members.append(Member(_start(words, variables, log, writer), device.rank, log))
    except OSError as error:
        end(members)
        raise RunError(f"a process could not be started ({error.strerror or error})") from None
    scheduler = members.pop(0) if members[0].rank is None else None
    return members, scheduler


def common_variables(cluster: Cluster, own_cores: set[int] | None = None) -> dict[str, str]:
    """Variables of all processes: those by which MindSpore documents that they find each other."""
    variables = processes.followed_environment(own_cores) | {"RANK_SIZE": str(cluster.world_size)}
    if cluster.rank_table is not None:
        variables["RANK_TABLE_FILE"] = str(resolved(cluster.rank_table))
    if cluster.has_scheduler:
        variables |= {
            "MS_WORKER_NUM": str(cluster.world_size),
            "MS_SCHED_HOST": socket.gethostbyname(cluster.address),
            "MS_SCHED_PORT": str(cluster.port),
            "MS_TOPO_TIMEOUT": str(OTHERS_JOIN_WITHIN_S),
        }
    return variables


def _start(words: list[str], variables: dict[str, str], log: Path, inherits: int) -> subprocess.Popen:
    with open_regular(log, "ab") as file:
        return subprocess.Popen(
            processes.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=variables,
            pass_fds=[inherits],
            start_new_session=True,  # Ctrl-C is for the launcher, which hands it on
        )


def share_of_cores(number: int, count: int) -> set[int] | None:
    """One of `count` shares of the cores that this process may use, of neighbours; None where there are too few."""
    mine = sorted(os.sched_getaffinity(0))
    each = len(mine) // count
    return set(mine[number * each : (number + 1) * each]) or None
