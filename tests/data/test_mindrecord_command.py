"""Training reads the same images from a folder and from the MindRecord files made of it."""

import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run
from skipvit.engine.checkpoint import read, saved

MICRO = [
    "--model.width",
    "8",
    "--model.depth",
    "1",
    "--model.heads",
    "2",
    "--model.patch",
    "16",
    "--routes",
    "[]",
    "--phases",
    "[]",
    "--data.batch_size",
    "8",
    "--optim.epochs",
    "1",
    "--augment.crop",
    "random_resized",
    "--augment.rand_augment",
    "9",
]


@pytest.mark.slow
def test_training_from_mindrecord_ends_with_the_weights_of_training_from_the_folder(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for label in range(10):
            (tmp_path / "folder" / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))
                image.save(tmp_path / "folder" / split / f"class{label}" / f"{i}.jpg")
    assert run("mindrecord", [str(tmp_path / "folder"), str(tmp_path / "mindrecord"), "--shard_size", "15"]) == 0
    ends = []
    for kind in ("folder", "mindrecord"):
        name = "image_folder" if kind == "folder" else kind
        words = [
            "--name",
            kind,
            "--runs",
            str(tmp_path / "runs"),
            "--data.kind",
            name,
            "--data.path",
            str(tmp_path / kind),
        ]
        assert run("train", [*words, *MICRO]) == 0, capsys.readouterr().err
        ends.append(read(saved(tmp_path / "runs" / kind / "checkpoints")[-1]))
    names = set(ends[0]) - {"trainer.position.data"}  # a checksum of the files' names and sizes
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in names)
