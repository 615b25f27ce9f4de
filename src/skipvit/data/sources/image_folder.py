"""Image folders in ImageNet's layout: <split>/<class>/<image>.

Listing more than a million files takes seconds on a local disk and minutes on a shared one, so the listing can be kept
in an index file, from which only those class folders are read again that have changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from skipvit.util.errors import RunError, UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")  # what Pillow decodes
INDEX_FORMAT = 1
RACY_NS = 2_000_000_000  # the coarsest time stamp of a file system: a later change may leave the same stamp
UNTRUSTED = (0, 0)  # no folder's stamp
THREADS = 8  # a shared file system answers each of many at its own slow pace


class ImageFolder:
    """Encoded images of one split, by index; some 30 bytes an image in memory at ImageNet's names.

    Args:
        root: the split's folder.
        classes: folder names, sorted; a label is a position in this tuple.
        counts: images of each class.
        names: file names in order of class and name, UTF-8, a NUL after each.

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
        """The file's bytes. Raises OSError."""
        with open(self.name(i), "rb") as file:
            return file.read()


class Listing(NamedTuple):
    """The images of a class folder: its stamp at the time, their number, their names with a NUL after each."""

    stamp: tuple[int, int]
    count: int
    names: bytes


def open_split(folder: Path, split: str, index: Path | None = None) -> ImageFolder:
    """List the images of a split, in order of class and name; entries with a leading dot are none.

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
    with os.scandir(root) as entries:
        classes = tuple(sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()))
    if not classes:
        raise RunError(f"{root}: no class folders in it; an image folder holds {split}/<class>/<images>")
    listings = _listings(root, classes, index and Path(index) / _index_name(root))
    for name, listing in zip(classes, listings):
        if not listing.count:
            raise RunError(
                f"{root / name}: no images in this class ({', '.join(EXTENSIONS)}); add some or remove the folder"
            )
    return ImageFolder(
        root, classes, [listing.count for listing in listings], b"".join(listing.names for listing in listings)
    )


def _listings(root: Path, classes: tuple[str, ...], index: Path | None) -> list[Listing]:
    """The class folders' listings: those of the index that still hold, the others read anew; updates the index."""
    known = _load(index) if index else {}
    paths = {name: os.path.join(root, name) for name in classes}
    with ThreadPoolExecutor(THREADS) as pool:
        old = [name for name in classes if name in known]
        now = pool.map(_stamp, [paths[name] for name in old])
        current = {name: known[name] for name, stamp in zip(old, now) if known[name].stamp == stamp}
        stale = [name for name in classes if name not in current]
        fresh = pool.map(_scan, [paths[name] for name in stale])
        bar = tqdm(fresh, f"listing {root}", len(stale), leave=False, unit=" folders", disable=None)
        current |= dict(zip(stale, bar))
    result = {name: current[name] for name in classes}
    if index and (stale or len(known) != len(classes)):
        _save(index, result)
    return list(result.values())


def _scan(folder: str) -> Listing:
    now, stamp = time.time_ns(), _stamp(folder)  # before the listing: what changes meanwhile changes the stamp
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name for entry in entries if entry.name[0] != "." and entry.name.lower().endswith(EXTENSIONS)
        )
    text = "".join(f"{name}\0" for name in names)
    return Listing(stamp if max(stamp) < now - RACY_NS else UNTRUSTED, len(names), os.fsencode(text))


def _stamp(folder: str) -> tuple[int, int]:
    """When a folder was last changed, ns: its mtime, which unpacking and copying tools set at will, and its ctime."""
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _index_name(root: Path) -> str:
    path = os.path.abspath(root)
    return f"{os.path.basename(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.index"


def _load(index: Path) -> dict[str, Listing]:
    """What `_save` wrote; nothing if it cannot be read, is damaged, or is of another format."""
    try:
        content = index.read_bytes()
    except OSError:
        return {}
    if zlib.crc32(memoryview(content)[4:]) != int.from_bytes(content[:4], "little"):
        return {}
    position = content.find(b"\n", 4) + 1
    header = json.loads(content[4:position] or "{}")
    if header.get("kind") != _kind():
        return {}
    listings = {}
    for name, mtime, ctime, count, size in header["classes"]:
        listings[name] = Listing((mtime, ctime), count, content[position : position + size])
        position += size
    return listings


def _save(index: Path, listings: dict[str, Listing]) -> None:
    """Write an index: CRC-32 of the rest (4 bytes), a line of JSON, the names. Failing only costs time."""
    rows = [[name, *listing.stamp, listing.count, len(listing.names)] for name, listing in listings.items()]
    header = json.dumps({"kind": _kind(), "classes": rows}).encode() + b"\n"
    content = b"".join([header, *(listing.names for listing in listings.values())])
    temporary = None
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=index.parent, prefix=".index-", delete=False) as file:
            temporary = Path(file.name)
            file.write(zlib.crc32(content).to_bytes(4, "little"))
            file.write(content)
        temporary.chmod(0o644)  # else only its owner could read it
        os.replace(temporary, index)
    except OSError:
        if temporary:
            temporary.unlink(missing_ok=True)


def _kind() -> list:
    """What must be the same for an index to be of use."""
    return [INDEX_FORMAT, *EXTENSIONS]
