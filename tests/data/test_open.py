"""Classes by name, checksums of a run's images, and what is refused when a configuration's data are opened."""

import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from skipvit.config.reading import load_config
from skipvit.data.broken import Broken, lost_classes
from skipvit.data.classes import match_classes, relabelled
from skipvit.data.open import fingerprints, open_source, open_sources
from skipvit.data.sources.arrays import Arrays
from skipvit.util.errors import RunError, UsageError


def of_classes(*names):
    """An image of each class, which says the place of its class."""
    images = np.zeros((len(names), 4, 4, 3), np.uint8) + np.arange(len(names), dtype=np.uint8)[:, None, None, None]
    return Arrays(images, np.arange(len(names), dtype=np.int32), names)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate("abc"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (9 + i, 9), (label, i, 0))
                image.save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def config(path, classes=3):
    keys = {"data.kind": "image_folder", "data.path": str(path), "model.num_classes": classes}
    return load_config("skipvit_small_imagenet.yaml", keys)


# Classes


def test_classes_are_matched_by_name():
    known = ("ant", "bee", "cat", "dog")
    assert match_classes(of_classes(*known), known).tolist() == [0, 1, 2, 3]
    assert match_classes(of_classes("dog", "bee"), known).tolist() == [3, 1]
    source = relabelled(of_classes("dog", "ant", "bee"), known)
    assert source.classes == known and source.labels.tolist() == [3, 0, 1] and source.labels.dtype == np.int32
    assert [int(source.read(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2] and len(source) == 3
    with pytest.raises(UsageError, match="classes eel, fox are not among the 4 that the network was trained on"):
        match_classes(of_classes("ant", "eel", "bee", "fox"), known)
    with pytest.raises(UsageError, match="classes 0, 1, 2, 3, 4 and 3 more are not"):
        match_classes(of_classes(*"01234567"), known)


def test_classes_without_names_are_matched_by_place():
    """As of CIFAR without its file of names."""
    assert match_classes(of_classes("0", "1", "2"), ("ant", "bee", "cat")).tolist() == [0, 1, 2]
    assert match_classes(of_classes("ant", "bee"), ("0", "1")).tolist() == [0, 1]
    assert match_classes(of_classes("2", "10"), ("10", "2")).tolist() == [1, 0]


def test_bytes_that_are_no_utf8_match_what_mindrecord_keeps_of_them():
    assert match_classes(of_classes("caf\udce9", "tea"), ("tea", "caf\ufffd")).tolist() == [1, 0]


def test_evaluation_finds_renamed_and_reordered_folders(folder):
    """Sorted, z would be the last; the network's first class is not among the images."""
    (folder / "val" / "a").rename(folder / "val" / "z")
    source = open_source(config(folder), "val", classes=("q", "z", "c", "b"))
    assert source.labels.tolist() == [3, 3, 2, 2, 1, 1]
    with pytest.raises(UsageError, match="data.path: its classes z are not among the 3"):
        open_source(config(folder), "val", classes=("a", "b", "c"))
    with pytest.raises(UsageError, match="its classes b, c, z are not among"):
        open_source(config(folder), "val", classes=("0", "1", "2"))


def test_the_splits_are_compared_before_the_network(folder):
    """The advice to set num_classes would only be right for one of them."""
    shutil.rmtree(folder / "val" / "c")
    for classes in (2, 3, 5):
        with pytest.raises(RunError, match="^class 'c' is in train/ but not in val/; both need the same classes$"):
            open_sources(config(folder, classes))
    shutil.copytree(folder / "train" / "c", folder / "val" / "c")
    with pytest.raises(RunError, match="model.num_classes: 5, but the train images in .* set --model.num_classes 3$"):
        open_sources(config(folder, 5))
    with pytest.raises(RunError, match="model.num_classes: 5, but the val images in .* have 3 classes") as error:
        open_source(config(folder, 5), "val")
    assert "--model.num_classes" not in str(error.value)
    train, val = open_sources(config(folder))
    assert train.classes == val.classes == ("a", "b", "c")


# Checksums


def test_checksums_tell_images_of_both_splits_apart(folder):
    def now():
        return fingerprints(*open_sources(config(folder)))

    first, old = now()
    assert now() == (first, old) and 0 <= first < 2**32
    labels = np.repeat(np.arange(3, dtype=np.int32), 3)
    assert old == zlib.crc32(labels.tobytes(), zlib.crc32(b"a\0b\0c"))
    (folder / "val" / "a" / "0.png").rename(folder / "val" / "a" / "00.png")
    renamed = now()
    assert renamed[0] != first and renamed[1] == old
    (folder / "val" / "a" / "00.png").rename(folder / "val" / "a" / "0.png")
    assert now() == (first, old)
    Image.new("RGB", (90, 90)).save(folder / "train" / "b" / "1.png")
    exchanged = now()
    assert exchanged[0] != first and exchanged[1] == old
    (folder / "train" / "b" / "1.png").unlink()
    assert now()[1] != old


def test_checksums_of_images_in_memory_are_of_their_pixels():
    one, other = of_classes("a", "b"), of_classes("a", "b")
    assert fingerprints(one, one) == fingerprints(other, other)
    other.images[1, 2, 2, 0] ^= 1
    for pair in ((other, one), (one, other)):
        assert (
            fingerprints(*pair)[0] != fingerprints(one, one)[0] and fingerprints(*pair)[1] == fingerprints(one, one)[1]
        )


# Classes that are lost


def test_a_class_of_broken_images_only_is_named(folder):
    source, broken = open_source(config(folder), "train"), Broken(9, 1.0)
    assert lost_classes(source, broken) == []
    for i in (0, 3, 4, 5, 6):  # one of a, all of b, one of c
        broken.add(source.name(i), "a reason")
    assert lost_classes(source, broken) == ["b"]
