"""CIFAR's binary files, written here value by value as their official description has them."""

import shutil

import numpy as np
import pytest

from skipvit.data.sources.cifar import open_cifar
from skipvit.util.errors import RunError, UsageError

NAMES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "cifar100": [f"thing_{i}" for i in range(100)],
}
SUBFOLDER = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
FILES = {
    ("cifar10", "train"): [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)],
    ("cifar10", "val"): ["test_batch.bin"],
    ("cifar100", "train"): ["train.bin"],
    ("cifar100", "val"): ["test.bin"],
}
META = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}


def record(kind: str, image: np.ndarray, label: int) -> bytes:
    """A record: label (CIFAR-100: coarse, fine), then all of red row by row, all of green, all of blue."""
    head = [label] if kind == "cifar10" else [label // 5, label]
    planes = [image[row, column, channel] for channel in range(3) for row in range(32) for column in range(32)]
    return bytes(head) + bytes(planes)


@pytest.fixture(params=["cifar10", "cifar100"])
def made(request, tmp_path):
    """(kind, folder, {split: (images, labels)})."""
    kind, rng = request.param, np.random.default_rng(0)
    folder = tmp_path / SUBFOLDER[kind]
    folder.mkdir()
    (folder / META[kind]).write_text("\n".join(NAMES[kind]) + "\n\n")
    truth = {}
    for split in ("train", "val"):
        images, labels = [], []
        for k, file in enumerate(FILES[kind, split]):
            samples = rng.integers(0, 256, (2 + k, 32, 32, 3), np.uint8)
            numbers = rng.integers(0, len(NAMES[kind]), 2 + k)
            (folder / file).write_bytes(b"".join(record(kind, *pair) for pair in zip(samples, numbers)))
            images.append(samples)
            labels.append(numbers)
        truth[split] = np.concatenate(images), np.concatenate(labels)
    return kind, folder, truth


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("above", [False, True])
def test_images_labels_and_names(made, split, above):
    kind, folder, truth = made
    source = open_cifar(folder.parent if above else folder, kind, split)
    images, labels = truth[split]
    assert source.labels.dtype == np.int32 and np.array_equal(source.labels, labels)
    assert source.images.dtype == np.uint8 and np.array_equal(source.images, images) and len(source) == len(images)
    for i in range(len(source)):
        assert source.read(i).shape == (32, 32, 3) and np.array_equal(source.read(i), images[i])
    assert source.classes == tuple(NAMES[kind])


def test_without_names_the_classes_are_numbers(made):
    kind, folder, _ = made
    (folder / META[kind]).unlink()
    assert open_cifar(folder, kind, "val").classes == tuple(str(i) for i in range(len(NAMES[kind])))


def test_damaged_names(made):
    kind, folder, _ = made
    (folder / META[kind]).write_text("one\ntwo\n")
    with pytest.raises(RunError, match=f"{META[kind]}: 2 names for {len(NAMES[kind])} classes"):
        open_cifar(folder, kind, "val")
    (folder / META[kind]).write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=f"{META[kind]}: cannot be read"):
        open_cifar(folder, kind, "val")


def test_damaged_files(made):
    kind, folder, _ = made
    path = folder / FILES[kind, "train"][-1]
    good = path.read_bytes()
    for content in (good[:-1], good + b"x", b""):
        path.write_bytes(content)
        with pytest.raises(RunError, match=f"{path.name}: {len(content)} bytes are not whole records of 307"):
            open_cifar(folder, kind, "train")
    size, position = (3073, 0) if kind == "cifar10" else (3074, 1)
    damaged = bytearray(good)
    damaged[size + position] = len(NAMES[kind])
    path.write_bytes(damaged)
    with pytest.raises(
        RunError, match=f"{path.name}: record 1 has label {len(NAMES[kind])} of {len(NAMES[kind])} classes"
    ):
        open_cifar(folder, kind, "train")
    path.unlink()
    with pytest.raises(RunError, match=f"{path.name}: cannot be read"):
        open_cifar(folder, kind, "train")
    open_cifar(folder, kind, "val")


def test_no_data_there(made, tmp_path):
    kind, folder, _ = made
    with pytest.raises(UsageError, match="data.path: .*nowhere is not a folder"):
        open_cifar(tmp_path / "nowhere", kind, "train")
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=f"data.path: neither {FILES[kind, 'train'][0]} nor {SUBFOLDER[kind]}/"):
        open_cifar(tmp_path, kind, "train")


@pytest.mark.parametrize(
    "kind,subfolder,file",
    [("cifar10", "cifar-10-batches-py", "data_batch_1"), ("cifar100", "cifar-100-python", "meta")],
)
def test_the_python_version_is_named(tmp_path, kind, subfolder, file):
    (tmp_path / subfolder).mkdir()
    (tmp_path / subfolder / file).touch()
    for folder in (tmp_path, tmp_path / subfolder):
        with pytest.raises(UsageError, match="the binary version .* is needed"):
            open_cifar(folder, kind, "train")
