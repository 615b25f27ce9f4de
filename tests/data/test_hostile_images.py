"""A training run on an image folder in which half of the files are damaged, mislabelled or unusual."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from skipvit.cli import run
from skipvit.config.groups import AugmentConfig
from skipvit.config.reading import load_config
from skipvit.data.batches import Batches
from skipvit.data.broken import Broken
from skipvit.data.decode import decode
from skipvit.data.open import batches_of, open_source
from skipvit.data.sources.arrays import Subset
from skipvit.data.sources.image_folder import open_split
from support.hostile import encoded, hostile, reason_to_fail, scene, unusual

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow's; the commands as such must be silent, see below
TRAIN = Path(__file__).parents[2] / "train.py"
CLASSES = ("cat", "dog", "owl")
IMAGES = 400  # of them 200 hostile; whole batches, so that an epoch leaves none out
CONFIG = {
    "name": "run",
    "model": {"size": "tiny", "width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 3},
    "data": {"kind": "image_folder", "batch_size": 16, "workers": 2, "broken_share": 0.5},
    "augment": {"crop": "random_resized", "hflip": 0.5, "rand_augment": 9},
    "optim": {"epochs": 2, "warmup_epochs": 0},
}


def write(folder, files):
    """Spread files over the classes."""
    for i, (name, content) in enumerate(files.items()):
        path = folder / CLASSES[i % len(CLASSES)] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "pipe":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        else:
            path.symlink_to(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Both splits, and the paths of the images of each that Pillow cannot decode."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("hostile")
    files = hostile(rng) | unusual(rng)
    # The folder is none of the images: what is below it would be.
    good = {f"good_{i}.jpg": encoded(scene(rng), "JPEG") for i in range(IMAGES + 1 - len(files))}
    write(folder / "train", files | good)
    few = {
        name: content for name, content in files.items() if name.split(".")[0] in ("cut_3", "empty_1", "rgba", "strip")
    }
    write(folder / "val", few | {f"good_{i}.jpg": encoded(scene(rng), "JPEG") for i in range(20)})
    broken = {}
    for split in ("train", "val"):
        paths = [path for path in (folder / split).glob("*/*") if path.is_symlink() or not path.is_dir()]
        broken[split] = {str(path) for path in paths if reason_to_fail(path)}
    assert 120 < len(broken["train"]) < 200 and 4 < len(broken["val"]) < 9
    names = {Path(path).name for path in broken["train"]}
    assert {"text_0.jpg", "empty_0.jpg", "random_0.jpg", "link_0.jpg", "pipe.jpg", "zero.jpg", "eps.png"} <= names
    assert not names & {*unusual(rng), "png_0.jpg", "jpeg_0.png"}
    return folder, broken


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run folder, the exit code and the configuration of a training run on it."""
    folder = tmp_path_factory.mktemp("runs")
    config = CONFIG | {"data": CONFIG["data"] | {"path": str(data[0])}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    code = run("train", ["--config", str(folder / "run.yaml"), "--runs", str(folder)])
    return folder / "run", code, load_config(folder / "run.yaml")


def lists(run_folder):
    """(path, reason) of every line of the lists of broken images."""
    lines = [
        line for path in run_folder.glob("broken_images*.txt") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [tuple(line.split("\t")) for line in lines]


def test_training_goes_through_and_lists_exactly_the_broken_images(data, trained):
    folder, code, _ = trained
    broken = data[1]
    assert code == 0
    paths, reasons = zip(*lists(folder))
    assert len(paths) == len(set(paths)) and set(paths) == broken["train"] | broken["val"]
    assert all(reason.strip() and "object at" not in reason for reason in reasons)
    reason = {Path(path).name: reason for path, reason in lists(folder)}
    assert reason["empty_0.jpg"] == "empty file" and reason["text_0.jpg"] == "cannot identify image file"
    assert reason["link_0.jpg"] == "No such file or directory" and reason["eps.png"] == "cannot identify image file"
    assert reason["pipe.jpg"] == reason["zero.jpg"] == "not a regular file" and "symbolic links" in reason["loop.jpg"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["broken_images"] for record in records if "epoch" in record] == [len(broken["train"])] * 2
    good = len(list((data[0] / "val").glob("*/*"))) - len(broken["val"])
    assert records[-1]["val"]["dense"]["images"] == good


@pytest.mark.parametrize("split", ["train", "val"])
def test_after_a_resume_a_split_counts_its_own_broken_images(data, trained, split):
    """A limit is a share of one split: what the other has lost is not held against it."""
    folder, _, config = trained
    listing = folder / "broken_images.txt"
    if split == "val" and (folder / "broken_images_val.txt").exists():
        listing = folder / "broken_images_val.txt"
    batches = batches_of(config, open_source(config, split), 1, split == "train", listing=listing)
    assert batches.broken.names == data[1][split]


@pytest.mark.parametrize("share", ["0.001", "0.3"])
def test_too_many_end_the_run_with_one_line_that_names_a_file(data, trained, share):
    """The first one does, or the 121st: by then Pillow has complained about all kinds of damage, for itself."""
    folder, _, _ = trained
    words = [
        "--config",
        folder.parent / "run.yaml",
        "--runs",
        folder.parent,
        "--name",
        share,
        "--data.broken_share",
        share,
    ]
    result = subprocess.run([sys.executable, *map(str, [TRAIN, *words])], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    path = line.removeprefix("error: ").split(": not an image")[0]
    assert path in data[1]["train"] and "data.broken_share" in line
    assert "Traceback" not in result.stdout


def test_training_sees_every_good_image_once_and_others_in_place_of_the_broken_ones(data):
    source = open_split(data[0], "train")
    assert len(source) == IMAGES
    numbered = Subset(source, list(range(IMAGES)))
    numbered.labels = np.arange(IMAGES, dtype=np.int32)  # the label says which image it is
    augment, broken = AugmentConfig(crop="random_resized"), Broken(IMAGES, 0.5)
    batches = Batches(numbered, 16, 32, 1, True, seed=0, augment=augment, workers=2, broken=broken)
    seen = np.concatenate([labels for _, labels, _, _ in batches])
    bad = np.array([source.name(i) in data[1]["train"] for i in range(IMAGES)])
    assert batches.broken.names == data[1]["train"]
    # An image comes once, and once more for each of the broken ones just before it.
    expected = np.zeros(IMAGES, int)
    for i in range(IMAGES):
        while bad[i]:
            i = (i + 1) % IMAGES
        expected[i] += 1
    assert np.array_equal(np.bincount(seen, minlength=IMAGES), expected)
    assert (expected[~bad] >= 1).all() and not expected[bad].any()


@pytest.mark.parametrize("name", list(unusual(np.random.default_rng(0))))
def test_an_unusual_image_is_as_pillow_converts_it(data, name):
    (path,) = (data[0] / "train").glob(f"*/{name}")
    image = Image.open(path)
    if name == "sixteen.png":
        expected = np.repeat((np.asarray(image) >> 8)[..., None], 3, -1)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = decode(path.read_bytes())
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), expected)
    if name == "turned.jpg":
        assert found.size == image.size[::-1]
