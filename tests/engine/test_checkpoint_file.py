"""Checkpoint files against MindSpore's reader, damaged and crafted by hand: read whole, or refused in a line."""

import os
import socket
import struct
import zlib

import mindspore as ms
import numpy as np
import pytest

from skipvit.engine.checkpoint import Position, read_run
from skipvit.engine.checkpoint_file import Damaged, read_entries, write_checkpoint
from skipvit.util.errors import RunError, UsageError

ARRAYS = {
    "weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "half": np.arange(5, dtype=np.float16),
    "step": np.array(7, np.int64),
    "best": np.array(97.5, np.float64),
    "flags": np.array([True, False]),
}


def arrays(path):
    return {name: entry.array() for name, entry in read_entries(path).items()}


def damage(path):
    """The reason of a refusal, one short line that names the file."""
    with pytest.raises(Damaged) as caught:
        read_entries(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and line.isprintable() and len(line) < len(str(path)) + 200
    return line


# The format by its description, written by hand.


def varint(number):
    number &= 2**64 - 1
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(name, dims, content, kind=b"Float32"):
    tensor = b"".join(field(1, side) for side in dims) + field(2, kind) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


def with_checksum(content):
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big")


def test_written_and_read_back_by_both_readers(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"] and os.access(tmp_path / "a.ckpt", os.W_OK)
    theirs = ms.load_checkpoint(str(tmp_path / "a.ckpt"), crc_check=True)
    mine = arrays(tmp_path / "a.ckpt")
    assert list(mine) == list(ARRAYS) == list(theirs)
    for name, value in ARRAYS.items():
        for found in (mine[name], theirs[name].asnumpy()):
            assert found.dtype == value.dtype and found.shape == value.shape and np.array_equal(found, value), name


def test_what_mindspore_wrote_of_a_number_of_bfloat16_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)  # KiB; as it does above 512 MiB
    values = np.arange(1024, dtype=np.float32).reshape(2, 512)
    ms.save_checkpoint(
        [{"name": "large", "data": ms.Tensor(values)}, {"name": "brain", "data": ms.Tensor([1.5, -3.0], ms.bfloat16)}],
        str(tmp_path / "a.ckpt"),
        append_dict={"epoch": 3},
        crc_check=True,
    )
    assert (tmp_path / "a.ckpt").read_bytes().count(b"large") > 1
    found = arrays(tmp_path / "a.ckpt")
    assert np.array_equal(found["large"], values) and found["brain"].tolist() == [1.5, -3.0] and found["epoch"] == 3
    assert found["large"].flags.writeable and found["brain"].dtype == np.float32


def test_written_by_hand_it_is_read(tmp_path):
    one = np.array([1, 2, 3, 4], np.float32).tobytes()
    packed = field(1, varint(2) + varint(2)) + field(2, b"Float32") + field(3, one)
    content = entry(b"plain", (2, 2), one) + field(1, field(1, b"packed") + field(2, packed))
    (tmp_path / "a.ckpt").write_bytes(with_checksum(content))
    found = arrays(tmp_path / "a.ckpt")
    assert found["plain"].tolist() == found["packed"].tolist() == [[1, 2], [3, 4]]


FOUR = b"\0" * 16
CRAFTED = {
    "content too short": (entry(b"x", (5,), FOUR), "x is shorter than its shape (5,)"),
    "content too long": (entry(b"x", (3,), FOUR), "x is longer than its shape (3,)"),
    "no content": (entry(b"x", (2,), b""), "x is shorter"),
    "negative": (entry(b"x", (-4,), FOUR), "x has the shape"),
    "zero": (entry(b"x", (0, 4), b""), "x has the shape (0, 4)"),
    "huge": (entry(b"x", (2**31, 2**31), FOUR), "x has the shape"),
    "terabytes": (entry(b"x", (2**30, 2**30), FOUR), "x is shorter than its shape"),
    "2000 dimensions": (entry(b"x", (1,) * 2000, b"\0" * 4), "x has more than 8 dimensions"),
    "a million dimensions, packed": (
        field(1, field(1, b"x") + field(2, field(1, b"\1" * 10**6) + field(2, b"Float32") + field(3, b"\0" * 4))),
        "x has more than 8 dimensions",
    ),
    "a thousand of one name": (entry(b"x", (4,), FOUR) * 1000, "x is there twice"),
    "twice, not in a row": (entry(b"x", (4,), FOUR) + entry(b"y", (4,), FOUR) + entry(b"x", (4,), FOUR), "x is there"),
    "parts of other shapes": (entry(b"x", (8,), FOUR) + entry(b"x", (9,), FOUR), "x is shorter"),
    "a part missing": (entry(b"x", (8,), FOUR) + entry(b"y", (4,), FOUR), "x is shorter"),
    "text": (entry(b"x", (0,), "note".encode("utf-32"), b"str"), "x is of type str"),
    "no type": (entry(b"x", (4,), FOUR, b""), "x is of type none"),
    "a type with an escape": (entry(b"x", (4,), FOUR, b"\x1b[31m\n"), r"x is of type \x1b[31m\n"),
    "a name with an escape": (entry(b"\x1b[31m", (3,), FOUR), r"\x1b[31m is longer"),
    "a name of other bytes": (entry(b"\xff\xfe", (4,), FOUR), "'utf-8' codec"),
    "a long name": (entry(b"x" * 10**6, (4,), FOUR), "the name of an entry has 1000000 bytes"),
    "no name": (field(1, field(2, field(2, b"Float32"))), "an entry without name or array"),
    "no array": (field(1, field(1, b"x")), "an entry without name or array"),
    "a number for an array": (field(1, field(1, b"x") + field(2, 3)), "an entry without name or array"),
    "another message": (field(2, b"x"), "it holds something else"),
    "longer than the file": (b"\x0a\xff\xff\xff\xff\x0f", "cut off, or something else"),
    "an endless number": (b"\xff" * 50, "cut off, or something else"),
    "floats": (struct.pack("<bf", 13, 1.0) * 9, "something else"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_files_with_a_right_checksum_are_refused(tmp_path, case):
    content, reason = CRAFTED[case]
    (tmp_path / "a.ckpt").write_bytes(with_checksum(content))
    assert reason in damage(tmp_path / "a.ckpt")


def test_an_array_in_very_many_parts(tmp_path):
    one = entry(b"x", (20_000,), b"\0\0\0\1", b"Float32")
    (tmp_path / "a.ckpt").write_bytes(with_checksum(one * 20_000))
    assert arrays(tmp_path / "a.ckpt")["x"].view(">u4").tolist() == [1] * 20_000
    (tmp_path / "a.ckpt").write_bytes(with_checksum(one * 19_999))
    assert "x is shorter than its shape" in damage(tmp_path / "a.ckpt")


def test_a_file_larger_than_the_memory_is_not_read(tmp_path):
    with open(tmp_path / "a.ckpt", "wb") as file:
        file.seek(2**43)
        file.write(b"crc_num" + bytes(10))
    assert "larger than the memory" in damage(tmp_path / "a.ckpt")


def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", {name: ARRAYS[name] for name in ("half", "step")})
    whole, path = (tmp_path / "a.ckpt").read_bytes(), tmp_path / "b.ckpt"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "it has no checksum" in damage(path)
    for i in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        damage(path)


def test_cut_at_the_border_of_an_entry_or_saved_without_a_checksum(tmp_path):
    content = entry(b"x", (4,), FOUR) + entry(b"y", (4,), FOUR)
    (tmp_path / "a.ckpt").write_bytes(content)
    assert "it has no checksum" in damage(tmp_path / "a.ckpt")
    ms.save_checkpoint([{"name": "x", "data": ms.Tensor([1.0])}], str(tmp_path / "b.ckpt"))
    assert "was saved without crc_check" in damage(tmp_path / "b.ckpt")


def test_what_is_no_regular_file_or_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    (tmp_path / "nowhere.ckpt").symlink_to("gone")
    (tmp_path / "zero.ckpt").symlink_to("/dev/zero")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "socket.ckpt"))
    for path in sorted(tmp_path.iterdir()):
        assert "remove" not in damage(path), path
    with pytest.raises(UsageError, match="no such checkpoint"):
        read_entries(tmp_path / "none.ckpt")
    write_checkpoint(tmp_path / "a.ckpt", ARRAYS)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)  # root may read everything
    assert "cannot be read (Permission denied)" in damage(tmp_path / "a.ckpt")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a.ckpt", ARRAYS)
    before = (tmp_path / "a.ckpt").read_bytes()

    def full(entries, path, **_):
        for name in (path, path.removesuffix(".ckpt") + ".tmp"):
            with open(name, "wb") as file:
                file.write(b"half")
        raise RuntimeError("\n---\nNo space left on device\n---")

    monkeypatch.setattr(ms, "save_checkpoint", full)
    with pytest.raises(RunError, match=r"a.ckpt: not written \(No space left on device\)"):
        write_checkpoint(tmp_path / "a.ckpt", {"other": np.ones(3)})
    assert (tmp_path / "a.ckpt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": np.array(-1)},
        {"epoch": np.array(1.5)},
        {"epoch": np.array([1, 2])},
        {"step": np.array(99)},
        {"best": np.array(np.nan)},
        {"images": np.array(-5)},
    ],
)
def test_a_position_that_cannot_be_is_damage(tmp_path, wrong):
    entries = Position(3, 5, 10, 97.5, 1, 2).entries()
    write_checkpoint(tmp_path / "a.ckpt", entries)
    assert read_run(tmp_path / "a.ckpt").position == Position(3, 5, 10, 97.5, 1, 2)
    write_checkpoint(tmp_path / "a.ckpt", entries | {f"trainer.position.{name}": v for name, v in wrong.items()})
    with pytest.raises(Damaged):
        read_run(tmp_path / "a.ckpt")
