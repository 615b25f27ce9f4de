"""The real commands, from a config to a trained and evaluated run, and what they say to wrong input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run

ROOT = Path(__file__).parents[2]
TINY = """
name: tiny
model: {name: vit_tiny_patch16_224, width: 16, depth: 4, heads: 2, patch: 8, image_size: 32, num_classes: 10}
routes: [{start: 1, end: 3, keep_ratio: 0.5}]
phases: [{epochs: 1, routes: []}, {}]
data: {kind: shapes, batch_size: 20, train_size: 120, val_size: 50}
optim: {epochs: 3, lr: 1.0e-3, warmup_epochs: 1}
checkpoint: {keep: 2}
"""


def command(folder, *words):
    return subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished tiny run, and what training printed."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(TINY)
    result = command(folder, ROOT / "train.py", "--config", "tiny.yaml")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def one_line(capsys):
    """The one line that a refused command printed."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_training_prints_both_forwards_and_writes_its_folder(trained):
    folder, printed = trained
    run_folder = folder / "runs" / "tiny"
    names = {path.name for path in run_folder.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "summary.json", "curves.png", "bypassed.png"} <= names
    kept = ["best.ckpt", "epoch_0002_step_000006.ckpt", "epoch_0003_step_000006.ckpt"]
    assert [p.name for p in sorted((run_folder / "checkpoints").iterdir())] == kept
    assert (run_folder / "summary.txt").read_text() in printed
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["trained"]) for r in records] == [(1, "dense"), (2, "routed"), (3, "routed")]
    assert all({"dense", "routed"} == set(r["val"]) and r["val"]["dense"]["images"] == 50 for r in records)
    assert "epoch 1/3 dense: loss" in printed and "epoch 3/3 routed: loss" in printed
    assert "routed against dense: MACs 1." in printed and "x the images/s" not in printed  # logs are no measurement
    assert "\r" not in printed  # plain lines when piped
    for name in ("curves.png", "bypassed.png"):
        assert np.asarray(Image.open(run_folder / name).convert("L")).std() > 5


def test_eval_repeats_the_last_epochs_scores(trained):
    folder, _ = trained
    result = command(folder, ROOT / "eval.py", "runs/tiny", "--json")
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)
    last = json.loads((folder / "runs/tiny/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert scores["trained"] == "routed"
    for forward in ("dense", "routed"):
        assert scores[forward]["top1"] == last[forward]["top1"] and scores[forward]["top5"] == last[forward]["top5"]
        assert np.isclose(scores[forward]["loss"], last[forward]["loss"], rtol=1e-5)


def test_resume_trains_what_is_left_and_ends_like_the_undisturbed_run(trained, tmp_path, capsys):
    """Without the newest checkpoint and its log line, resuming trains the third epoch again, to the same scores."""
    folder, _ = trained
    copied = tmp_path / "runs" / "tiny"
    copied.parent.mkdir()
    subprocess.run(["cp", "-r", folder / "runs" / "tiny", copied], check=True)
    (copied / "checkpoints" / "epoch_0003_step_000006.ckpt").unlink()
    before = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    words = ["--config", str(folder / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--resume", "auto"]
    assert run("train", words) == 0
    after = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in after] == [1, 2, 3, 2, 3]  # the second is evaluated again
    assert np.isclose(after[-1]["train_loss"], before[-1]["train_loss"], rtol=1e-4)
    assert after[-1]["val"]["routed"]["top1"] == before[-1]["val"]["routed"]["top1"]
    capsys.readouterr()
    changed = [*words, "--optim.lr", "5e-3"]
    assert run("train", changed) == 2 and "has another optim.lr" in one_line(capsys)
    assert run("train", [*words, "--data.workers", "2", "--checkpoint.keep", "5"]) == 0
    assert "keep: 5" in (copied / "config.yaml").read_text()


def test_a_run_is_resumed_in_a_renamed_folder_and_longer_training_is_another_run(trained, tmp_path, capsys):
    shutil.copytree(trained[0] / "runs" / "tiny", tmp_path / "runs" / "other")
    words = ["--config", str(trained[0] / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--name", "other"]
    assert run("train", [*words, "--resume", "auto", "--check"]) == 0
    capsys.readouterr()
    assert run("train", [*words, "--resume", "auto", "--optim.epochs", "5"]) == 2
    assert f"to train longer, begin another run that starts from this one: --name NAME --init.weights {tmp_path}" in (
        one_line(capsys)
    )


def test_an_existing_run_is_never_written_into(trained, capsys):
    folder, _ = trained
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*")}
    assert run("train", ["--config", str(folder / "tiny.yaml"), "--runs", str(folder / "runs")]) == 2
    assert "tiny exists; go on with it with --resume auto" in one_line(capsys)
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*")}


def evaluate(folder, *words):
    return run("eval", [str(folder / "runs" / "tiny"), *map(str, words)])


def test_eval_refuses_a_checkpoint_of_another_model(trained, capsys):
    assert evaluate(trained[0], "--model.width", "32") == 1
    assert "a checkpoint of another model: cls_token is (1, 1, 16) there and (1, 1, 32) here" in one_line(capsys)
    assert evaluate(trained[0], "--model.depth", "5") == 1
    assert "a checkpoint of another model: it has no blocks.4." in one_line(capsys)
    assert evaluate(trained[0], "--model.depth", "3", "--routes", "[]") == 1
    assert "blocks.3." in one_line(capsys)


def test_eval_refuses_a_damaged_checkpoint(trained, tmp_path, capsys):
    whole = (trained[0] / "runs/tiny/checkpoints/epoch_0003_step_000006.ckpt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for name, content in {"cut": whole[: len(whole) // 2], "flipped": flipped, "text": b"hello", "empty": b""}.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        assert evaluate(trained[0], "--weights", path) == 1, name
        assert f"{name}.ckpt: not a whole checkpoint" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        ([], "name a run folder"),
        (["--weights", "nowhere.ckpt", "--config", "{folder}/tiny.yaml"], "nowhere.ckpt: no such checkpoint"),
        (["--config", "{folder}/tiny.yaml"], "--config needs --weights"),
        (["{folder}/runs/tiny", "--jsn"], "--jsn is not an option; did you mean --json?"),
    ],
)
def test_eval_refuses_wrong_words(trained, capsys, words, message):
    assert run("eval", [word.format(folder=trained[0]) for word in words]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml: no such config file"),
        (["--data.kind", "image_folder", "--data.path", "nowhere"], 2, "is not a folder"),
        (["--data.batch_size", "1000"], 1, "one update takes 1000 x 1 images and the training set has 120"),
        (["--device", "ascend"], 2, "MindSpore finds no Ascend device"),
        (["--runs", "/proc/nowhere"], 2, "the run folder cannot be made"),
    ],
)
def test_train_refuses_wrong_words(trained, tmp_path, capsys, words, code, message):
    given = ["--config", str(trained[0] / "tiny.yaml"), "--runs", str(tmp_path / "runs"), *words]
    assert run("train", given) == code
    assert message in one_line(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def folder_of_images(tmp_path):
    """Ten classes of noise images, three to train on and one to validate each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for label in range(10):
            (tmp_path / "images" / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8))
                image.save(tmp_path / "images" / split / f"class{label}" / f"{i}.jpg")
    return tmp_path / "images"


def test_train_names_a_bad_image_and_a_wrong_number_of_classes(trained, folder_of_images, tmp_path, capsys):
    words = ["--config", str(trained[0] / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--data.kind", "image_folder"]
    words += ["--data.path", str(folder_of_images), "--data.batch_size", "10"]
    assert run("train", [*words, "--model.num_classes", "7"]) == 1
    assert "model.num_classes: 7, but" in one_line(capsys)
    (folder_of_images / "train" / "class3" / "1.jpg").write_text("not an image")
    assert run("train", [*words, "--routes", "[]", "--phases", "[]", "--data.broken_share", "0"]) == 1
    assert "class3/1.jpg: not an image that can be decoded" in one_line(capsys)


def test_an_unknown_command_is_named():
    result = command(ROOT, "-c", "from skipvit.cli import main; main()", "trian")
    assert result.returncode == 2 and "trian is not a command" in result.stderr


def test_mindspores_cache_of_graphs_is_left_out(monkeypatch, capsys):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    assert run("cost", ["--config", str(ROOT / "configs/vit_mini_shapes_cpu.yaml")]) == 0
    assert "warning: MS_COMPILER_CACHE_ENABLE is left out" in capsys.readouterr().err
    assert "MS_COMPILER_CACHE_ENABLE" not in os.environ
