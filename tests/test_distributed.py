"""Two processes on CPU through the launcher script do what one process does with twice the batch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skipvit.training.checkpoint import read, saved

ROOT = Path(__file__).parent.parent
CONFIG = """
name: {name}
model: {{size: tiny, width: 16, depth: 3, heads: 2, patch: 8, image_size: 32, num_classes: 10, drop_path: 0.1}}
routes: [{{start: 1, end: 2, keep_ratio: 0.5, scorer: random}}]
phases: {{dense_warmup_epochs: 1}}
data: {{kind: shapes, batch_size: {batch}, train_size: 80, val_size: 30}}
optim: {{epochs: 2, warmup_epochs: 1, epsilon: 1.0e-3}}
"""
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shell(folder, *words):
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=550)


def test_launcher_refuses_wrong_words_before_it_starts_anything(tmp_path):
    result = shell(tmp_path, ROOT / "run_distributed.sh", "many")
    assert result.returncode == 2 and "the first argument is the number of cards" in result.stderr
    result = shell(tmp_path, ROOT / "run_distributed.sh", "2", "--config", "nowhere.yaml")
    assert result.returncode == 2 and result.stderr.strip() == "error: nowhere.yaml: no such config file"


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(tmp_path):
    (tmp_path / "two.yaml").write_text(CONFIG.format(name="two", batch=10))
    (tmp_path / "one.yaml").write_text(CONFIG.format(name="one", batch=20))
    two = shell(tmp_path, ROOT / "run_distributed.sh", "2", "--config", "two.yaml")
    assert two.returncode == 0, two.stdout + two.stderr
    one = shell(tmp_path, sys.executable, ROOT / "train.py", "--config", "one.yaml")
    assert one.returncode == 0, one.stderr
    records = {n: [json.loads(x) for x in (tmp_path / f"runs/{n}/metrics.jsonl").read_text().splitlines()] for n in ("one", "two")}
    for a, b in zip(records["one"], records["two"], strict=True):
        assert np.isclose(a["train_loss"], b["train_loss"], rtol=1e-4)
        assert a["val"]["routed"]["pictures"] == b["val"]["routed"]["pictures"] == 30
        assert np.isclose(a["val"]["routed"]["loss"], b["val"]["routed"]["loss"], rtol=1e-3)
    weights = {n: read(tmp_path / f"runs/{n}/checkpoints/epoch_0002_step_000004.ckpt") for n in ("one", "two")}
    for name, value in weights["one"].items():
        # Large epsilon, so that Adam does not blow rounding noise up to whole steps.
        assert np.allclose(value, weights["two"][name], atol=2e-4), name


@pytest.mark.slow
def test_a_failing_process_is_one_line_and_an_exit_code(tmp_path):
    (tmp_path / "two.yaml").write_text(CONFIG.format(name="two", batch=1000))
    result = shell(tmp_path, ROOT / "run_distributed.sh", "2", "--config", "two.yaml")
    assert result.returncode != 0
    assert "one update takes 1000 x 2 pictures and the training set has 80" in result.stderr


STOPPED = """
name: run
model: {size: tiny, width: 16, depth: 2, heads: 2, patch: 8, image_size: 32, num_classes: 10, drop_path: 0.1}
data: {kind: shapes, batch_size: 8, train_size: 640, val_size: 30}
optim: {epochs: 4, warmup_epochs: 1, accumulate: 2}
ema: {decay: 0.9}
"""


@pytest.mark.slow
def test_sigterm_reaches_all_processes_one_checkpoint_results_and_resuming_ends_the_same(tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(STOPPED)
    command = [ROOT / "run_distributed.sh", "2", "--config", "run.yaml", "--resume", "auto"]
    whole = shell(tmp_path / "whole", *command)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder = tmp_path / "stopped"
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
        while "epoch 1/4" not in (folder / "log.txt").read_text():
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 3
    assert "stopped after" in (folder / "log.txt").read_text()
    again = shell(folder, *command)
    assert again.returncode == 0 and "going on from" in again.stdout
    ends = [read(saved(tmp_path / name / "runs/run/checkpoints")[-1]) for name in ("whole", "stopped")]
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])
