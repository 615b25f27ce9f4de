"""The trace of a run, however short it is and however it ends; MindSpore's profiler is a stand-in that counts."""

import pytest

from skipvit import training
from skipvit.config.config import Config
from skipvit.engine import profiling
from skipvit.engine.loop import Trainer
from skipvit.util.errors import Stopped

CONFIG = {
    "model": {"width": 8, "depth": 1, "heads": 2, "patch": 16, "image_size": 32, "num_classes": 10},
    "data": {"kind": "shapes", "batch_size": 8, "train_size": 16, "val_size": 8},
    "optim": {"epochs": 1, "warmup_epochs": 0},
    "device": "cpu",
}


class Profile:
    """What is asked of MindSpore's `profile`, in order."""

    def __init__(self, **_):
        self.asked = []

    def start(self):
        self.asked.append("start")

    def step(self):
        self.asked.append("step")

    def stop(self):
        self.asked.append("stop")


@pytest.fixture
def callback(monkeypatch, tmp_path):
    monkeypatch.setattr(profiling, "profile", Profile)
    return profiling.ProfileSteps(tmp_path, "cpu")


@pytest.mark.parametrize("steps, recorded", [(3, 3), (10, 10), (40, 11)])
def test_a_trace_ends_after_ten_steps_or_with_the_phase(callback, steps, recorded):
    callback.on_train_begin(None)
    for _ in range(steps):
        callback.on_train_step_end(None)
    callback.on_train_end(None)
    callback.on_train_begin(None)  # the next phase
    callback.on_train_step_end(None)
    callback.on_train_end(None)
    assert callback.profile.asked == ["start", *["step"] * recorded, "stop"]


def test_a_run_that_is_stopped_leaves_its_trace(monkeypatch, tmp_path):
    asked = []

    def stopped(trainer, position):
        (callback,) = trainer.callbacks
        callback.on_train_begin(None)
        callback.on_train_step_end(None)
        asked.append(callback.profile.asked)
        raise Stopped("stopped after step 1 of epoch 1, saved")

    monkeypatch.setattr(profiling, "profile", Profile)
    monkeypatch.setattr(Trainer, "run", stopped)
    with pytest.raises(Stopped):
        training.train(Config(**CONFIG), tmp_path, profile=True)
    assert asked == [["start", "step", "stop"]]
