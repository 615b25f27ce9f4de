"""`skipvit importance` on small networks with random weights: what it writes, and that its numbers are NumPy's."""

import json

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run
from skipvit.config.config import Config, to_yaml
from skipvit.data.sources.shapes import generate
from skipvit.engine import checkpoint
from skipvit.engine.build import build_network
from skipvit.engine.checkpoint import Position
from skipvit.insight.importance import as_text, images_of, importance
from skipvit.insight.measures import on_object, shares_kept, top
from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD
from skipvit.routing.scorers import SCORERS, register_scorer
from skipvit.runs.run import Run
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from support import published
from support.reference import grid
from support.weights import drawn, load

VALUES = {
    "name": "small",
    "device": "cpu",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 16,
        "depth": 4,
        "heads": 2,
        "patch": 8,
        "image_size": 32,
        "num_classes": 10,
    },
    "routes": [
        {"start": 2, "end": 3, "keep_ratio": 0.5},
        {"start": 3, "end": 4, "keep_ratio": 0.25, "scorer": "random", "restore": False},
    ],
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 40, "val_size": 40},
    "optim": {"epochs": 2, "warmup_epochs": 0},
}
IMAGES = 16


@pytest.fixture(scope="module")
def late():
    """A scorer of somebody's own, with a parameter: the last patches first, from one of them on."""

    def score(step, signals, noise, training):
        places = ms.Tensor([[i % step.knobs["turn"] for i in range(step.before.patches)]], ms.float32)
        return 0 * noise + places, noise

    register_scorer("late", noise=(1, 0), knobs={"turn": (16, 1, 16)})(score)
    yield "late"
    del SCORERS["late"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, late):
    """What `importance` made of a run's folder with two checkpoints of different weights, and the last weights."""
    folder = tmp_path_factory.mktemp("run")
    config = Config(**VALUES)
    (folder / "config.yaml").write_text(to_yaml(config))
    network = build_network(config, "cpu")
    for epoch in (0, 1):
        values = drawn(config.model.spec().shapes(), seed=17 + epoch)
        load(network, values)
        checkpoint.save(folder / "checkpoints", Position(epoch, 2, 2), network.trainable_params(), keep=2)
    scorers = ["cls_attention", "sampled_cls_attention", "grid", late]
    result = importance(folder, scorers, images=IMAGES)
    assert json.loads((folder / "importance/importance.json").read_text()) == result
    return folder / "importance", result, values


def of_sets(row):
    """The measures of kept sets; what the network predicts is another draw each time, as its second route is random."""
    return {key: value for key, value in row.items() if key.endswith(("_kept", "_overlap"))}


def test_numbers_a_table_and_images_are_written(measured):
    folder, result, _ = measured
    assert sorted(path.name for path in folder.iterdir()) == [
        "importance.json",
        "importance.png",
        "importance.txt",
        "kept.png",
    ]
    assert result["images"] == IMAGES and (result["site"], result["kept"], result["tokens"]) == (1, 8, 16)
    assert list(result["scorers"]) == ["cls_attention", "sampled_cls_attention", "grid", "late", "random"]
    assert list(result["blocks"]) == [f"block {b}" for b in range(4)]
    assert list(result["routes"]) == ["route 0", "route 1"]
    text = (folder / "importance.txt").read_text()
    assert text == as_text(result) + "\n"
    assert all(f"\n{name} " in text for name in (*result["scorers"], *result["blocks"], *result["routes"]))


def test_kept_shares_of_attention_and_grid_are_those_of_numpy(measured):
    """The network's attention by the tests' own ViT, the built-in masks, 8 of 16 patches."""
    _, result, values = measured
    chosen = np.linspace(0, 39, IMAGES).astype(int)
    truth = generate(40, seed=0, split="val")
    objects = on_object(truth.masks[chosen], 4)
    net = published.Net(values, 4, 2, 8)
    images = (truth.images[chosen] - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    rankings = np.array([net.of_cls(1, net.block(0, net.tokens(image))) for image in images])
    last_half = np.arange(16) >= 8
    by_scorer = {"cls_attention": top(rankings, 8)}
    by_scorer |= {"grid": np.tile(grid(16, 8), (IMAGES, 1)), "late": np.tile(last_half, (IMAGES, 1))}
    for name, kept in by_scorer.items():
        row = result["scorers"][name]
        assert (row["object_kept"], row["background_kept"]) == pytest.approx(shares_kept(kept, objects))
    assert of_sets(result["scorers"]["cls_attention"]) == of_sets(result["blocks"]["block 1"])  # the route reads it


def test_drawn_scorers_are_measured_as_they_evaluate_and_positions_stay(measured):
    _, result, _ = measured
    assert of_sets(result["scorers"]["sampled_cls_attention"]) == of_sets(result["scorers"]["cls_attention"])
    assert result["scorers"]["grid"]["checkpoint_overlap"] == [1.0]
    assert 0 < result["scorers"]["cls_attention"]["checkpoint_overlap"][0] < 1
    assert result["scorers"]["random"]["flip_overlap"] == pytest.approx(
        0.5, abs=0.15
    )  # new noise for every look: 8 of 16


def test_what_routes_keep_is_measured_too(measured):
    """The first by attention, as the scorer; the second at random, 4 of 16."""
    _, result, _ = measured
    assert of_sets(result["routes"]["route 0"]) == of_sets(result["scorers"]["cls_attention"])
    assert result["routes"]["route 1"]["object_kept"] == pytest.approx(0.25, abs=0.15)
    assert "deletion" not in result["routes"]["route 1"]


REFUSED = [
    (["--scorers", "magic"], "scorers: 'magic' is not one of cls_attention, "),
    (["--images", "0"], "images: use 1 or more"),
    (["--routes", "[]"], "small has no routes; say where one would begin"),
    (["--masks", "x"], "masks: the built-in images have masks of their own"),
    (["--weights", "nowhere.ckpt"], "nowhere.ckpt: no such"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(measured, capsys, words, message):
    assert run("importance", [str(measured[0].parent), *words]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


@pytest.fixture
def birds(tmp_path):
    """An image folder of 48 x 32 images, with masks that are white on the middle third; its configuration."""
    for folder, pixels in (("data/val", None), ("masks", np.repeat(np.arange(48)[None] // 16 == 1, 32, 0))):
        for name in ("a/one", "b/two"):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((32, 48, 3), np.uint8) if pixels is None else pixels.astype(np.uint8) * 255).save(
                path
            )
    data = {"kind": "image_folder", "path": str(tmp_path / "data"), "eval_crop": 1.0}
    return tmp_path, Config(**VALUES | {"data": data, "model": VALUES["model"] | {"num_classes": 2}})


def test_masks_of_a_folder_are_cropped_as_the_images_are(birds):
    """The centre of 48 x 32 is 32 x 32: its middle half is the object."""
    folder, config = birds
    shown = images_of(Trained(config, folder), 10, folder / "masks")
    assert shown.masks.shape == (2, 32, 32) and shown.filled_with == "the mean colour"
    assert np.array_equal(shown.masks, np.tile((np.arange(32) // 8 == 1) | (np.arange(32) // 8 == 2), (2, 32, 1)))


def test_a_mask_that_is_missing_or_broken_is_named(birds):
    folder, config = birds
    (folder / "masks/b/two.png").write_bytes(b"no image")
    with pytest.raises(RunError, match="two.png: not an image"):
        images_of(Trained(config, folder), 10, folder / "masks")
    (folder / "masks/b/two.png").unlink()
    with pytest.raises(UsageError, match="two.png is not there"):
        images_of(Trained(config, folder), 10, folder / "masks")


def test_labels_go_by_the_names_of_the_classes(birds):
    """Deletion and insertion ask for the true class: of a run that knew c, b and a."""
    folder, _ = birds
    values = VALUES | {"data": {"kind": "image_folder", "path": str(folder / "data")}}
    config = Config(**values | {"model": VALUES["model"] | {"num_classes": 3}})
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(to_yaml(config))
    (folder / "run" / "classes.json").write_text(json.dumps(["c", "b", "a"]))
    assert images_of(Trained(config, folder, run=Run(folder / "run")), 10).labels.tolist() == [2, 1]
    (folder / "run" / "classes.json").write_text(json.dumps(["c", "b", "d"]))
    with pytest.raises(UsageError, match="its classes a are not among the 3"):
        images_of(Trained(config, folder, run=Run(folder / "run")), 10)
