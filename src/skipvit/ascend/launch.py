"""`skipvit launch`: train or evaluate in several processes, one a device; `run_distributed.sh` is its door."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skipvit.ascend.checks import JOB
from skipvit.ascend.rank_table import Device, devices_of
from skipvit.cli import eval as evaluate
from skipvit.config import config as configuration
from skipvit.data.order import Shard
from skipvit.engine import distributed, train
from skipvit.util.errors import RunError, UsageError
from skipvit.util.processes import LAUNCHER, Job, adopt_orphans, end, members, refuse_missing
from skipvit.util.signals import stop_signals

MSRUN_ENDS_WITHIN_S = 120  # it imports MindSpore and, to bind cores, asks for the devices
EPILOG = """examples:
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet --resume auto
  ./run_distributed.sh --eval 8 runs/skipvit_small_imagenet
  ./run_distributed.sh --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 8 --config ...   on each of two machines, node_rank 0 and 1
  ./run_distributed.sh 2 --device cpu                                                   two processes on this CPU

exit codes: 0 done, 1 failed, 2 refused before it began, 3 stopped by SIGTERM, SIGHUP or Ctrl-C and saved (a second one kills),
130 stopped without saving, 128 + N a process was ended by signal N"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="run_distributed.sh",
        description="Train or evaluate on several devices, with MindSpore's msrun.",
        epilog=EPILOG,
    )
    result.add_argument("--eval", action="store_true", help="eval.py instead of train.py")
    result.add_argument("--nnodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    result.add_argument(
        "--node_rank", type=int, default=0, metavar="R", help="which of them this one is, from 0 (default: 0)"
    )
    result.add_argument("--master_addr", default="127.0.0.1", metavar="ADDRESS", help="IP address or name of machine 0")
    result.add_argument(
        "--master_port", type=int, default=8118, metavar="PORT", help="a free port of machine 0 (default: 8118)"
    )
    result.add_argument("--rank_table", metavar="FILE", help="start by rank table instead of msrun (Ascend only)")
    result.add_argument(
        "--bind_core", action="store_true", help="have msrun bind each process to CPU cores near its device"
    )
    result.add_argument("--log_dir", metavar="FOLDER", help="folder of worker_<rank>.log (default: logs/<run>)")
    result.add_argument("devices", metavar="DEVICES", help="number of devices, or processes, on this machine")
    result.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="...", help="options of train.py (with --eval: of eval.py)"
    )
    return result


def main(words: list[str]) -> int:
    options = read_words(words)
    check_words(options)
    config = (evaluate if options.eval else train).read(options.words)  # what is cheap to see comes first
    found = ascend_devices()
    check_devices(options, distributed.choose(config.device), found)
    devices = None
    if options.rank_table:
        devices = devices_of(Path(options.rank_table), options.node_rank, options.nnodes, options.devices)
        refuse_unknown(devices, found, options.rank_table)
    elif options.nnodes * options.devices == 1:
        devices = [Device(0, 0)]  # which needs no msrun
    else:
        check_port(options)
    first = devices[0].rank if devices else options.node_rank * options.devices
    (evaluate if options.eval else train).check(options.words, Shard(first, options.nnodes * options.devices))
    log_dir = Path(options.log_dir or Path("logs") / (config.name + "_eval" * options.eval))
    with own_logs(log_dir, range(first, first + options.devices), options.node_rank):
        print(f"{options.devices} process{'es' * (options.devices > 1)}, output in {log_dir}", flush=True)
        return follow(options, devices, log_dir)


@contextmanager
def own_logs(log_dir: Path, ranks: Iterable[int], node_rank: int) -> Iterator[None]:
    """The folder of the logs, without those of a run before, and kept from another launcher of this machine's part.

    Raises:
        UsageError: a launcher that runs writes there.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    with open(log_dir / f".launcher_{node_rank}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{log_dir}: another launcher writes its logs there; use another --log_dir, or wait for its end"
            ) from None
        except OSError:
            pass  # a file system without locks
        for rank in ranks:
            (log_dir / f"worker_{rank}.log").unlink(missing_ok=True)
        yield


def follow(options: argparse.Namespace, devices: list[Device] | None, log_dir: Path) -> int:
    """Start the processes and stay with them to the end, whatever signals come."""
    stops: list[int] = []
    asked = {number: signal.signal(number, lambda *_: stops.append(1)) for number in stop_signals()}
    adopt_orphans()
    try:
        start_by_msrun(options, log_dir, stops) if devices is None else start_directly(options, devices, log_dir)
        found = members(log_dir)
        first = options.node_rank * options.devices
        expected = [device.rank for device in devices] if devices else list(range(first, first + options.devices))
        refuse_missing(found, expected, log_dir)
        ranks = [member for member in found if member.rank is not None]
        # msrun starts a second scheduler where two machines are one; it is ended, and of no other concern.
        others = [member for member in found if member.rank is None]
        job = Job(ranks, others[0] if others and options.node_rank == 0 else None, saves=not options.eval)
        for number in asked:
            signal.signal(number, job.ask_to_stop)
        for _ in stops[:2]:
            job.ask_to_stop()
        return job.follow()
    finally:
        for number, handler in asked.items():
            signal.signal(number, handler)


def read_words(words: list[str]) -> argparse.Namespace:
    """The command line. Raises UsageError: as the parser does, and options on the wrong side of DEVICES."""
    own = parser()
    try:
        options = own.parse_args(words)
    except UsageError as error:
        raise UsageError(f"{error}; options of train.py come after DEVICES") from None
    misplaced = [
        word for word in options.words if word.startswith("--") and word.split("=")[0] in own._option_string_actions
    ]
    if misplaced and misplaced[0] != "--help":
        raise UsageError(
            f"{misplaced[0]}: the launcher's options come before DEVICES, those of train.py after it (see --help)"
        )
    return options


def check_words(options: argparse.Namespace) -> None:
    """The launcher's own options. Raises UsageError."""
    if not options.devices.isdecimal() or int(options.devices) < 1:
        raise UsageError(f"DEVICES: the number of devices on this machine, got '{options.devices}' (see --help)")
    options.devices = int(options.devices)
    if options.nnodes < 1 or not 0 <= options.node_rank < options.nnodes:
        raise UsageError(
            f"--node_rank: {options.node_rank} is not one of --nnodes {options.nnodes} machines, which count from 0"
        )
    if not 0 < options.master_port < 65536:
        raise UsageError(f"--master_port: {options.master_port} is not a port (1 to 65535)")
    if options.rank_table and options.bind_core:
        raise UsageError("--bind_core: msrun binds to cores, and a start by rank table does without it; leave one out")


def ascend_devices(dev: Path = Path("/dev")) -> list[int]:
    """Numbers of the Ascend devices that a process here may use."""
    found = sorted(int(path.name[7:]) for path in dev.glob("davinci[0-9]*") if path.name[7:].isdecimal())
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "").strip()
    return [i for i in found if str(i) in visible.split(",")] if visible else found


def check_devices(options: argparse.Namespace, device: str, devices: list[int]) -> None:
    """Raises UsageError if there are not as many devices, or none where they are needed."""
    if device == "ascend":
        if options.devices > len(devices):
            raise UsageError(
                f"DEVICES: {options.devices} asked for, this machine has {len(devices)} that may be used; "
                f"see npu-smi info and ASCEND_RT_VISIBLE_DEVICES"
            )
    elif options.rank_table:
        raise UsageError("--rank_table: rank tables are for Ascend devices, and this run is on the CPU; leave it out")
    elif options.devices > (os.cpu_count() or 1):
        print(f"warning: {options.devices} processes on {os.cpu_count()} CPU cores will be slow", file=sys.stderr)


def refuse_unknown(devices: list[Device], found: list[int], table: str) -> None:
    """Raises UsageError if a rank table names a device that is not there."""
    unknown = [device.device for device in devices if device.device not in found]
    if unknown:
        raise UsageError(
            f"{table}: the rank table has device_id {unknown[0]}, this machine has {', '.join(map(str, found))}"
        )


def check_port(options: argparse.Namespace) -> None:
    """Raises UsageError if machine 0's address or port cannot be used."""
    where = f"--master_addr {options.master_addr} --master_port {options.master_port}"
    try:
        address = socket.gethostbyname(options.master_addr)
    except OSError as error:
        raise UsageError(
            f"{where}: the address is not known here ({error.strerror or error}); give an IP address"
        ) from None
    if options.nnodes > 1 and address.startswith("127."):
        print(
            f"warning: {where} is this machine alone; other machines need another address of machine 0", file=sys.stderr
        )
    if options.node_rank > 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, options.master_port))
        except OSError as error:
            reason = f"{error.strerror}; use a free port, and an address of this machine"
            raise UsageError(f"{where}: cannot be used ({reason})") from None


def command(options: argparse.Namespace) -> list[str]:
    """What every process runs, after the name of the Python."""
    return ["-m", "skipvit", "eval" if options.eval else "train", *options.words]


def own_environment() -> dict[str, str]:
    """Variables for the ranks: no traces of another job, and who their launcher is."""
    return {name: value for name, value in os.environ.items() if name not in (*JOB, "RANK_TABLE_FILE")} | {
        LAUNCHER: str(os.getpid())
    }


def start_by_msrun(options: argparse.Namespace, log_dir: Path, stops: list[int]) -> None:
    """Have msrun start the scheduler and the ranks.

    Args:
        stops: grows with each signal that asks to stop.

    Raises:
        RunError: it could not, or not soon enough.
    """
    folder = Path(sys.executable).parent
    python = next((name for name in ("python", "python3") if (folder / name).exists()), None)
    if python is None:
        raise RunError(f"{folder}: msrun needs a `python` beside {sys.executable}; make a virtual environment")
    words = [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        "--join=False",
        f"--bind_core={options.bind_core}",
        f"--worker_num={options.nnodes * options.devices}",
        f"--local_worker_num={options.devices}",
        f"--node_rank={options.node_rank}",
        f"--master_addr={options.master_addr}",
        f"--master_port={options.master_port}",
        f"--log_dir={log_dir}",
        python,
        *command(options),
    ]
    # msrun starts the Python that it finds first.
    environment = own_environment() | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    log = log_dir / f"msrun_{options.node_rank}.log"
    with open(log, "w") as file:
        msrun = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    deadline = time.monotonic() + MSRUN_ENDS_WITHIN_S
    while msrun.poll() is None and time.monotonic() < deadline and len(stops) < 2:
        time.sleep(0.05)
    if msrun.returncode != 0:
        msrun.kill()
        end(members(log_dir))
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        how = "did not start the processes in time" if msrun.returncode is None else "could not start the processes"
        raise RunError(f"msrun {how}: {lines[-1]}; see {log}")


def start_directly(options: argparse.Namespace, devices: list[Device], log_dir: Path) -> None:
    """Start the ranks of this machine as a rank table says, or the only one there is."""
    common = own_environment() | {"RANK_SIZE": str(options.nnodes * options.devices)}
    if options.rank_table:
        common["RANK_TABLE_FILE"] = str(Path(options.rank_table).resolve())
    for device in devices:
        environment = common | {"RANK_ID": str(device.rank), "DEVICE_ID": str(device.device)}
        with open(log_dir / f"worker_{device.rank}.log", "w") as log:
            words = [sys.executable, *command(options)]
            subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
