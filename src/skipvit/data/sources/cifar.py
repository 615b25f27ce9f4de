"""CIFAR-10 and CIFAR-100 from their official binary files, in memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from skipvit.data.sources.arrays import Arrays
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import read_bytes, read_text

PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """Names below the data folder, and a record: `label_bytes`, of which the last is the label, then 3072 of pixels."""

    subfolder: str
    python: tuple[str, str]  # what only the version for Python has: its folder, a file in it
    train: tuple[str, ...]
    val: tuple[str, ...]
    names: str
    label_bytes: int
    classes: int


TEN = Layout(
    "cifar-10-batches-bin",
    ("cifar-10-batches-py", "data_batch_1"),
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    "batches.meta.txt",
    label_bytes=1,
    classes=10,
)
HUNDRED = Layout(
    "cifar-100-binary",
    ("cifar-100-python", "meta"),
    ("train.bin",),
    ("test.bin",),
    "fine_label_names.txt",
    label_bytes=2,  # coarse, fine
    classes=100,
)


def open_cifar(folder: Path, kind: str, split: str) -> Arrays:
    """Read a split; val is the official test set, and CIFAR-100's labels are the fine ones.

    Args:
        folder: what holds the .bin files, or their official subfolder (cifar-10-batches-bin, cifar-100-binary).

    Classes are named as the file of names there says, "0", "1", ... without it.

    Raises:
        UsageError: no such folder, or no binary file in it.
        RunError: a file is missing or cannot be read, is not whole records, or holds a label out of range.
    """
    layout = TEN if kind == "cifar10" else HUNDRED
    root = _root(folder, layout)
    records = np.concatenate([_records(root / name, layout) for name in getattr(layout, split)])
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    labels = records[:, layout.label_bytes - 1].astype(np.int32)
    return Arrays(images, labels, _class_names(root / layout.names, layout.classes))


def _root(folder: Path, layout: Layout) -> Path:
    """The folder that the binary files are in."""
    if not folder.is_dir():
        raise UsageError(f"data.path: {folder} is not a folder; it should hold {layout.subfolder}/{layout.train[0]}")
    for root in (folder, folder / layout.subfolder):
        if any((root / name).exists() for name in layout.train + layout.val):
            return root
    if any((folder / name).exists() for name in layout.python):
        raise UsageError(
            f"data.path: {folder} holds the Python version; the binary version ({layout.subfolder}/*.bin) is needed"
        )
    raise UsageError(f"data.path: neither {layout.train[0]} nor {layout.subfolder}/{layout.train[0]} is in {folder}")


def _records(path: Path, layout: Layout) -> np.ndarray:
    """A file's records: uint8 (n, label_bytes + 3072)."""
    size = layout.label_bytes + PIXELS
    try:
        content = np.frombuffer(read_bytes(path), np.uint8)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); unpack the data set again") from None
    if not len(content) or len(content) % size:
        raise RunError(f"{path}: {len(content)} bytes are not whole records of {size}; unpack the data set again")
    records = content.reshape(-1, size)
    labels = records[:, layout.label_bytes - 1]
    wrong = np.flatnonzero(labels >= layout.classes)
    if len(wrong):
        raise RunError(
            f"{path}: record {wrong[0]} has label {labels[wrong[0]]} of {layout.classes} classes; "
            f"it is damaged, or another data set's"
        )
    return records


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    """One a line in the order of the labels."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return tuple(map(str, range(count)))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not text")
        raise RunError(f"{path}: cannot be read ({reason}); unpack the data set again") from None
    names = tuple(line.strip() for line in lines if line.strip())  # the official files end in empty lines
    if len(names) != count:
        raise RunError(
            f"{path}: {len(names)} names for {count} classes; unpack the data set again, or remove this file"
        )
    return names
