"""Kill a small training run with SIGKILL, resume it with --resume auto, and compare its end with the undisturbed run's.

    python benchmarks/kill_and_resume.py --kills 50
    python benchmarks/kill_and_resume.py --kills 0 --chains 8

Every one of `--kills` is a run of one process. A third of them come at a random moment, a third while a checkpoint is
being written, a third between the end of an epoch and its evaluation's end. Every one of `--chains` is a run of some
ranks that is killed KILLS_OF_A_CHAIN times, from its start-up on: its launcher, a rank, or the scheduler, at random
moments; of what the kill leaves nothing may be there after a minute. The last checkpoints (weights, averaged weights,
moments, loss scale, counters, position) must be equal bit by bit to those of undisturbed runs. Exit code 1 if one is
not, or if more than half of the kills came too late.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import yaml
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.processes import processes_in

KILLS_OF_A_CHAIN, NOTHING_LEFT_WITHIN_S = 3, 60
LATEST = 0.6  # kill of a chain, as a share of the undisturbed run: what is resumed takes less long
TRAIN = Path(__file__).parents[1] / "train.py"
# All that has a state: mixing, augmentation, drop path, random routes, averaged weights, accumulation, and three phases
# of different image size and routes.
CONFIG = {
    "name": "run",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 16,
        "depth": 3,
        "heads": 2,
        "patch": 8,
        "image_size": 32,
        "num_classes": 10,
        "drop_path": 0.2,
    },
    "routes": [{"start": 1, "end": 2, "scorer": "random"}],
    "phases": [
        {"epochs": 1, "routes": [], "image_size": 16, "augment": {"rand_augment": 0}},
        {},
        {"epochs": 1, "routes": [{"start": 0, "end": 2, "keep_ratio": 0.7, "scorer": "random"}]},
    ],
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 960, "val_size": 256},
    "augment": {
        "crop": "pad",
        "hflip": 0.5,
        "rand_augment": 9,
        "random_erasing": 0.25,
        "repeats": 2,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "optim": {"epochs": 4, "warmup_epochs": 1, "accumulate": 2},
    "ema": {"decay": 0.9},
    "deterministic": True,
    "checkpoint": {"minutes": 0.005},
}

# What ranks train: they take long to start and to find each other.
OF_CHAINS = CONFIG | {
    "model": CONFIG["model"] | {"depth": 1, "patch": 16},
    "routes": [],
    "phases": [],
    "data": {"kind": "shapes", "batch_size": 4, "train_size": 160, "val_size": 20},
    "optim": {"epochs": 2, "warmup_epochs": 1},
    "checkpoint": {"minutes": 0.001},
    "device": "cpu",
}
ENVIRONMENT = os.environ | {"PYTHONFAULTHANDLER": "1"}  # a crash says where


def command(folder: Path, ranks: int = 1) -> list[str]:
    words = ["--config", str(folder / "run.yaml"), "--runs", str(folder), "--resume", "auto"]
    if ranks == 1:
        return [sys.executable, str(TRAIN), *words]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    logs = ["--log_dir", str(folder / "logs")]
    return [sys.executable, "-m", "skipvit", "launch", "--master_port", port, *logs, str(ranks), *words]


def prepare(folder: Path, config: dict = CONFIG) -> Path:
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def train(folder: Path, ranks: int = 1) -> float:
    """Run to the end; returns the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(command(folder, ranks), capture_output=True, text=True, cwd=folder, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{folder}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.monotonic() - begun


def wait_for(kind: str, process: subprocess.Popen, checkpoints: Path, duration: float, chance: random.Random) -> None:
    """Return at the moment of the kill, or when the run has ended."""
    if kind == "any time":
        try:
            process.wait(chance.uniform(0, duration))
        except subprocess.TimeoutExpired:
            pass
        return
    # A file that appears: a checkpoint being written, or the one of an epoch's last step, before the evaluation.
    pattern = ".partial.*" if kind == "writing" else f"epoch_*_step_{steps():06d}.ckpt"
    count, seen = chance.randint(1, 6 if kind == "writing" else 4), set()
    while process.poll() is None:
        try:
            seen |= {path.name for path in checkpoints.glob(pattern)}
        except FileNotFoundError:
            pass
        if len(seen) >= count:
            time.sleep(chance.uniform(0, 0.003 if kind == "writing" else 0.4))
            return
        time.sleep(0.0003 if kind == "writing" else 0.01)


def steps() -> int:
    data = CONFIG["data"]
    return data["train_size"] // (data["batch_size"] * CONFIG["optim"]["accumulate"]) * CONFIG["optim"]["accumulate"]


def kill_once(root: Path, number: int, duration: float) -> tuple[str, bool, str]:
    """One killed and resumed run: what kind of kill, whether it came before the end, the folder."""
    chance = random.Random(number)
    kind = ("any time", "writing", "evaluating")[number % 3]
    folder = prepare(root / f"kill_{number:03d}")
    checkpoints = folder / "run" / "checkpoints"
    with open(folder / "killed.log", "w") as log:
        process = subprocess.Popen(command(folder), stdout=log, stderr=log)
        wait_for(kind, process, checkpoints, duration, chance)
        early = process.poll() is None
        process.kill()
        process.wait()
    # What the kill left behind.
    torn = bool(list(checkpoints.glob(".partial.*")))
    last = max((path.name for path in checkpoints.glob("epoch_*.ckpt")), default="no checkpoint")
    train(folder)
    return f"{kind:11}{'a torn checkpoint, ' if torn else ''}{last}", early, str(folder)


def chain(root: Path, number: int, ranks: int, duration: float) -> tuple[list[str], Path]:
    """A run that is killed again and again and then trained to its end: what was done, its folder."""
    chance, folder = random.Random(number), prepare(root / f"chain_{number:03d}", OF_CHAINS)
    done = [kill_a_part(folder, chance, ranks, duration) for _ in range(KILLS_OF_A_CHAIN)]
    train(folder, ranks)
    return done, folder


def kill_a_part(folder: Path, chance: random.Random, ranks: int, duration: float) -> str:
    """Start a run and kill what was started, a rank or the scheduler; what, when, and what was wrong about the end."""
    parts = ["launcher", "launcher", *(f"rank {rank}" for rank in range(ranks)), "scheduler"]
    whom, after = chance.choice(parts) if ranks > 1 else "launcher", chance.uniform(0, LATEST * duration)
    with open(folder / "killed.log", "w") as log:
        launcher = subprocess.Popen(command(folder, ranks), stdout=log, stderr=log, cwd=folder, env=ENVIRONMENT)
        latest = time.monotonic() + after
        while launcher.poll() is None and (time.monotonic() < latest or not part(folder, launcher, whom)):
            time.sleep(0.05)
        victim = part(folder, launcher, whom)
        what = f"{whom} after {after:.0f} s" if victim and launcher.poll() is None else "it had ended"
        if victim:
            victim.kill()
        latest = time.monotonic() + NOTHING_LEFT_WITHIN_S
        while (left := processes_in(folder)) and time.monotonic() < latest:
            launcher.poll()
            time.sleep(0.2)
    for process in left:
        process.kill()
    said = (folder / "killed.log").read_text()
    wrong = ["LEAVES " + " ".join(map(str, left))] if left else []
    wrong += [f"A TRACEBACK {said[-1000:]}"] if "Traceback" in said else []
    return ", ".join([what, *wrong])


def part(folder: Path, launcher: subprocess.Popen, whom: str) -> psutil.Process | None:
    """The process that is meant, if it is there already."""
    wanted = ("MS_SCHED", "0") if whom == "scheduler" else ("MS_WORKER", whom.removeprefix("rank "))
    for process in processes_in(folder):
        try:
            variables = process.environ()
        except psutil.Error:
            continue
        role = variables.get("MS_ROLE"), variables.get("RANK_ID")
        if process.pid == launcher.pid if whom == "launcher" else role == wanted:
            return process
    return None


def last_state(folder: str | Path) -> dict[str, np.ndarray]:
    from skipvit.engine.checkpoint import read, saved

    return read(saved(Path(folder) / "run" / "checkpoints")[-1])


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Names of the entries that are not equal bit by bit."""
    return sorted(set(a) ^ set(b)) + [name for name in a if name in b and a[name].tobytes() != b[name].tobytes()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--chains", type=int, default=0, help="runs that are killed again and again")
    parser.add_argument("--ranks", type=int, default=2, help="of those, 1: a single process without a launcher")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="runs at the same time")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill: its moment is drawn from it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failed = kills(Path(name), options) if options.kills else 0
        failed += chains(Path(name), options) if options.chains else 0
    return 1 if failed else 0


def kills(root: Path, options: argparse.Namespace) -> int:
    """Runs of one process; how many went wrong."""
    failed = early = 0
    duration = train(prepare(root / "undisturbed"))
    expected = last_state(root / "undisturbed")
    print(f"undisturbed: {duration:.0f} s, {len(expected)} entries in the last checkpoint", flush=True)
    numbers = range(options.first, options.first + options.kills)
    with ThreadPoolExecutor(options.jobs) as threads:
        results = threads.map(lambda number: kill_once(root, number, duration), numbers)
        for number, (what, before_end, folder) in zip(numbers, tqdm(results, total=options.kills, disable=None)):
            wrong = differences(expected, last_state(folder))
            early, failed = early + before_end, failed + bool(wrong)
            print(f"{number:3d} {what:60} {'DIFFERS: ' + wrong[0] if wrong else 'bit-identical'}", flush=True)
    print(f"{options.kills - failed} of {options.kills} end bit-identical; {early} were killed before their end")
    return failed + (early < options.kills / 2)


def chains(root: Path, options: argparse.Namespace) -> int:
    """Runs that are killed again and again; how many went wrong."""
    failed = early = 0
    duration = train(prepare(root / "whole", OF_CHAINS), options.ranks)
    expected = last_state(root / "whole")
    print(f"{options.ranks} ranks, undisturbed: {duration:.0f} s", flush=True)
    for number in range(options.first, options.first + options.chains):
        done, folder = chain(root, number, options.ranks, duration)
        wrong = differences(expected, last_state(folder))
        early += sum("after" in what for what in done)
        failed += bool(wrong) or any("LEAVES" in what or "TRACEBACK" in what for what in done)
        print(f"{number:3d} {'; '.join(done)}: {'DIFFERS: ' + wrong[0] if wrong else 'bit-identical'}", flush=True)
    print(f"{options.chains - failed} of {options.chains} chains end bit-identical and leave nothing; {early} kills")
    return failed + (early < options.chains * KILLS_OF_A_CHAIN / 2)  # runs that had ended show nothing


if __name__ == "__main__":
    sys.exit(main())
