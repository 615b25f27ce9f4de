"""A run's folder without the hours of training: what `skipvit predict` and `skipvit export` read, with random weights."""

import json

import pytest
import yaml
from mindspore import Parameter, Tensor

from skipvit.config import config as configuration
from skipvit.engine import checkpoint
from skipvit.engine.checkpoint import Position
from support.weights import random_weights

TINY = {
    "name": "tiny",
    "model": {"size": "tiny", "width": 16, "depth": 4, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10},
    "routes": [{"start": 1, "end": 3, "keep_ratio": 0.5}],
    "phases": {"dense_warmup_epochs": 1},
    "data": {"kind": "shapes", "batch_size": 10, "train_size": 100, "val_size": 70},
    "optim": {"epochs": 2, "warmup_epochs": 0},
    "ema": {"decay": 0.9},
}


@pytest.fixture(scope="session")
def make_run():
    """make_run(folder, **groups): the folder of a run that ended after its second epoch, and its averaged weights by name."""

    def make(folder, seed=17, **groups):
        groups = {
            name: TINY.get(name, {}) | group if isinstance(group, dict) else group for name, group in groups.items()
        }
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(TINY | groups))
        config = configuration.read(folder / "config.yaml")
        (folder / "config.yaml").write_text(configuration.to_yaml(config))
        names = [f"kind {i}" for i in range(config.model.num_classes)]
        (folder / "classes.json").write_text(json.dumps(names))
        model, size = config.model, config.model.shape()
        geometry = size.width, size.depth, model.patch, model.image_size // model.patch, model.num_classes
        last, averaged = random_weights(*geometry, seed + 1), random_weights(*geometry, seed)
        entries = last | {f"ema.{name}": value for name, value in averaged.items()}
        parameters = [Parameter(Tensor(value), name=name) for name, value in entries.items()]
        checkpoint.save(folder / "checkpoints", Position(epoch=1, step=10, steps=10), parameters, 1)
        scores = {"top1": 12.5, "top5": 50.0, "loss": 2.0, "images": 70, "images_per_s": 1.0}
        record = {
            "epoch": 2,
            "trained": "routed",
            "val": {f"{f}{w}": scores for f in ("dense", "routed") for w in ("", "_ema")},
        }
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return folder, averaged

    return make
