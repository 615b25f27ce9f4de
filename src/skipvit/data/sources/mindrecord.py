"""Images in MindRecord files, by index, without the dataset engine.

`skipvit mindrecord` writes a split as shards <split>_00000.mindrecord, ... and a manifest <split>.json.
A shard of MindRecord 3.0 is

- a header: its JSON's length (uint64), the JSON (header_size, page_size, ...), zeros up to header_size;
- pages of page_size bytes, of which "blob" pages hold the images and "raw" pages the other fields (label, name) as
  MessagePack; in both a record is its length (uint64), then its bytes; numbers are little-endian;
- <shard>.db beside it: an SQLite table INDEXES with a row an image: page and position in the page of both its records.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skipvit.util.errors import DamagedRecord, RunError, UsageError

LENGTH = 8  # bytes of the length before a record
NAME_MARK = b"\xa4name"  # MessagePack: a key of four letters; the name that follows ends the record


class Geometry(NamedTuple):
    """Bytes in a shard's header and in each of its pages."""

    header: int
    page: int


class MindRecord:
    """Encoded images of one split, by index; 16 bytes an image in memory. No file is kept open.

    Args:
        shards: the .mindrecord files.
        counts: images in each.
        labels: int32 (n,).
        starts: int64 (n,), where in its shard an image's length begins.
        sizes: uint32 (n,), bytes of an image.
    """

    def __init__(self, shards: list[Path], counts: list[int], classes: tuple[str, ...], labels, starts, sizes):
        self.shards, self.ends, self.classes = shards, np.cumsum(counts), classes
        self.labels, self.starts, self.sizes = labels, starts, sizes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: the shard cannot be opened or read.
            DamagedRecord: the shard has changed since it was opened.
        """
        shard, _ = self._place(i)
        size = int(self.sizes[i])
        with open(shard, "rb", buffering=0) as file:
            record = os.pread(file.fileno(), LENGTH + size, int(self.starts[i]))
        if len(record) != LENGTH + size or int.from_bytes(record[:LENGTH], "little") != size:
            raise DamagedRecord(f"{self.name(i)}: damaged; remove this shard and run skipvit mindrecord again")
        return record[LENGTH:]

    def name(self, i: int) -> str:
        """`record 7 of FILE`, records counted from 0, and what the image's file was called if that can be read."""
        shard, row = self._place(i)
        try:
            stored = f" ({_stored_name(shard, row)})"
        except (OSError, ValueError, TypeError, sqlite3.Error):
            stored = ""
        return f"record {row} of {shard}{stored}"

    def _place(self, i: int) -> tuple[Path, int]:
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.shards[k], i - int(self.ends[k - 1] if k else 0)


def manifest_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.json"


def index_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.db")


def open_mindrecord(folder: Path, split: str) -> MindRecord:
    """Open a split that `skipvit mindrecord` wrote.

    Raises:
        UsageError: no such folder, or no manifest in it.
        RunError: the manifest is damaged; a shard is missing, cut off, or holds other images than the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, split)
    counts = [shard["images"] for shard in manifest["shards"]]
    shards, total = [folder / shard["file"] for shard in manifest["shards"]], sum(counts)
    labels, starts, sizes = np.empty(total, np.int32), np.empty(total, np.int64), np.empty(total, np.uint32)
    end = 0
    for path, shard in zip(shards, manifest["shards"]):
        part = slice(end, end := end + shard["images"])
        _check_sizes(path, shard)
        labels[part], starts[part], sizes[part] = _index(path, shard["images"], len(manifest["classes"]))
    return MindRecord(shards, counts, tuple(manifest["classes"]), labels, starts, sizes)


def read_manifest(folder: Path, split: str) -> dict:
    """The manifest of a split: classes, shards (file, images, bytes, index_bytes of each), and how it was made.

    Raises:
        UsageError: there is none.
        RunError: it cannot be read or is damaged.
    """
    path = manifest_path(folder, split)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        valid = all(set(shard) >= {"file", "images", "bytes", "index_bytes"} for shard in manifest["shards"])
        if not valid or not all(isinstance(name, str) for name in manifest["classes"]):
            raise ValueError
    except FileNotFoundError:
        raise UsageError(
            f"data.path: {path} is not there; skipvit mindrecord writes it when {split} is complete"
        ) from None
    except NotADirectoryError:
        raise UsageError(f"data.path: {folder} is not a folder; it should hold {path.name}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}: not a manifest of skipvit mindrecord; remove it and convert again") from None
    return manifest


def _check_sizes(path: Path, shard: dict) -> None:
    for file, size in ((path, shard["bytes"]), (index_path(path), shard["index_bytes"])):
        try:
            found = file.stat().st_size
        except OSError as error:
            raise RunError(f"{file}: {error.strerror}; run skipvit mindrecord again") from None
        if found != size:
            raise RunError(f"{file}: {found} bytes instead of {size}; copy it again or run skipvit mindrecord again")


def _index(path: Path, count: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, starts and sizes (`MindRecord`) of a shard's images, int64 (count,) each."""
    query = "SELECT label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
    try:
        geometry = _geometry(path)
        with closing(_connect(path)) as connection:
            rows = np.array(connection.execute(query).fetchall(), np.int64).reshape(-1, 4)
    except (OSError, ValueError, TypeError, KeyError, sqlite3.Error) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: not a MindRecord file of images ({reason}); convert again") from None
    labels, page, begin, end = rows.T
    starts, sizes = geometry.header + geometry.page * page + begin, end - begin - LENGTH
    inside = (labels >= 0) & (labels < classes) & (sizes > 0) & (starts + LENGTH + sizes <= path.stat().st_size)
    if len(rows) != count or not inside.all():
        raise RunError(
            f"{path}: its index does not fit the manifest; remove this shard and run skipvit mindrecord again"
        )
    return labels, starts, sizes


def _geometry(path: Path) -> Geometry:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        if not 0 < length < path.stat().st_size:
            raise ValueError("no header")
        header = json.loads(file.read(length))
    return Geometry(int(header["header_size"]), int(header["page_size"]))


def _connect(path: Path) -> sqlite3.Connection:
    # Immutable: SQLite then takes no lock, which shared and read-only file systems may not grant.
    return sqlite3.connect(f"{index_path(path.absolute()).as_uri()}?mode=ro&immutable=1", uri=True)


def _stored_name(path: Path, row: int) -> str:
    geometry = _geometry(path)
    with closing(_connect(path)) as connection:
        query = "SELECT PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END FROM INDEXES WHERE ROW_ID = ?"
        page, begin, end = connection.execute(query, (row,)).fetchone()
    with open(path, "rb", buffering=0) as file:
        record = os.pread(file.fileno(), end - begin, geometry.header + geometry.page * page + begin)
    # A text's head is one byte up to 31 bytes of text, then 0xd9, 0xda or 0xdb and a length of 1, 2 or 4 bytes.
    text = re.match(
        rb"(?:[\xa0-\xbf]|\xd9.|\xda..|\xdb....)(.*)", record[record.index(NAME_MARK) + len(NAME_MARK) :], re.DOTALL
    )
    return text[1].decode()
