"""`skipvit launch`: train or evaluate in several processes, one a card; `run_distributed.sh` is its door."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from skipvit import config as configuration
from skipvit.config import Config
from skipvit.data.pipeline import Shard
from skipvit.errors import RunError, UsageError
from skipvit.tools import evaluate, train
from skipvit.training import distributed
from skipvit.training.processes import Job, Member, adopt_orphans, members
from skipvit.training.rank_table import Card, cards_of

EPILOG = """examples:
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet --resume auto
  ./run_distributed.sh --eval 8 runs/skipvit_small_imagenet
  ./run_distributed.sh --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 8 --config ...   on each of two machines, node_rank 0 and 1
  ./run_distributed.sh 2 --device cpu                                                   two processes on this CPU

exit codes: 0 done, 1 failed, 2 refused before it began, 3 stopped by SIGTERM or Ctrl-C and saved (a second one kills),
128 + N a process was ended by signal N"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="run_distributed.sh", description="Train or evaluate on several cards, with MindSpore's msrun.", epilog=EPILOG
    )
    result.add_argument("--eval", action="store_true", help="eval.py instead of train.py")
    result.add_argument("--nnodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    result.add_argument("--node_rank", type=int, default=0, metavar="R", help="which of them this one is, from 0 (default: 0)")
    result.add_argument("--master_addr", default="127.0.0.1", metavar="ADDRESS", help="IP address or name of machine 0")
    result.add_argument("--master_port", type=int, default=8118, metavar="PORT", help="a free port of machine 0 (default: 8118)")
    result.add_argument("--rank_table", metavar="FILE", help="start by rank table instead of msrun (Ascend only)")
    result.add_argument("--bind_core", action="store_true", help="have msrun bind each process to CPU cores near its card")
    result.add_argument("--log_dir", default="logs", metavar="FOLDER", help="folder of worker_<rank>.log (default: logs)")
    result.add_argument("cards", metavar="CARDS", help="number of cards, or processes, on this machine")
    result.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of train.py (with --eval: of eval.py)")
    return result


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    check_words(options)
    config = check_run(options)
    check_devices(options, distributed.choose(config.device), ascend_devices())
    cards = None
    if options.rank_table:
        cards = cards_of(Path(options.rank_table), options.node_rank, options.nnodes, options.cards)
    elif options.nnodes * options.cards == 1:
        cards = [Card(0, 0)]  # which needs no msrun
    else:
        check_port(options)
    log_dir = Path(options.log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    for old in [*log_dir.glob("worker_*.log"), log_dir / "scheduler.log"]:
        old.unlink(missing_ok=True)
    print(f"{options.cards} processes, their output in {log_dir}", flush=True)
    adopt_orphans()
    return follow(options, cards, log_dir)


def follow(options: argparse.Namespace, cards: list[Card] | None, log_dir: Path) -> int:
    """Start the processes and stay with them to the end, whatever signals come."""
    stops: list[int] = []
    asked = {number: signal.signal(number, lambda *_: stops.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        found = start_by_msrun(options, log_dir) if cards is None else start_directly(options, cards, log_dir)
        ranks = [member for member in found if member.rank is not None]
        # A machine other than the first needs no scheduler; msrun starts one where both are the same machine.
        scheduler = next((member for member in found if member.rank is None), None)
        if not ranks:
            raise RunError(f"no process stayed alive; see {log_dir}")
        job = Job(ranks, scheduler if options.node_rank == 0 else None)
        for number in asked:
            signal.signal(number, job.ask_to_stop)
        if stops:
            job.ask_to_stop()
        result = job.follow()
        if scheduler is not None and options.node_rank > 0:
            scheduler.process.kill()
        return result
    finally:
        for number, handler in asked.items():
            signal.signal(number, handler)


def check_words(options: argparse.Namespace) -> None:
    """The launcher's own options. Raises UsageError."""
    if not options.cards.isdecimal() or int(options.cards) < 1:
        raise UsageError(f"CARDS: the number of cards on this machine, got '{options.cards}' (see --help)")
    options.cards = int(options.cards)
    if options.nnodes < 1 or not 0 <= options.node_rank < options.nnodes:
        raise UsageError(f"--node_rank: {options.node_rank} is not one of --nnodes {options.nnodes} machines, which count from 0")
    if not 0 < options.master_port < 65536:
        raise UsageError(f"--master_port: {options.master_port} is not a port (1 to 65535)")
    if options.rank_table and options.bind_core:
        raise UsageError("--bind_core: msrun binds to cores, and a start by rank table does without it; leave one out")


def check_run(options: argparse.Namespace) -> Config:
    """What train.py or eval.py would refuse, refused once and before any process is started."""
    shard = Shard(options.node_rank * options.cards, options.nnodes * options.cards)
    return (evaluate if options.eval else train).check(options.words, shard)


def ascend_devices(dev: Path = Path("/dev")) -> list[int]:
    """Numbers of the Ascend cards that a process here may use."""
    found = sorted(int(path.name[7:]) for path in dev.glob("davinci[0-9]*") if path.name[7:].isdecimal())
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "").strip()
    return [i for i in found if str(i) in visible.split(",")] if visible else found


def check_devices(options: argparse.Namespace, device: str, cards: list[int]) -> None:
    """Raises UsageError if there are not as many cards, or none where they are needed."""
    if device == "ascend":
        if options.cards > len(cards):
            raise UsageError(f"CARDS: {options.cards} asked for, this machine has {len(cards)} that may be used; "
                             f"see npu-smi info and ASCEND_RT_VISIBLE_DEVICES")  # fmt: skip
    elif options.rank_table:
        raise UsageError("--rank_table: rank tables are for Ascend cards, and this run is on the CPU; leave it out")
    elif options.cards > (os.cpu_count() or 1):
        print(f"warning: {options.cards} processes on {os.cpu_count()} CPU cores will be slow", file=sys.stderr)


def check_port(options: argparse.Namespace) -> None:
    """Raises UsageError if machine 0's address or port cannot be used."""
    where = f"--master_addr {options.master_addr} --master_port {options.master_port}"
    try:
        address = socket.gethostbyname(options.master_addr)
    except OSError as error:
        raise UsageError(f"{where}: the address is not known here ({error.strerror or error}); give an IP address") from None
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


def start_by_msrun(options: argparse.Namespace, log_dir: Path) -> list[Member]:
    """Have msrun start the scheduler and the ranks.

    Raises:
        RunError: it could not.
    """
    folder = Path(sys.executable).parent
    python = next((name for name in ("python", "python3") if (folder / name).exists()), None)
    if python is None:
        raise RunError(f"{folder}: msrun needs a `python` beside {sys.executable}; make a virtual environment")
    words = [
        sys.executable, "-m", "mindspore.parallel.cluster.run", "--join=False", f"--bind_core={options.bind_core}",
        f"--worker_num={options.nnodes * options.cards}", f"--local_worker_num={options.cards}", f"--node_rank={options.node_rank}",
        f"--master_addr={options.master_addr}", f"--master_port={options.master_port}", f"--log_dir={log_dir}",
        python, *command(options),
    ]  # fmt: skip
    # msrun starts the Python that it finds first.
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    log = log_dir / "msrun.log"
    with open(log, "w") as file:
        ended = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    found = members(log_dir)
    if ended.returncode:
        for member in found:
            member.process.kill()
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise RunError(f"msrun could not start the processes: {lines[-1]}; see {log}")
    return found


def start_directly(options: argparse.Namespace, cards: list[Card], log_dir: Path) -> list[Member]:
    """Start the ranks of this machine as a rank table says, or the only one there is."""
    common = {"RANK_SIZE": str(options.nnodes * options.cards)}
    if options.rank_table:
        common["RANK_TABLE_FILE"] = str(Path(options.rank_table).resolve())
    for card in cards:
        environment = os.environ | common | {"RANK_ID": str(card.rank), "DEVICE_ID": str(card.device)}
        with open(log_dir / f"worker_{card.rank}.log", "w") as log:
            words = [sys.executable, *command(options)]
            subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    return members(log_dir)
