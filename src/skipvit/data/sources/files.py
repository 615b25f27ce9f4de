"""Image files: reading one, and those named on a command line as a source."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np

from skipvit.data.decode import EXTENSIONS, BrokenImage
from skipvit.util.files import open_regular
from skipvit.util.log import log
from skipvit.util.text import counted, printable

SILENT = ("thumbs.db", "desktop.ini")  # what systems leave in folders; like hidden files not worth a word
MOST_SHOWN = 6  # endings of files that were left out
LARGEST = 2**31  # bytes; an image of 500 megapixels, which is refused, has fewer


def read_image(path: str) -> bytes:
    """The bytes of a regular file. Raises BrokenImage: larger than any image; OSError: it cannot be read; EINVAL if it
    is a pipe, a device or a folder, which are not tried."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise BrokenImage(f"larger than {LARGEST >> 30} GiB")
        return file.read()


class Files:
    """Images of any folders as a source of batches; none has a label."""

    classes = ()

    def __init__(self, paths: list[str]):
        self.paths, self.labels = paths, np.zeros(len(paths), np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """The file's bytes. Raises BrokenImage if it cannot be read, whatever the reason."""
        try:
            return read_image(self.paths[i])
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BrokenImage(getattr(error, "strerror", None) or str(error)) from None

    def name(self, i: int) -> str:
        return self.paths[i]


def is_silent(name: str) -> bool:
    """Whether a file is left out without a word."""
    return name[0] == "." or name.lower() in SILENT


def kind_of(name: str) -> str:
    """What a file that is no image is counted as."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def left_out(folder: str, others: Counter[str]) -> str:
    """E.g. `/data/train: 12 files left out: 9 .heic, 3 without an ending; images end in .jpg, ...`."""
    shown = [f"{number:,} {printable(kind)}" for kind, number in others.most_common(MOST_SHOWN)]
    if len(others) > MOST_SHOWN:
        shown.append("...")
    text = f"{printable(folder)}: {counted(others.total(), 'file')} left out: {', '.join(shown)}"
    return f"{text}; images end in {', '.join(EXTENSIONS)}"


def find_images(inputs: list[str]) -> tuple[list[str], dict[str, str]]:
    """Files as named, and the images in folders and folders below them, in order of their names.

    Links are followed. Files that are no images are counted in a warning, hidden ones not.

    Returns:
        paths, and for each folder that has none or cannot be read, why.
    """
    paths, bad = [], {}
    for given in inputs:
        if not os.path.isdir(given):
            paths.append(given)
            continue
        errors: list[OSError] = []
        found, others, seen = [], Counter[str](), set[str]()
        for folder, folders, names in os.walk(given, onerror=errors.append, followlinks=True):
            again = os.path.realpath(folder) in seen
            seen.add(os.path.realpath(folder))
            folders[:] = [] if again else sorted(name for name in folders if name[0] != ".")
            shown = [name for name in sorted(names) if not again and not is_silent(name)]
            found += [os.path.join(folder, name) for name in shown if name.lower().endswith(EXTENSIONS)]
            others.update(kind_of(name) for name in shown if not name.lower().endswith(EXTENSIONS))
        if others:
            log.warning(left_out(given, others))
        bad |= {str(error.filename): error.strerror or str(error) for error in errors}
        if not found and not errors:
            bad[given] = "no images in this folder"
        paths += found
    return paths, bad
