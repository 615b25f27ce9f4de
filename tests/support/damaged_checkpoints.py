"""Damages of checkpoints and of timm's weights: what disks, copies and crashes do, and what no run writes.

The format, see `skipvit.engine.checkpoint_file`, is written by hand.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from skipvit.engine.checkpoint_file import TYPES, read_entries

CKPT, TIMM = ".ckpt", ".safetensors"
Make = Callable[[Path], object]
Entry = tuple[bytes, tuple[int, ...], bytes, bytes]  # name, dimensions, type, content


def varint(number: int) -> bytes:
    number, parts = number & 2**64 - 1, []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def message(entry: Entry) -> bytes:
    name, dims, kind, content = entry
    tensor = b"".join(field(1, side) for side in dims) + field(2, kind) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


def with_checksum(content: bytes) -> bytes:
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big")


def entries_of(path: Path) -> list[Entry]:
    found = read_entries(path)
    return [(name.encode(), r.shape or (0,), r.kind.encode(), bytes(r.data)) for name, r in found.items()]


def flipped(content: bytes, chance: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        result[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(result)


def of_bytes(whole: bytes, borders: list[int], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """What disks, copies and crashes do; without end."""
    size = len(whole)
    while True:
        yield "flipped bits", flipped(whole, chance)
        yield "cut at a border", whole[: chance.choice(borders)]
        yield "cut", whole[: chance.randrange(size)]
        begin, end = sorted(chance.sample(range(size), 2))
        yield "a hole", whole[:begin] + b"\0" * (end - begin) + whole[end:]
        yield "a part missing", whole[:begin] + whole[end:]
        yield "a record missing", whole[: borders[3]] + whole[chance.choice(borders[4:]) :]
        yield "longer", whole + chance.randbytes(chance.randint(1, 99))
        yield "random bytes", chance.randbytes(chance.randint(0, 999))
        yield "random bytes with a checksum", with_checksum(chance.randbytes(chance.randint(0, 999)))


ONCE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "nothing but a checksum": lambda whole: with_checksum(b""),
    "without its checksum": lambda whole: whole[:-17],
    "twice": lambda whole: whole * 2,
    "twice within a checksum": lambda whole: with_checksum(whole[:-17] * 2),
    "a text": lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
    "an archive": lambda whole: b"PK\3\4" + whole,
}


def of_entries(entries: list[Entry], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """With a right checksum, what no run writes; without end."""
    while True:
        for what, change in CHANGES.items():
            place = chance.randrange(len(entries))
            changed = change(entries[place], chance)
            changed = [*entries[:place], *changed, *entries[place + 1 :]]
            yield f"{what}: {entries[place][0].decode()}", with_checksum(b"".join(map(message, changed)))
        for key, value in POSITIONS:
            name = f"trainer.position.{key}".encode()
            others = [entry for entry in entries if entry[0] != name]
            yield f"{key} {value}", with_checksum(b"".join(map(message, [*others, *numbers(name, value)])))


def resized(entry: Entry, dims: tuple[int, ...], kind: str | None = None) -> list[Entry]:
    """Of these dimensions and this type, with as much content as they have."""
    size = int(np.prod(dims)) * np.dtype(TYPES[kind or entry[2].decode()]).itemsize
    content = (entry[3] * (size // len(entry[3]) + 1))[:size]
    return [(entry[0], dims, kind.encode() if kind else entry[2], content)]


def numbers(name: bytes, value: float | list | None) -> list[Entry]:
    if value is None:
        return []
    array = np.array(value, np.float64 if isinstance(value, float) else np.int64)
    return [(name, array.shape or (0,), b"Float64" if isinstance(value, float) else b"Int64", array.tobytes())]


CHANGES: dict[str, Callable[[Entry, random.Random], list[Entry]]] = {
    "missing": lambda e, chance: [],
    "there twice": lambda e, chance: [e, e],
    "a thousand times": lambda e, chance: [e] * 1000,
    "another name": lambda e, chance: [(e[0] + chance.choice([b"x", b".weight", b"\xff", b"\x1b[31m"]), *e[1:])],
    "no name": lambda e, chance: [(b"", *e[1:])],
    "a name of 100,000 letters": lambda e, chance: [(b"x" * 100_000, *e[1:])],
    "another type": lambda e, chance: resized(e, e[1], chance.choice([k for k in TYPES if k != e[2].decode()])),
    "another type, same content": lambda e, chance: [(*e[:2], chance.choice([b"Int64", b"Float16", b"Bool"]), e[3])],
    "no type": lambda e, chance: [(*e[:2], chance.choice([b"", b"str", b"\xff" * 99, b"Float\n32"]), e[3])],
    "another shape": lambda e, chance: resized(e, (*e[1][:-1], max(1, e[1][-1]) + chance.randint(1, 9))),
    "one dimension more": lambda e, chance: resized(e, (1, *(e[1] if all(e[1]) else ()), 1)),
    "negative": lambda e, chance: [(e[0], (-chance.randint(1, 2**40), *e[1][1:]), *e[2:])],
    "nothing": lambda e, chance: [(e[0], (0, 3), e[2], b"")],
    "2,000 dimensions": lambda e, chance: [(e[0], (1,) * 2000, *e[2:])],
    "terabytes": lambda e, chance: [(e[0], (2**20, 2**20, chance.randint(1, 99)), *e[2:])],
    "overflowing": lambda e, chance: [(e[0], (2**31 - 1,) * chance.randint(2, 8), *e[2:])],
    "longer than its shape": lambda e, chance: [(*e[:3], e[3] + chance.randbytes(chance.randint(1, 99)))],
    "shorter than its shape": lambda e, chance: [(*e[:3], e[3][: chance.randrange(len(e[3]))])],
}
POSITIONS = [
    ("epoch", None), ("epoch", -1), ("epoch", 10**15), ("epoch", 0.5), ("epoch", [1, 2]),
    ("step", None), ("step", 99), ("steps", 99), ("steps", 0), ("images", 0), ("images", 7), ("images", 2**62),
    ("best", float("nan")), ("best", 1e9), ("data", None), ("data", -5),
]  # fmt: skip


def others(folder: Path) -> dict[str, Callable[[Path], object]]:
    """What is no regular file, or cannot be read, in a checkpoint's place."""
    return {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link loop": lambda path: path.symlink_to(path.name),
        "a link to nowhere": lambda path: path.symlink_to("gone"),
        "a link to a folder": lambda path: path.symlink_to(folder),
        "endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: path.symlink_to("/dev/null"),
        "a device that is full": lambda path: path.symlink_to("/dev/full"),
        "unreadable": lambda path: path.symlink_to("/proc/self/mem"),  # root may read what others may not
        "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
        "a terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
        "a terabyte with a mark": terabyte_with_mark,
    }


def terabyte_with_mark(path: Path) -> None:
    with open(path, "wb") as file:
        file.seek(2**40)
        file.write(b"crc_num" + bytes(10))


def of_safetensors(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Damages of timm's format; without end."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def packed(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    while True:
        yield "flipped bits", flipped(content, chance)
        yield "cut", content[: chance.randrange(len(content))]
        yield "a header of 2^62 bytes", struct.pack("<Q", 2**62) + content[8:]
        yield "a list for a header", packed([1, 2])
        names = [name for name in header if name != "__metadata__"]
        name = chance.choice(names)
        about = header[name]
        changes = {
            "2,000 dimensions": about | {"shape": about["shape"] + [1] * 2000},
            "negative": about | {"shape": [-1, *about["shape"]]},
            "another shape": about | {"shape": [*about["shape"], 1]},
            "another type": about | {"dtype": chance.choice(["I32", "F64", "BOOL", "F8_E4M3", "nonsense"])},
            "other offsets": about | {"data_offsets": [0, chance.randint(0, 2**50)]},
            "no shape": {"dtype": "F32"},
        }
        for what, change in changes.items():
            yield f"{what}: {name}", packed(header | {name: change})
        rest = {other: value for other, value in header.items() if other != name}
        yield f"another name: {name}", packed(rest | {name + "x" * chance.choice([1, 9999]): about})
        yield "no checksum that is one", packed(header | {"__metadata__": {"crc_num": "many"}})


def damages(ckpt: Path, timm: bytes, folder: Path, count: int, seed: int) -> Iterator[tuple[str, str, Make]]:
    """So many of a checkpoint, and of its weights in timm's format: what each is, the file's ending, what makes it."""
    chance, whole, entries = random.Random(seed), ckpt.read_bytes(), entries_of(ckpt)
    borders = [0]
    for entry in entries:
        borders.append(borders[-1] + len(message(entry)))
    for what, make in others(folder).items():
        yield what, CKPT, make
    for what, make in ONCE.items():
        yield what, CKPT, writing(make(whole))
    of_ckpt, of_timm = [of_bytes(whole, borders, chance), of_entries(entries, chance)], of_safetensors(timm, chance)
    for number in range(count - len(others(folder)) - len(ONCE)):
        if number % 6 == 5:
            what, content = next(of_timm)
            yield f"safetensors, {what}", TIMM, writing(content)
        else:
            what, content = next(of_ckpt[number % 3 > 0])
            yield what, CKPT, writing(content)


def writing(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)
