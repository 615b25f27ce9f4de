"""What a crash, a signal, a damaged checkpoint and a full disk cost: minutes, never the run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from skipvit import training
from skipvit.cli import run
from skipvit.config.config import Config
from skipvit.engine import checkpoint
from skipvit.engine.checkpoint_file import write_checkpoint
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import Run
from skipvit.util.errors import UsageError

ROOT = Path(__file__).parents[2]
CONFIG = {
    "name": "run",
    "model": {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10, "drop_path": 0.2},
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 320, "val_size": 64},
    "augment": {"crop": "pad", "hflip": 0.5, "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0},
    "optim": {"epochs": 3, "warmup_epochs": 1, "accumulate": 2},
    "ema": {"decay": 0.9},
    "deterministic": True,
    "checkpoint": {"minutes": 0.002, "keep": 3},
}


def train(folder, *words):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return run("train", ["--config", str(path), "--runs", str(folder / "runs"), "--resume", "auto", *words])


def checkpoints(folder):
    return checkpoint.saved(folder / "runs" / "run" / "checkpoints")


def assert_same_end(folder, other):
    a, b = checkpoint.read(checkpoints(folder)[-1]), checkpoint.read(checkpoints(other)[-1])
    assert set(a) == set(b) and {"trainer.position.best", "ema.cls_token", "optimizer.step"} <= set(a)
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different, different[:5]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(folder) == 0
    return folder


def stop_when(condition, number):
    """Send this process a signal once a condition holds."""

    def watch():
        while not condition():
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_has_its_own_exit_code_and_the_rest_is_the_same(undisturbed, tmp_path, capfd, number):
    before = signal.getsignal(number)
    stop_when(lambda: any("epoch_0002" in path.name for path in checkpoints(tmp_path)), number)
    assert train(tmp_path) == 3
    assert signal.getsignal(number) == before
    out, err = capfd.readouterr()
    # MindSpore's own handler turns Ctrl-C into SIGTERM while a graph runs.
    assert "SIGTERM: finishing the step" in err or f"{number.name}: finishing the step" in err
    assert "--resume auto goes on from there" in err
    position = checkpoint.read(checkpoints(tmp_path)[-1])
    assert 0 < position["trainer.position.step"] < 20 or position["trainer.position.epoch"] != 1
    assert train(tmp_path) == 0
    assert "going on from" in capfd.readouterr().out
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", [pytest.param("cut", marks=pytest.mark.slow), "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(undisturbed, tmp_path, capsys, damage):
    subprocess.run(["cp", "-r", undisturbed / "runs", tmp_path / "runs"], check=True)
    newest = checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 4
    newest.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    before = checkpoints(tmp_path)[-2]
    assert train(tmp_path) == 0
    out, err = capsys.readouterr()
    assert f"warning: {newest}: not a whole checkpoint" in err and f"going on from {before}" in out
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("wrong", [{"epoch": 3}, {"steps": 7}, {"images": 0}, {"images": 10**9}, {"epoch": None}])
def test_a_checkpoint_of_an_epoch_that_the_run_has_not_stands_aside(undisturbed, tmp_path, wrong):
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    *_, before, newest = checkpoints(tmp_path)
    entries = checkpoint.read(newest)
    for key, value in wrong.items():
        entries.pop(f"trainer.position.{key}")
        entries |= {f"trainer.position.{key}": np.array(value)} if value is not None else {}
    write_checkpoint(newest, entries)
    config = Config(**CONFIG)
    splits = training.open_splits(config, tmp_path)
    assert training.newest_checkpoint(RunFolder(tmp_path / "runs/run"), config, splits).path == before


def test_a_run_that_another_process_begins_while_images_are_listed_is_not_trained_over(tmp_path, monkeypatch):
    claim = RunFolder.claim
    monkeypatch.setattr(RunFolder, "claim", lambda folder: (claim(folder), folder.write_config("name: run\n")))
    with pytest.raises(UsageError, match="runs/run: another process has begun it meanwhile"):
        training.train(Config(**CONFIG), tmp_path / "runs")
    assert (tmp_path / "runs/run/config.yaml").read_text() == "name: run\n"


def test_the_best_checkpoint_is_that_of_the_best_epoch(undisturbed):
    folder = undisturbed / "runs" / "run"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {r["epoch"]: r["val"]["dense_ema"]["top1"] for r in records if "epoch" in r}
    best = checkpoint.read(folder / "checkpoints" / "best.ckpt")
    last = max(epoch for epoch, score in scores.items() if score == max(scores.values()))
    assert best["trainer.position.epoch"] + 1 == last
    assert json.loads((folder / "summary.json").read_text())["best"] == {
        "forward": "dense_ema",
        "top1": max(scores.values()),
        "epoch": last,
    }


def test_only_the_newest_are_kept(undisturbed):
    assert len(checkpoints(undisturbed)) == 3
    assert not list((undisturbed / "runs" / "run" / "checkpoints").glob(".partial*"))


def test_a_run_whose_last_line_of_the_log_is_lost_is_finished_and_summed_up(undisturbed, tmp_path, monkeypatch):
    """Killed during its last evaluation, and resumed with a disk that is full for the log: the same end. What a
    checkpoint holds is known (overflows, rate, norm), what it does not is null."""
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/run"
    before, whole = Run(folder).records(), Run(folder).summary()
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"epoch": 3' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").unlink()
    assert not Run(folder).finished and [r["epoch"] for r in Run(folder).records()] == [1, 2]
    told = []
    monkeypatch.setattr(RunFolder, "log", lambda folder, record: told.append(record))
    assert train(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)
    assert Run(folder).finished
    found = Run(folder).summary()
    assert found["broken_images"] is None and whole["broken_images"] == 0
    for name, row in found["forwards"].items():
        speeds = [r["images_per_s"] for r in before[:2]]
        assert row == whole["forwards"][name] | {"train_images_per_s": sum(speeds) / 2}, name
    assert found["epochs"] == 3 and found["overflows"] == whole["overflows"]
    (record,) = told
    for name in ("train_loss", "gradient_norm", "lr", "loss_scale", "overflows", "overflows_in_a_row", "trained"):
        assert record[name] == before[-1][name], name
    assert record["steps"] == 20


def test_updates_that_overflow_in_a_row_stop_the_run_with_a_checkpoint(tmp_path, capsys):
    words = ["--amp.dtype", "float16", "--amp.loss_scale", "1e12", "--amp.max_overflows", "3", "--ema.decay", "0"]
    assert train(tmp_path, *words) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and "updates in a row were not finite (amp.max_overflows)" in error[0]
    assert checkpoint.read(checkpoints(tmp_path)[-1])["optimizer.step"] == 0


def test_a_full_disk_is_reported_and_the_old_checkpoint_stays(undisturbed, tmp_path):
    """No file may grow beyond 20 kB from the second checkpoint on; the limit is lifted in the last epoch."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    words = ["--config", "run.yaml", "--checkpoint.keep", "2"]
    log = open(tmp_path / "log.txt", "w")
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *words], cwd=tmp_path, stdout=log, stderr=log)
    wait(lambda: len(checkpoints(tmp_path)) >= 2, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    wait(lambda: ".ckpt: not written (File too large)" in (tmp_path / "log.txt").read_text(), process)
    held = checkpoints(tmp_path)
    assert held and all(checkpoint.read(path) for path in held)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.wait(500) == 0
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    a, b = checkpoint.read(checkpoints(tmp_path)[-1]), checkpoint.read(checkpoints(undisturbed)[-1])
    assert all(np.array_equal(a[name], b[name]) for name in b)


def wait(condition, process):
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_goes_on_in_mid_epoch_with_its_updates_divided_otherwise(tmp_path):
    """Eight batches of 4 instead of two of 16 make the same updates from the second epoch on: same images, same rates,
    same end but for rounding."""
    changes = {
        "augment": {},
        "optim": CONFIG["optim"] | {"epochs": 2, "epsilon": 1.0e-2},
        "checkpoint": {"minutes": 1e-5, "keep": 100},
    }
    for name in ("whole", "divided"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    words = ["--config", str(tmp_path / "whole/run.yaml"), "--resume", "auto", "--runs"]
    assert run("train", [*words, str(tmp_path / "whole/runs")]) == 0
    shutil.copytree(tmp_path / "whole/runs", tmp_path / "divided/runs")
    for path in checkpoints(tmp_path / "divided"):
        if path.name > "epoch_0002_step_000004.ckpt":
            path.unlink()
    (tmp_path / "divided/runs/run/checkpoints/best.ckpt").unlink()
    assert run("train", [*words, str(tmp_path / "divided/runs"), "--data.batch_size", "4"]) == 0
    ends = [checkpoint.read(checkpoints(tmp_path / name)[-1]) for name in ("whole", "divided")]
    for name, value in ends[0].items():
        if not name.startswith(("optimizer.moment", "trainer.")):
            assert np.abs(value - ends[1][name]).max() < 1e-5, name
    records = [Run(tmp_path / name / "runs/run").records() for name in ("whole", "divided")]
    assert [r["lr"] for r in records[0]] == [r["lr"] for r in records[1]]
    assert np.allclose([r["train_loss"] for r in records[0]], [r["train_loss"] for r in records[1]], atol=1e-5)
