"""SIGTERM while training waits for images that do not come."""

import signal
import subprocess
import sys
import time

import numpy as np
import yaml
from PIL import Image

from skipvit.data.order import Shard, training_order

# The storage answers for all images but some.
CODE = """
import sys, threading
from skipvit.cli import run
from skipvit.data.sources.image_folder import ImageFolder

read, lost = ImageFolder.read, set(map(int, sys.argv[1].split(",")))

def unanswered(source, i):
    if i in lost:
        threading.Event().wait()
    return read(source, i)

ImageFolder.read = unanswered
sys.exit(run("train", sys.argv[2:]))
"""
CONFIG = {
    "name": "run",
    "model": {"size": "tiny", "width": 8, "depth": 1, "heads": 2, "patch": 8, "image_size": 16, "num_classes": 2},
    "data": {"kind": "image_folder", "batch_size": 4},
    "optim": {"epochs": 2, "warmup_epochs": 0},
    "log": {"steps": 1},
}


def test_the_first_sigterm_saves_and_ends_the_run(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "data" / ("train" if i < 32 else "val") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    data = CONFIG["data"] | {"path": str(tmp_path / "data")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG | {"data": data}))
    fourth = training_order(32, 32, Shard(), seed=0, epoch=0)[0][12:16]
    words = [",".join(map(str, fourth)), "--config", str(tmp_path / "run.yaml"), "--runs", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", CODE, *words], stderr=subprocess.PIPE, text=True)
    metrics, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) == 3) and process.poll() is None:
        time.sleep(0.1)
        assert time.monotonic() < limit
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert errors.splitlines()[-1] == "stopped after step 3 of epoch 1, saved; --resume auto goes on from there"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == ["epoch_0001_step_000003.ckpt"]
