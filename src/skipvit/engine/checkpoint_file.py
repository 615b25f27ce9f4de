"""The file of a MindSpore checkpoint: checked as a whole before anything is made of it.

MindSpore's own reader takes a file without its checksum as it is, and ends the process over some that are crafted or
damaged.

The format: messages of MindSpore's `checkpoint.proto` one after another, an array each,

    Checkpoint { repeated Value value = 1 }    Value { string tag = 1; TensorProto tensor = 2 }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

then `crc_num` and the CRC-32 of all that, 10 bytes, big-endian. Arrays above 512 MiB are cut into several messages of
one tag.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from skipvit.util.cores import memory_limit
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import open_regular, replacing
from skipvit.util.text import one_line, printable

MARK, DIGITS = b"crc_num", 10
MOST_DIMENSIONS = 8  # as MindSpore's tensors
LONGEST_NAME = 200
TYPES = {
    "Float32": "<f4",
    "Float16": "<f2",
    "BFloat16": "<u2",  # the upper half of a float32; NumPy has no such type
    "Float64": "<f8",
    "Int8": "<i1",
    "Int16": "<i2",
    "Int32": "<i4",
    "Int64": "<i8",
    "UInt8": "<u1",
    "UInt16": "<u2",
    "UInt32": "<u4",
    "UInt64": "<u8",
    "Bool": "?",
}


class Damaged(RunError):
    """A checkpoint that is not whole, or cannot be read."""


class Record(NamedTuple):
    """An array of a file, whose size has been checked.

    Attributes:
        kind: of its numbers, see `TYPES`.
    """

    kind: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def array(self) -> np.ndarray:
        """A copy; bfloat16 as float32."""
        flat = np.frombuffer(self.data, TYPES[self.kind])
        if self.kind == "BFloat16":
            flat = (flat.astype("<u4") << 16).view("<f4")
        return flat.reshape(self.shape).copy()


def read_entries(path: Path) -> dict[str, Record]:
    """The arrays of a checkpoint by name. Raises UsageError: no such file; Damaged: it cannot be read, is not a regular
    file, has no checksum or a wrong one, or is not what it should be."""
    if not os.path.lexists(path):
        raise UsageError(f"{path}: no such checkpoint; name a file, or last or best of a run")
    try:
        return _records(memoryview(_checked(path)))
    except OSError as error:
        raise Damaged(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise Damaged(f"{path}: the checkpoint cannot be read (larger than the memory)") from None
    except ValueError as error:
        raise Damaged(f"{path}: not a whole checkpoint ({one_line(error)}); use an older one") from None


def _checked(path: Path) -> bytes:
    """The content without the checksum, which is right."""
    with open_regular(path) as file:
        end = len(MARK) + DIGITS
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - end))
        tail = file.read(end)
        if len(tail) < end or not tail.startswith(MARK):
            raise ValueError("it has no checksum: it is cut off, something else, or was saved without crc_check")
        if size > memory_limit():
            raise MemoryError
        file.seek(0)
        content = file.read(size - end)
    if zlib.crc32(content) != int.from_bytes(tail[len(MARK) :], "big"):
        raise ValueError("its checksum is wrong")
    return content


def _records(content: memoryview) -> dict[str, Record]:
    """Raises ValueError for what is not a checkpoint."""
    result: dict[str, Record] = {}
    parts: list[tuple[str, Record]] = []  # of an array of which more are to come
    missing = 0  # bytes of it
    for number, value in _fields(content):
        if number != 1 or isinstance(value, int):
            raise ValueError("it holds something else")
        name, part = _record(value)
        if not parts:
            missing = math.prod(part.shape) * np.dtype(TYPES[part.kind]).itemsize
            if name in result:
                raise ValueError(f"{name} is there twice")
        elif (name, part[:2]) != (parts[0][0], parts[0][1][:2]):
            break
        parts.append((name, part))
        missing -= len(part.data)
        if missing < 0:
            raise ValueError(f"{name} is longer than its shape {part.shape}")
        if not missing:
            whole = part.data if len(parts) == 1 else b"".join(part.data for _, part in parts)
            result[name], parts = part._replace(data=whole), []
    if parts:
        raise ValueError(f"{parts[0][0]} is shorter than its shape {parts[0][1].shape}")
    return result


def _record(message: memoryview) -> tuple[str, Record]:
    """Name and content of one message `Value`; of the content only that its shape and type are possible is known."""
    fields = dict(_fields(message))
    tag, tensor = fields.get(1), fields.get(2)
    if not isinstance(tag, memoryview) or not isinstance(tensor, memoryview):
        raise ValueError("an entry without name or array")
    if len(tag) > LONGEST_NAME:
        raise ValueError(f"the name of an entry has {len(tag)} bytes")
    name, dims, kind, data = printable(bytes(tag).decode("utf-8")), [], "", memoryview(b"")
    for number, value in _fields(tensor):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(value)
            if len(dims) > MOST_DIMENSIONS:
                raise ValueError(f"{name} has more than {MOST_DIMENSIONS} dimensions")
        elif number == 2 and not isinstance(value, int):
            kind = printable(bytes(value[:40]).decode("utf-8", "replace"))
        elif number == 3 and not isinstance(value, int):
            data = value
    if kind not in TYPES:
        raise ValueError(f"{name} is of type {kind or 'none'}")
    shape = () if dims == [0] else tuple(dims)  # as MindSpore writes numbers that are no arrays
    if not all(0 < side < 2**31 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return name, Record(kind, shape, data)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a protobuf message's fields: integers, and bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2 and value <= len(message) - at:
            yield key >> 3, message[at : at + value]
            at += value
        else:
            raise ValueError("it is cut off, or something else")


def _varints(packed: memoryview) -> list[int]:
    result, at = [], 0
    while at < len(packed) and len(result) <= MOST_DIMENSIONS:
        value, at = _varint(packed, at)
        result.append(value)
    return result


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte from a place on, and the place behind it."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("it is cut off, or something else")


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint with its checksum, replacing the file as a whole. Raises RunError: it could not be written;
    what was there before is untouched."""
    disabled = logging.root.manager.disable
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            logging.disable(logging.CRITICAL)  # MindSpore says in a paragraph what the line below says
            entries = [{"name": name, "data": Tensor(value)} for name, value in arrays.items()]
            try:
                ms.save_checkpoint(entries, str(partial), crc_check=True)
            finally:
                with suppress(OSError):
                    partial.with_suffix(".tmp").unlink()  # what MindSpore leaves where it fails
            os.chmod(partial, 0o644)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise RunError(f"{path}: not written ({reason}); check the folder and free space") from None
    finally:
        logging.disable(disabled)
