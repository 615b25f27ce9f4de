"""Images in MindRecord files, by index.

`skipvit mindrecord` writes a split as shards <split>_00000.mindrecord, ... and a manifest <split>.json. MindSpore's own
readers are made for going through files: a `MindDataset` of chosen records first loads the index of all (30 ms for
160,000 images, and more the more there are), a record by `MindPage` takes 140 ms. So what a record needs is read here.
A shard of MindRecord 3.0 is

- a header: its JSON's length (uint64, little-endian), the JSON (header_size, page_size, ...), zeros up to header_size;
- pages of page_size bytes; in those of images a record is its length (uint64), then its bytes;
- <shard>.db beside it: an SQLite table INDEXES with a row an image: label, name, and its page and place in the page.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from skipvit.util.errors import DamagedRecord, RunError, UsageError
from skipvit.util.files import open_regular, read_bytes

LENGTH = 8  # bytes of the length before a record


class ShardFile(BaseModel):
    """A file with so many images; its own size and its index's, bytes."""

    file: str = Field(pattern=r"^[^/]+\.mindrecord$")
    images: int = Field(gt=0)
    bytes: int
    index_bytes: int


class Plan(BaseModel):
    """What decides every record of a split, images' contents aside."""

    shard_size: int
    classes: list[str]
    images: int
    names_sha256: str


class Manifest(Plan):
    shards: list[ShardFile] = Field(min_length=1)


class MindRecord:
    """Encoded images of one split, by index; 16 bytes an image in memory. No file is kept open."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.shards = [folder / shard.file for shard in manifest.shards]
        self.ends, self.classes = np.cumsum([shard.images for shard in manifest.shards]), tuple(manifest.classes)
        rows = [_rows(path, shard, len(self.classes)) for path, shard in zip(self.shards, manifest.shards)]
        labels, starts, sizes = np.concatenate(rows).T
        self.labels, self.starts, self.sizes = labels.astype(np.int32), starts.copy(), sizes.astype(np.uint32)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> bytes:
        """The encoded image. Raises OSError: the shard cannot be opened or read; DamagedRecord: the shard has changed
        since it was opened."""
        shard, _ = self._place(i)
        size = int(self.sizes[i])
        with open_regular(shard) as file:
            record = os.pread(file.fileno(), LENGTH + size, int(self.starts[i]))
        if len(record) != LENGTH + size or int.from_bytes(record[:LENGTH], "little") != size:
            raise DamagedRecord(f"{self.name(i)}: damaged; remove this shard and run skipvit mindrecord again")
        return record[LENGTH:]

    def name(self, i: int) -> str:
        """`record 7 of FILE`, records counted from 0, and what the image's file was called if that can be read."""
        shard, row = self._place(i)
        try:
            with closing(_connect(shard)) as connection:
                ((name,),) = connection.execute("SELECT name_0 FROM INDEXES WHERE ROW_ID = ?", (row,))
            return f"record {row} of {shard} ({name})"
        except (ValueError, sqlite3.Error):
            return f"record {row} of {shard}"

    def identity(self) -> list[memoryview]:
        return [self.sizes.data]

    def _place(self, i: int) -> tuple[Path, int]:
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.shards[k], i - int(self.ends[k - 1] if k else 0)


def manifest_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.json"


def index_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.db")


def open_mindrecord(folder: Path, split: str) -> MindRecord:
    """Open a split that `skipvit mindrecord` wrote. Raises UsageError: no such folder, or no manifest in it; RunError:
    the manifest is damaged; a shard is missing, cut off, or holds other images than the manifest says."""
    return MindRecord(folder, read_manifest(folder, split))


def read_manifest(folder: Path, split: str) -> Manifest:
    """The manifest of a split. Raises UsageError: there is none; RunError: it cannot be read or is damaged."""
    path = manifest_path(folder, split)
    try:
        return Manifest.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        raise UsageError(
            f"data.path: {path} is not there; skipvit mindrecord writes it when {split} is complete"
        ) from None
    except NotADirectoryError:
        raise UsageError(f"data.path: {folder} is not a folder; it should hold {path.name}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RunError(f"{path}: not a manifest of skipvit mindrecord; remove it and convert again") from None


def _rows(path: Path, shard: ShardFile, classes: int) -> np.ndarray:
    """Of a shard's images the label, where in the file its length begins, and its bytes: int64 (n, 3)."""
    for file, size in ((path, shard.bytes), (index_path(path), shard.index_bytes)):
        try:
            found = file.stat().st_size
        except OSError as error:
            raise RunError(f"{file}: {error.strerror}; run skipvit mindrecord again") from None
        if found != size:
            raise RunError(f"{file}: {found} bytes instead of {size}; copy it again or run skipvit mindrecord again")
    query = "SELECT label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
    try:
        with open_regular(path) as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(LENGTH), "little"), shard.bytes)))
        with closing(_connect(path)) as connection:
            rows = np.array(connection.execute(query).fetchall(), np.int64).reshape(-1, 4)
        labels, page, begin, end = rows.T
        starts, sizes = int(header["header_size"]) + int(header["page_size"]) * page + begin, end - begin - LENGTH
    except (OSError, ValueError, TypeError, KeyError, OverflowError, sqlite3.Error) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: not a MindRecord file of images ({reason}); remove it and convert again") from None
    inside = (labels >= 0) & (labels < classes) & (sizes > 0) & (starts + LENGTH + sizes <= shard.bytes)
    if len(rows) != shard.images or not inside.all():
        raise RunError(f"{path}: its index does not fit the manifest; remove this shard and convert again")
    return np.stack([labels, starts, sizes], 1)


def _connect(path: Path) -> sqlite3.Connection:
    # Immutable: SQLite then takes no lock, which shared and read-only file systems may not grant.
    return sqlite3.connect(f"{index_path(path.absolute()).as_uri()}?mode=ro&immutable=1", uri=True)
