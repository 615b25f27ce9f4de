"""A run that an earlier version began: its configuration and checkpoints are read, and training goes on with the same
end."""

import json
import shutil

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from skipvit import training
from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.engine import checkpoint
from skipvit.engine.checkpoint_file import write_checkpoint
from skipvit.runs.evaluation import evaluate
from skipvit.runs.run import Run

GROUPS = {
    "deterministic": True,
    "data": {"kind": "shapes", "batch_size": 8, "train_size": 48, "val_size": 24},
    "augment": {"crop": "pad", "hflip": 0.5},
    "optim": {"epochs": 2, "warmup_epochs": 1.0},
    "ema": {"decay": 0.9},
    "eval": {"every": 2},
}
SHAPE = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10, "drop_path": 0.1}
ROUTE = {"start": 1, "end": None, "keep_ratio": 0.5, "scorer": "cls_attention"}
CONFIG = GROUPS | {"routes": [ROUTE], "phases": [{"epochs": 1, "routes": []}, {}]}
CONFIG["model"] = {"name": "vit_tiny_patch16_224", **SHAPE}
# As that version wrote it: every key of a route, all of them.
UNSET = {"restore": True, "fuse": False, "temperature": None, "random_share": None, "at": "block"}
OLDER = GROUPS | {
    "name": "run",
    "model": {"size": "tiny", **SHAPE, "gelu": "tanh"},
    "routes": [ROUTE | UNSET],
    "phases": {"dense_warmup_epochs": 1, "dense_cooldown_epochs": 0, "evaluate": "auto"},
}


@pytest.fixture(scope="module", autouse=True)
def nothing_drawn():
    """The image of bypassed patches is a graph of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "draw_kept", lambda *_: Figure())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of today's version, of two phases."""
    return training.train(Config(**CONFIG), tmp_path_factory.mktemp("whole"))


def made_older(run, folder, epochs):
    """The same run as an earlier version left it after so many epochs."""
    shutil.copytree(run.path, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(OLDER))
    for path in (folder / "checkpoints").iterdir():
        entries = checkpoint.read(path)
        path.unlink()
        if path.name.startswith("epoch_") and int(path.name[6:10]) <= epochs:
            entries["trainer.position.pictures"] = entries.pop("trainer.position.images")
            write_checkpoint(path, entries)
    return Run(folder)


def test_the_configuration_is_the_same_in_todays_keys(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLDER))
    older = load_config(tmp_path / "config.yaml")
    recipe = OLDER | {"model": {"size": "tiny", **SHAPE}, "routes": [ROUTE], "phases": {"dense_warmup_epochs": 1}}
    for config in (Config(**CONFIG), Config(**recipe)):  # what a recipe does not say, the folder has written out
        assert config.changed_since(older) == [] and config.resolved_phases() == older.resolved_phases()


def test_an_older_run_goes_on_in_its_next_phase_to_the_same_end_bit_by_bit(whole, tmp_path):
    older = made_older(whole, tmp_path / "run", epochs=1)
    (newest,) = older.checkpoints()
    assert checkpoint.read_run(newest).position.images == 8
    (older.path / "summary.json").unlink()
    assert not older.finished
    run = training.train(Config(**CONFIG), tmp_path, resume="auto")
    ends = [checkpoint.read(each.checkpoint("last")) for each in (whole, run)]
    assert ends[0].keys() == ends[1].keys() and "trainer.position.images" in ends[1]
    assert [name for name in ends[0] if ends[0][name].tobytes() != ends[1][name].tobytes()] == []
    assert run.finished


def test_an_older_run_is_evaluated_as_it_was(whole, tmp_path):
    older = made_older(whole, tmp_path / "run", epochs=2)
    found, told = evaluate(older), whole.summary()["forwards"]
    assert set(found) == set(told) == {"dense", "routed", "dense_ema", "routed_ema"}
    for name, scores in found.items():
        assert (scores.top1, scores.top5, scores.images) == (told[name]["top1"], told[name]["top5"], 24), name
    logged = json.loads((older.path / "metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert np.allclose([found[name].loss for name in found], [logged[name]["loss"] for name in found], rtol=1e-6)
