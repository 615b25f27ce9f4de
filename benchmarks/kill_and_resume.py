"""Kill a small training run with SIGKILL, resume it with --resume auto, and compare its end with the undisturbed run's.

    python benchmarks/kill_and_resume.py --kills 50

Every kill is a run of its own. A third of the kills come at a random moment, a third while a checkpoint is being
written, a third between the end of an epoch and its evaluation's end. The last checkpoints (weights, averaged weights,
moments, loss scale, counters, position) must be equal bit by bit. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

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


def command(folder: Path) -> list[str]:
    return [sys.executable, str(TRAIN), "--config", str(folder / "run.yaml"), "--runs", str(folder), "--resume", "auto"]


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def train(folder: Path) -> float:
    """Run to the end; returns the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(command(folder), capture_output=True, text=True)
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


def last_state(folder: str | Path) -> dict[str, np.ndarray]:
    from skipvit.engine.checkpoint import read, saved

    return read(saved(Path(folder) / "run" / "checkpoints")[-1])


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Names of the entries that are not equal bit by bit."""
    return sorted(set(a) ^ set(b)) + [name for name in a if name in b and a[name].tobytes() != b[name].tobytes()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="runs at the same time")
    parser.add_argument("--first", type=int, default=0, help="number of the first kill: its moment is drawn from it")
    options = parser.parse_args()
    failed = early = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as threads:
        root = Path(name)
        duration = train(prepare(root / "undisturbed"))
        expected = last_state(root / "undisturbed")
        print(f"undisturbed: {duration:.0f} s, {len(expected)} entries in the last checkpoint", flush=True)
        numbers = range(options.first, options.first + options.kills)
        results = threads.map(lambda number: kill_once(root, number, duration), numbers)
        for number, (what, before_end, folder) in zip(numbers, tqdm(results, total=options.kills, disable=None)):
            wrong = differences(expected, last_state(folder))
            early, failed = early + before_end, failed + bool(wrong)
            print(f"{number:3d} {what:60} {'DIFFERS: ' + wrong[0] if wrong else 'bit-identical'}", flush=True)
    print(f"{options.kills - failed} of {options.kills} end bit-identical; {early} were killed before their end")
    return 1 if failed or early < options.kills / 2 else 0


if __name__ == "__main__":
    sys.exit(main())
