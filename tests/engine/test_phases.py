"""Three phases of different image size, routes and mixing, over one set of weights: stopped and resumed in two of
them, with the same end to the last bit."""

import os
import shutil
import signal

import numpy as np
import pytest
from matplotlib.figure import Figure

from skipvit import training
from skipvit.config.config import Config
from skipvit.engine import checkpoint
from skipvit.engine.loop import Trainer
from skipvit.util.errors import Stopped

UPDATES = 6
CONFIG = {
    "model": {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10, "drop_path": 0.1},
    "routes": [{"start": 1, "keep_ratio": 0.5, "fuse": True}],
    "phases": [
        {"epochs": 1, "image_size": 16, "routes": [], "augment": {"mixup": 0.0}},
        {
            "epochs": 1,
            "image_size": 24,
            "routes": [{"start": 1, "keep_ratio": 0.4, "scorer": "random"}],
            "augment": {"mixup": 0.0},
        },
        {},
    ],
    "data": {"batch_size": 8, "train_size": 8 * UPDATES, "val_size": 24},
    "augment": {"crop": "pad", "hflip": 0.5, "mixup": 0.8},
    "optim": {"epochs": 3, "warmup_epochs": 1},
    "ema": {"decay": 0.9},
    "eval": {"every": 3, "forwards": ["routed"]},
    "deterministic": True,
}


@pytest.fixture
def stop_after(monkeypatch):
    """Have this process get SIGTERM after an update: stop_after(epoch, step); None: no more."""
    place = []
    follow = Trainer.after_update

    def after_update(trainer, position):
        if place == [position.epoch, position.step]:
            os.kill(os.getpid(), signal.SIGTERM)
        follow(trainer, position)

    monkeypatch.setattr(Trainer, "after_update", after_update)

    def choose(*position):
        place[:] = position

    return choose


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """The image of bypassed patches is a graph of its own."""
    monkeypatch.setattr(training, "draw_kept", lambda *_: Figure())


@pytest.mark.slow
def test_stopped_in_two_of_three_phases_and_resumed_the_end_is_the_same_bit_by_bit(tmp_path, stop_after):
    config = Config(**CONFIG)
    phases = config.resolved_phases()
    assert [(p.forward, p.config.augment.mixes) for p in phases] == [
        ("dense@16", False), ("phase2@24", False), ("routed", True),
    ]  # fmt: skip
    whole = training.train(config, tmp_path / "whole")
    # The first epoch is the same: the second run begins as if it had been killed at its end.
    shutil.copytree(whole.path, tmp_path / "stopped/run")
    for path in (tmp_path / "stopped/run/checkpoints").glob("*.ckpt"):
        if "epoch_0001" not in path.name:
            path.unlink()
    log = tmp_path / "stopped/run/metrics.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    for epoch, step in ((1, 3), (2, 2)):
        stop_after(epoch, step)
        with pytest.raises(Stopped, match=f"stopped after step {step} of epoch {epoch + 1}, saved"):
            training.train(config, tmp_path / "stopped", resume="auto")
        newest = checkpoint.saved(tmp_path / "stopped/run/checkpoints")[-1]
        position = checkpoint.read_run(newest).position
        assert (position.epoch, position.step, position.steps) == (epoch, step, UPDATES)
        assert checkpoint.read(newest)["optimizer.step"] == epoch * UPDATES + step
    stop_after()
    stopped = training.train(config, tmp_path / "stopped", resume="auto")
    ends = [checkpoint.read(run.checkpoint("last")) for run in (whole, stopped)]
    assert ends[0].keys() == ends[1].keys()
    assert {"ema.pos_embed", "optimizer.moment2.pos_embed", "trainer.position.best"} <= ends[0].keys()
    assert [name for name in ends[0] if ends[0][name].tobytes() != ends[1][name].tobytes()] == []
    assert ends[0]["optimizer.step"] == 3 * UPDATES and stopped.finished
    # Every phase has moved the weights, and what the two runs tell of their epochs is the same.
    after = [checkpoint.read(path) for path in whole.checkpoints()]
    assert len(after) == 3 and all(
        np.abs(b[name] - a[name]).max() > 0
        for a, b in zip(after, after[1:])
        for name in a
        if not name.startswith(("trainer.", "optimizer.step"))
    )
    names = ("epoch", "trained", "phase", "steps", "train_loss", "gradient_norm", "lr", "overflows")
    told = [[{name: record[name] for name in names} for record in run.records()] for run in (whole, stopped)]
    assert told[0] == told[1] and [record["trained"] for record in told[0]] == [phase.forward for phase in phases]
    scores = [{name: row["top1"] for name, row in run.summary()["forwards"].items()} for run in (whole, stopped)]
    assert scores[0] == scores[1] and set(scores[0]) == {"routed", "routed_ema"}
