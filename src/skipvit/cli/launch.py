"""`skipvit launch`: train or evaluate in several processes, one a device; `run_distributed.sh` is its door."""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from skipvit.ascend import launch
from skipvit.ascend.launch import Cluster
from skipvit.cli import eval as evaluate
from skipvit.cli import train
from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.trained import config_of
from skipvit.util.errors import UsageError
from skipvit.util.text import counted

EPILOG = """examples:
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
  ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet --resume auto
  ./run_distributed.sh --eval 8 runs/skipvit_small_imagenet
  ./run_distributed.sh --nnodes 2 --node_rank 0 --master_addr 10.0.0.1 8 --config ...   on the first of two machines
  ./run_distributed.sh 2 --device cpu                                                   two processes on this CPU

exit codes: 0 done, 1 failed, 2 refused before it began, 3 stopped by SIGTERM, SIGHUP or Ctrl-C and saved (a second
one kills), 130 stopped without saving, 128 + N a process was ended by signal N"""


def parser() -> OneLineParser:
    result = OneLineParser("run_distributed.sh", "Train or evaluate on several devices, a process each.", EPILOG)
    add = result.add_argument
    add("--eval", action="store_true", help="eval.py instead of train.py")
    add("--nnodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    add("--node_rank", type=int, default=0, metavar="R", help="which of them this one is, from 0 (default: 0)")
    add("--master_addr", default="127.0.0.1", metavar="ADDRESS", help="IP address or name of machine 0")
    add("--master_port", type=int, default=8118, metavar="PORT", help="a free port of machine 0 (default: 8118)")
    add("--rank_table", type=Path, metavar="FILE", help="devices and ranks as this file says (Ascend only)")
    add("--bind_core", action="store_true", help="give each process its own share of the CPU cores")
    add("--log_dir", type=Path, metavar="FOLDER", help="folder of worker_<rank>.log (default: logs/<run>)")
    add("devices", metavar="DEVICES", help="number of devices, or processes, on this machine")
    add("words", nargs=argparse.REMAINDER, metavar="...", help="options of train.py (with --eval: of eval.py)")
    return result


def main(words: list[str]) -> int:
    options = read_words(words)
    cluster = cluster_of(options)
    if options.eval:
        config, _ = from_words(evaluate.parser(), options.words, config_of)
    else:
        config, run = from_words(train.parser(), options.words)
    from skipvit import training
    from skipvit.data.order import Shard
    from skipvit.engine import devices

    # In one process, before any starts: what is wrong is then one line.
    for warning in launch.check(cluster, devices.choose(config.device)):
        print(f"warning: {warning}", file=sys.stderr)
    if options.eval:
        evaluate.check(options.words)
        what, log_dir = "eval", Path("logs") / f"{config.name}_eval"
    else:
        training.check(config, run.runs, run.resume, Shard(cluster.devices()[0].rank, cluster.world_size))
        what, log_dir = "train", Path("logs") / config.name
    log_dir = options.log_dir or log_dir
    print(f"{counted(cluster.count, 'process', 'processes')}, output in {log_dir}", flush=True)
    end = launch.launch([what, *options.words], cluster, log_dir, not options.eval, partial(print, flush=True))
    if end.line:
        print(end.line, file=sys.stderr)
    return end.code


def read_words(words: list[str]) -> argparse.Namespace:
    """The command line. Raises UsageError: as the parser does, and options on the wrong side of DEVICES."""
    try:
        options = parser().parse_args(words)
    except UsageError as error:
        raise UsageError(f"{error}; options of train.py come after DEVICES") from None
    flags = {f"--{name}" for name in vars(options) if name not in ("devices", "words")}
    misplaced = [word for word in options.words if word.split("=")[0] in flags]
    if misplaced:
        where = "the launcher's options come before DEVICES, those of train.py after it (see --help)"
        raise UsageError(f"{misplaced[0]}: {where}")
    return options


def cluster_of(options: argparse.Namespace) -> Cluster:
    """Raises UsageError."""
    count, nodes, node = options.devices, options.nnodes, options.node_rank
    if not re.fullmatch(r"[0-9]{1,4}", count) or not int(count):
        raise UsageError(f"DEVICES: the number of devices on this machine, got '{count}' (see --help)")
    if not 1 <= nodes < 10_000 or not 0 <= node < nodes:
        raise UsageError(f"--node_rank: {node} is not one of --nnodes {nodes} machines, which count from 0")
    if not 0 < options.master_port < 65536:
        raise UsageError(f"--master_port: {options.master_port} is not a port (1 to 65535)")
    where = (options.master_addr, options.master_port)
    return Cluster(int(count), nodes, node, *where, options.rank_table, options.bind_core)
