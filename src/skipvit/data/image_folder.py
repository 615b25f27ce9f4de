"""Image folders in ImageNet's layout: <split>/<class>/<picture>."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from skipvit.errors import RunError, UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")  # what MindSpore decodes


class ImageFolder:
    """Encoded pictures of one split, by index.

    Attributes:
        classes: folder names, sorted; a label is a position in this tuple.
        labels: int32 (n,).
    """

    encoded = True

    def __init__(self, root: Path, classes: tuple[str, ...], files: list[tuple[str, ...]]):
        self.root, self.classes, self.files = root, classes, files
        counts = np.array([len(names) for names in files])
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Path:
        label = int(self.labels[i])
        return self.root / self.classes[label] / self.files[label][i - int(self.first[label])]

    def read(self, i: int) -> np.ndarray:
        """The file's bytes: uint8 (size,)."""
        return np.fromfile(self.path(i), np.uint8)


def open_split(folder: Path, split: str) -> ImageFolder:
    """List the pictures of a split, in order of class and name.

    Raises:
        UsageError: the folder is not there.
        RunError: a class without pictures.
    """
    root = folder / split
    if not root.is_dir():
        raise UsageError(f"data.path: {root} is not a folder; an image folder holds {split}/<class>/<pictures>")
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    if not classes:
        raise RunError(f"{root}: no class folders in it; an image folder holds {split}/<class>/<pictures>")
    files = []
    for name in classes:
        names = sorted(entry.name for entry in os.scandir(root / name) if entry.name.lower().endswith(EXTENSIONS))
        if not names:
            raise RunError(f"{root / name}: no pictures in this class ({', '.join(EXTENSIONS)}); add some or remove the folder")
        files.append(tuple(names))
    return ImageFolder(root, classes, files)


def refuse_other_classes(train, val) -> None:
    """Raises RunError if the training and the validation split do not have the same classes."""
    if train.classes != val.classes:
        name = sorted(set(train.classes) ^ set(val.classes))[0]
        where, other = ("train", "val") if name in train.classes else ("val", "train")
        raise RunError(f"class {name!r} is in {where}/ but not in {other}/; both need the same classes")
