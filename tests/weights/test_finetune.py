"""Fine-tuning end to end: timm-style weights in, a step, timm-style weights out; a frozen network; resuming alone."""

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from skipvit import training
from skipvit.cli import run
from skipvit.config.reading import load_config
from skipvit.engine import checkpoint
from skipvit.engine.build import build_network
from skipvit.weights.convert import convert
from support.reference import timm_shapes

WIDTH, DEPTH, LR = 16, 2, 1e-3
SHAPES = timm_shapes(WIDTH, DEPTH, patch=8, grid=4, classes=10)
CONFIG = {
    "name": "tuned",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": WIDTH,
        "depth": DEPTH,
        "heads": 2,
        "patch": 8,
        "image_size": 32,
        "num_classes": 10,
        "gelu": "erf",
    },
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 16, "val_size": 16},
    "optim": {"epochs": 1, "lr": LR, "warmup_epochs": 0, "weight_decay": 0.05, "layer_decay": 0.5},
    "ema": {"decay": 0.9},
    "device": "cpu",
}


def tune(folder, weights, changes=None, *words):
    """Train CONFIG from these weights."""
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG | {"init": {"weights": str(weights)}} | (changes or {})))
    return run("train", ["--config", str(folder / "run.yaml"), "--runs", str(folder / "runs"), *words])


def newest(folder):
    return checkpoint.saved(folder / "runs/tuned/checkpoints")[-1]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A timm-style file."""
    folder = tmp_path_factory.mktemp("timm")
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(weights, folder / "timm.safetensors")
    return folder / "timm.safetensors"


@pytest.fixture(scope="module")
def one_step(original, tmp_path_factory):
    """A run of one step of a checkpoint that was converted from timm."""
    folder = tmp_path_factory.mktemp("one_step")
    convert(original, folder / "start.ckpt")
    assert tune(folder, folder / "start.ckpt") == 0
    return folder


def test_timm_weights_go_through_a_checkpoint_and_a_step_and_come_out_with_names_shapes_and_dtypes(original, one_step):
    convert(newest(one_step), one_step / "out.safetensors")
    before, after = load_file(original), load_file(one_step / "out.safetensors")
    assert {name: value.shape for name, value in after.items()} == SHAPES
    for name, value in before.items():
        assert after[name].dtype == value.dtype == np.float32
        # Adam's first step moves every number by the rate of its layer at most, and the decay by a share of it.
        above = (
            DEPTH - int(name.split(".")[1])
            if name.startswith("blocks")
            else 0
            if name.startswith(("norm", "head"))
            else 1 + DEPTH
        )
        moved = np.abs(after[name] - value).max() / (LR * 0.5**above)
        assert 0.95 < moved < 1.001 + 0.05 * np.abs(value).max(), name


def test_the_average_of_a_fine_tuned_run_begins_with_the_loaded_weights(one_step):
    start, end = checkpoint.read(one_step / "start.ckpt"), checkpoint.read(newest(one_step))
    for name, value in start.items():
        decay = 2 / 11  # of the first step
        assert np.allclose(end[f"ema.{name}"], decay * value + (1 - decay) * end[name], atol=1e-6), name


@pytest.fixture(scope="module")
def frozen(original, tmp_path_factory):
    """A run of two epochs that trains a new head alone, and what of CONFIG it changes."""
    folder = tmp_path_factory.mktemp("frozen")
    shutil.copy(original, folder / "start.safetensors")
    changes = {
        "optim": CONFIG["optim"] | {"epochs": 2, "train": "head"},
        "init": {"weights": str(folder / "start.safetensors"), "head": "new"},
        "data": CONFIG["data"] | {"train_size": 32},
    }
    assert tune(folder, "", changes) == 0
    return folder, changes


def test_a_frozen_network_keeps_every_bit_and_has_no_moments_and_no_averages(original, frozen):
    folder, _ = frozen
    convert(original, folder / "start.ckpt")
    start, end = checkpoint.read(folder / "start.ckpt"), checkpoint.read(newest(folder))
    for name, value in start.items():
        assert (end[name].tobytes() == value.tobytes()) == (not name.startswith("head")), name
    assert np.abs(end["head.weight"]).max() > 0  # it began with zeros
    kept = {name for name in end if name.startswith(("ema.", "optimizer."))} - {"optimizer.step"}
    assert kept == {
        f"{of}.head.{kind}" for of in ("ema", "optimizer.moment1", "optimizer.moment2") for kind in ("weight", "bias")
    }


def test_averaged_weights_of_a_frozen_run_are_the_average_of_the_head_on_its_blocks(frozen):
    folder, changes = frozen
    config = load_config(folder / "runs/tuned/config.yaml")
    network, entries = build_network(config, "cpu"), checkpoint.read(newest(folder))
    checkpoint.restore_weights(newest(folder), network, averaged=True)
    for name, parameter in network.parameters_dict().items():
        assert np.array_equal(parameter.asnumpy(), entries[("ema." if name.startswith("head") else "") + name]), name
    assert not np.array_equal(entries["ema.head.bias"], entries["head.bias"])


@pytest.mark.slow
def test_a_frozen_run_is_trained_and_evaluated_along_routes_with_its_averages(frozen, tmp_path, capsys):
    changes = frozen[1] | {
        "routes": [{"start": 1, "end": 2, "keep_ratio": 0.5, "restore": False}],
        "phases": [{"epochs": 1, "routes": []}, {}],
    }
    assert tune(tmp_path, "", changes) == 0
    capsys.readouterr()
    assert run("eval", [str(tmp_path / "runs/tuned"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    last = json.loads((tmp_path / "runs/tuned/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert set(last) == {"dense", "routed", "dense_ema", "routed_ema"}
    for name, expected in last.items():
        assert scores[name]["top1"] == expected["top1"] and np.isclose(
            scores[name]["loss"], expected["loss"], rtol=1e-5
        )
    assert last["routed"]["loss"] != last["routed_ema"]["loss"]


def test_a_run_goes_on_without_the_weights_that_it_started_from(frozen, tmp_path, monkeypatch, capsys):
    """How it goes on from there is tested with the engine."""
    folder, changes = frozen
    shutil.copytree(folder / "runs", tmp_path / "runs")
    newest(tmp_path).unlink()
    (folder / "start.safetensors").rename(folder / "gone")
    begun = []
    monkeypatch.setattr(training, "_train", lambda config, run, begin, *_: begun.append(begin))
    assert tune(tmp_path, "", changes, "--resume", "auto", "--check") == 0
    assert tune(tmp_path, "", changes, "--resume", "auto") == 0
    (folder / "gone").rename(folder / "start.safetensors")
    (begin,) = begun
    assert isinstance(begin, checkpoint.Checkpoint) and begin.path == newest(tmp_path)
    other = changes | {"init": {"weights": "other.ckpt", "head": "new"}}
    assert tune(tmp_path, "", other, "--resume", "auto") == 2
    assert "has another init.weights" in capsys.readouterr().err
