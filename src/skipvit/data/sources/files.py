"""Image files: reading one, and those named on a command line as a source."""

from __future__ import annotations

import os

import numpy as np

from skipvit.data.decode import EXTENSIONS, BrokenImage
from skipvit.util.files import open_regular

LARGEST = 2**31  # bytes; an image of 500 megapixels, which is refused, has fewer


def read_image(path: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        BrokenImage: larger than any image.
        OSError: it cannot be read; EINVAL if it is a pipe, a device or a folder, which are not tried.
    """
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


def find_images(inputs: list[str]) -> tuple[list[str], dict[str, str]]:
    """Files as named, and the images in folders and folders below them, in order of their names.

    Returns:
        paths, and for each folder that has none or cannot be read, why.
    """
    paths, bad = [], {}
    for given in inputs:
        if not os.path.isdir(given):
            paths.append(given)
            continue
        errors: list[OSError] = []
        found = []
        for folder, folders, names in os.walk(given, onerror=errors.append):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            images = [name for name in sorted(names) if name[0] != "." and name.lower().endswith(EXTENSIONS)]
            found += [os.path.join(folder, name) for name in images]
        bad |= {str(error.filename): error.strerror or str(error) for error in errors}
        if not found and not errors:
            bad[given] = "no images in this folder"
        paths += found
    return paths, bad
