"""Image folders in ImageNet's layout: <split>/<class>/<image>, or deeper below the class.

Listing more than a million files takes seconds on a local disk and minutes on a shared one, so the listing can be kept
in an index file, from which only those folders are read again that have changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from skipvit.data.decode import EXTENSIONS
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.data.sources.files import is_silent, kind_of, left_out, read_image
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import read_bytes, write_whole
from skipvit.util.log import log

INDEX_FORMAT = 2
RACY_NS = 2_000_000_000  # the coarsest time stamp of a file system: a later change may leave the same stamp
UNTRUSTED = [0, 0]  # no folder's stamp
THREADS = 8  # a shared file system answers each of many at its own slow pace
SIZED = 4096  # images whose sizes tell a data set from another of the same names


class ImageFolder:
    """Encoded images of one split, by index; some 30 bytes an image in memory at ImageNet's names.

    Args:
        root: the split's folder.
        classes: folder names, sorted; a label is a position in this tuple.
        counts: images of each class.
        names: paths below the class folder in order of class and path, UTF-8, a NUL after each.

    Attributes:
        labels: int32 (n,).
        offsets: int64 (n + 1,), where each name begins.
    """

    def __init__(self, root: Path, classes: tuple[str, ...], counts: list[int], names: bytes):
        self.root, self.classes, self.names = root, classes, names
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.offsets = np.zeros(len(self.labels) + 1, np.int64)
        self.offsets[1:] = np.flatnonzero(np.frombuffer(names, np.uint8) == 0) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def relative(self, i: int) -> str:
        """<class>/<image>."""
        name = self.names[self.offsets[i] : self.offsets[i + 1] - 1]
        return f"{self.classes[self.labels[i]]}/{os.fsdecode(name)}"

    def name(self, i: int) -> str:
        """The file's path."""
        return os.path.join(self.root, self.relative(i))

    def read(self, i: int) -> bytes:
        """The file's bytes. Raises BrokenImage or OSError, as `read_image`."""
        return read_image(self.name(i))

    def identity(self) -> list[bytes]:
        """All names, and the sizes of some files, evenly spaced: a million would take minutes on a shared disk."""

        def size(i: int) -> int:
            try:
                return os.stat(self.name(i)).st_size
            except OSError:
                return -1  # it is not there

        with ThreadPoolExecutor(THREADS) as pool:
            return [self.names, np.fromiter(pool.map(size, evenly_spaced(self, SIZED)), np.int64).tobytes()]


class Folder(NamedTuple):
    """What lies in a folder: its stamp then, images and folders (names, a / after each), other files by ending."""

    stamp: list[int]
    images: str
    folders: str
    others: dict[str, int]


def open_split(folder: Path, split: str, index: Path | None = None) -> ImageFolder:
    """List the images of a split in order of class and path; other files are counted in a warning, hidden ones not.

    Args:
        folder: what holds the splits' folders.
        split: train or val.
        index: folder in which the listing is kept for the next time; need not exist, and need not be writable.

    Raises:
        UsageError: the folder is not there.
        RunError: no class folders, or a class without images.
    """
    root = Path(folder) / split
    if not root.is_dir():
        raise UsageError(f"data.path: {root} is not a folder; an image folder holds {split}/<class>/<images>")
    top = _scan(str(root))
    classes = tuple(sorted(_names(top.folders)))
    if not classes:
        raise RunError(f"{root}: no class folders in it; an image folder holds {split}/<class>/<images>")
    folders = _walk(root, classes, index and Path(index) / _index_name(root))
    counts, parts, others = [], [], Counter()
    if top.images or top.others:
        others["outside the class folders"] = top.images.count("/") + sum(top.others.values())
    for name in classes:
        images = _images_below(folders, name, others)
        if not images:
            raise RunError(
                f"{root / name}: no images in this class ({', '.join(EXTENSIONS)}); add some or remove the folder"
            )
        parts.append(os.fsencode(images))
        counts.append(images.count("\0"))
    if others:
        log.warning(left_out(str(root), others))
    return ImageFolder(root, classes, counts, b"".join(parts))


def _images_below(folders: dict[str, Folder], name: str, others: Counter) -> str:
    """Paths below a class folder, sorted, a NUL after each; adds what is no image to `others`."""
    if not folders[name].folders:  # as usual: sorted already
        others.update(folders[name].others)
        return folders[name].images.replace("/", "\0")
    found, todo = [], [name]
    for path in todo:  # which grows
        if path in folders:  # else it was reached by a link into itself
            others.update(folders[path].others)
            below = f"{path}/"[len(name) + 1 :]
            found += [below + image for image in _names(folders[path].images)]
            todo += [f"{path}/{inner}" for inner in _names(folders[path].folders)]
    return "".join(f"{path}\0" for path in sorted(found))


def _walk(root: Path, classes: tuple[str, ...], index: Path | None) -> dict[str, Folder]:
    """The class folders and all below them, by their paths below `root`: those of the index that still hold, the others
    read anew; keeps the index up to date."""
    known = _load(index) if index else {}
    current: dict[str, Folder] = {}
    level = [(name, frozenset()) for name in classes]
    bar = tqdm(desc=f"listing {root}", leave=False, unit=" folders", disable=None)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        while level:
            found = pool.map(lambda entry: _look(root, entry[0], entry[1], known.get(entry[0])), level)
            below = []
            for (path, _), (folder, above) in zip(level, found):
                bar.update()
                if folder is not None:
                    current[path] = folder
                    below += [(f"{path}/{name}", above) for name in _names(folder.folders)]
            level = below
    if index and current != known:
        _save(index, current)
    return current


def _look(root: Path, path: str, above: frozenset, known: Folder | None) -> tuple[Folder | None, frozenset]:
    """A folder, as it is known if it has not changed since; None if it is one of those above it, by a link."""
    place = os.path.join(root, path)
    status = os.stat(place)
    identity = status.st_dev, status.st_ino
    if identity in above:
        return None, above
    return known if known and known.stamp == _stamp(place) else _scan(place), above | {identity}


def _scan(folder: str) -> Folder:
    now, stamp = time.time_ns(), _stamp(folder)  # before the listing: what changes meanwhile changes the stamp
    images, folders, others = [], [], Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_silent(entry.name):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS):
                images.append(entry.name)
            else:
                others[kind_of(entry.name)] += 1
    trusted = max(stamp) < now - RACY_NS
    images, folders = ("".join(f"{name}/" for name in sorted(names)) for names in (images, folders))
    return Folder(stamp if trusted else UNTRUSTED, images, folders, dict(others))


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # a link into itself: a broken image, if its name is an image's
        return entry.is_dir()
    return False


def _names(joined: str) -> list[str]:
    return joined.split("/")[:-1]


def _stamp(folder: str) -> list[int]:
    """When a folder was last changed, ns: its mtime, which unpacking and copying tools set at will, and its ctime."""
    status = os.stat(folder)
    return [status.st_mtime_ns, status.st_ctime_ns]


def _index_name(root: Path) -> str:
    path = os.path.abspath(root)
    return f"{os.path.basename(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.index"


def _load(index: Path) -> dict[str, Folder]:
    """What `_save` wrote; nothing if it cannot be read, is damaged (zlib has a checksum), or is of another format."""
    try:
        kind, rows = json.loads(zlib.decompress(read_bytes(index)))
        folders = {path: Folder(*row) for path, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        return {}
    return folders if kind == _kind() and all(map(_is_whole, folders.values())) else {}


def _is_whole(folder: Folder) -> bool:
    """Whether everything is of its type, and names are such as a file system has."""
    if not all(map(isinstance, folder, (list, str, str, dict))):
        return False
    names = folder.images + folder.folders
    return (
        all(isinstance(number, int) for number in folder.others.values())
        and all(text[-1:] in ("", "/") for text in folder[1:3])
        and "\0" not in names
        and not re.search("[\ud800-\udc7f\udd00-\udfff]", names)  # what no bytes of a name become
    )


def _save(index: Path, folders: dict[str, Folder]) -> None:
    with suppress(OSError):  # it only costs time
        index.parent.mkdir(parents=True, exist_ok=True)
        write_whole(index, zlib.compress(json.dumps([_kind(), folders]).encode(), 1))


def _kind() -> list:
    """What must be the same for an index to be of use."""
    return [INDEX_FORMAT, *EXTENSIONS]
