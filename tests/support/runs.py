"""A run's folder without the hours of training: what evaluation, prediction and export read, with random weights."""

import json

import pytest
import yaml

from skipvit.config.config import to_yaml
from skipvit.config.reading import load_config
from support.weights import random_weights

TINY = {
    "name": "tiny",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 16,
        "depth": 4,
        "heads": 2,
        "patch": 8,
        "image_size": 32,
        "num_classes": 10,
    },
    "routes": [{"start": 1, "end": 3, "keep_ratio": 0.5}],
    "phases": [{"epochs": 1, "routes": []}, {}],
    "data": {"kind": "shapes", "batch_size": 10, "train_size": 100, "val_size": 70},
    "optim": {"epochs": 2, "warmup_epochs": 0},
    "ema": {"decay": 0.9},
}


@pytest.fixture(scope="session")
def make_run():
    """make_run(folder, **groups): see `write_run`."""
    return write_run


def write_run(folder, seed=17, **groups):
    """The folder of a run that ended after its second epoch, and its averaged weights by name.

    Args:
        groups: keys over those of `TINY`.
    """
    from mindspore import Parameter, Tensor

    from skipvit.engine import checkpoint
    from skipvit.engine.checkpoint import Position

    groups = {name: TINY.get(name, {}) | group if isinstance(group, dict) else group for name, group in groups.items()}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY | groups))
    config = load_config(folder / "config.yaml")
    (folder / "config.yaml").write_text(to_yaml(config))
    spec = config.model.spec()
    names = [f"kind {i}" for i in range(spec.num_classes)]
    (folder / "classes.json").write_text(json.dumps(names))
    geometry = spec.width, spec.depth, spec.patch, spec.grid(), spec.num_classes
    last, averaged = random_weights(*geometry, seed + 1), random_weights(*geometry, seed)
    entries = last | {f"ema.{name}": value for name, value in averaged.items()}
    parameters = [Parameter(Tensor(value), name=name) for name, value in entries.items()]
    epochs = config.optim.epochs
    checkpoint.save(folder / "checkpoints", Position(epoch=epochs - 1, step=10, steps=10), parameters, 1)
    scores = {"top1": 12.5, "top5": 50.0, "loss": 2.0, "images": 70, "images_per_s": 1.0}
    evaluated = [f"{name}{suffix}" for name in config.evaluated() for suffix in ("", "_ema")]
    record = {"epoch": epochs, "trained": config.trained(), "val": {name: scores for name in evaluated}}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return folder, averaged
