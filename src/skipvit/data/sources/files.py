"""Images named on a command line: files, and folders with all that is below them."""

from __future__ import annotations

import os
import stat

import numpy as np

from skipvit.data.decode import BrokenImage
from skipvit.data.sources.image_folder import EXTENSIONS


class Files:
    """Images of any folders as a source of batches; none has a label."""

    classes = ()

    def __init__(self, paths: list[str]):
        self.paths, self.labels = paths, np.zeros(len(paths), np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """The file's bytes. Raises BrokenImage if it cannot be: a pipe or a device, which may never end, is not."""
        try:
            if not stat.S_ISREG(os.stat(self.paths[i]).st_mode):
                raise BrokenImage("not a file")
            with open(self.paths[i], "rb") as file:
                return file.read()
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
            found += [
                os.path.join(folder, name)
                for name in sorted(names)
                if name[0] != "." and name.lower().endswith(EXTENSIONS)
            ]
        bad |= {str(error.filename): error.strerror or str(error) for error in errors}
        if not found and not errors:
            bad[given] = "no images in this folder"
        paths += found
    return paths, bad
