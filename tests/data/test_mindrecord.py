"""MindRecord files against their folder, and as MindSpore's own readers see them; interrupted conversions."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore.mindrecord import FileReader, FileWriter

from skipvit.cli.mindrecord import main
from skipvit.data.sources import mindrecord_writer as tool
from skipvit.data.sources.mindrecord import open_mindrecord
from skipvit.util.errors import DamagedRecord, RunError, UsageError

MEGA = 1 << 20
OUTSIDE = b"""{"classes": ["a"], "images": 1, "shard_size": 1, "names_sha256": "",
 "shards": [{"file": "../a.mindrecord", "images": 1, "bytes": 1, "index_bytes": 1}]}"""


class Killed(BaseException):
    """Nothing in the program catches it."""


def make(root: Path, sizes: dict[str, list[int]], seed: int = 0) -> list[tuple[bytes, int, str]]:
    """A split of random files of these sizes; (content, label, <class>/<file>) in the order they should come in."""
    rng, records = np.random.default_rng(seed), []
    for label, name in enumerate(sorted(sizes)):
        (root / name).mkdir(parents=True)
        files = sorted((f"{name}_{i}{'é' * (i % 40)}.JPEG", size) for i, size in enumerate(sizes[name]))
        for file, size in files:
            (root / name / file).write_bytes(rng.bytes(size))
            records.append(((root / name / file).read_bytes(), label, f"{name}/{file}"))
    return records


def of_source(source) -> list[tuple[bytes, int, str]]:
    """The records by our reader, several threads at a time; the name is taken from what the image is called."""
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(source.read, range(len(source))))
    names = [source.name(i).split("(", 1)[1][:-1] for i in range(len(source))]
    return list(zip(contents, source.labels.tolist(), names))


def of_file_reader(out: Path, split: str) -> list[tuple[bytes, int, str]]:
    records = []
    for shard in sorted(out.glob(f"{split}_*.mindrecord")):
        reader = FileReader(str(shard))
        records += [(row["image"], int(row["label"]), row["name"]) for row in reader.get_next()]
        reader.close()
    return records


def of_engine(out: Path, split: str) -> list[tuple[bytes, int, str]]:
    files = [str(shard) for shard in sorted(out.glob(f"{split}_*.mindrecord"))]
    data = ds.MindDataset(files, ["image", "label", "name"], shuffle=False, num_parallel_workers=1)
    rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True)
    return [(image.tobytes(), int(label), str(name)) for image, label, name in rows]


def sparse_copy(source, target) -> None:
    """Copy a folder; the empty rest of headers and pages, 50 MB a shard, takes neither time nor space."""
    subprocess.run(["cp", "-r", "--sparse=always", source, target], check=True)


def shards_of(out: Path) -> dict[str, int]:
    """The finished files and when each was written, ns."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.mindrecord*")}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, its training records): 3 classes, 11 images, for shards of 4."""
    folder = tmp_path_factory.mktemp("small")
    records = make(folder / "train", {"b": [100, 5, 300], "a": [1, 2000, 30, 40], "a b": [50, 60, 70, 80]})
    make(folder / "val", {"b": [9], "a": [8], "a b": [7]}, seed=1)
    return folder, records


@pytest.fixture(scope="module")
def converted(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    main([str(small[0]), str(out), "--shard_size", "4"])
    return out


@pytest.fixture
def copy(converted, tmp_path):
    sparse_copy(converted, tmp_path / "out")
    return tmp_path / "out"


def convert(small, out, *words):
    main([str(small[0]), str(out), "--split", "train", "--shard_size", "4", *words])


def test_both_splits_come_back(small, converted, capsys):
    folder, records = small
    source = open_mindrecord(converted, "train")
    assert source.classes == ("a", "a b", "b") and source.labels.dtype == np.int32 and len(source) == 11
    assert of_source(source) == records == of_file_reader(converted, "train") == of_engine(converted, "train")
    assert source.name(5) == f"record 1 of {converted}/train_00001.mindrecord ({records[5][2]})"
    assert [label for _, label, _ in of_source(open_mindrecord(converted, "val"))] == [0, 1, 2]
    assert sorted(path.name for path in converted.iterdir() if path.suffix != ".db") == [
        "train.json",
        "train_00000.mindrecord",
        "train_00001.mindrecord",
        "train_00002.mindrecord",
        "val.json",
        "val_00000.mindrecord",
    ]
    manifest = json.loads((converted / "train.json").read_text())
    assert [shard["images"] for shard in manifest["shards"]] == [4, 4, 3]
    assert (manifest["images"], manifest["shard_size"], manifest["classes"]) == (11, 4, ["a", "a b", "b"])


def test_many_pages_and_sizes(tmp_path):
    """Several blob pages of 32 MiB, raw pages between them, and images from a byte to 7 MiB in no order."""
    rng = np.random.default_rng(1)
    sizes = np.concatenate(
        [rng.integers(1, 300, 1500), rng.integers(10_000, 200_000, 300), rng.integers(MEGA, 7 * MEGA, 12)]
    )
    rng.shuffle(sizes)
    records = make(
        tmp_path / "in" / "train", {f"n{k:02d}": part.tolist() for k, part in enumerate(np.array_split(sizes, 20))}
    )
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--split", "train", "--shard_size", "1500"])
    with sqlite3.connect(tmp_path / "out" / "train_00000.mindrecord.db") as connection:
        assert connection.execute("SELECT COUNT(DISTINCT PAGE_ID_BLOB) FROM INDEXES").fetchone()[0] > 2
    assert of_source(open_mindrecord(tmp_path / "out", "train")) == records
    assert of_file_reader(tmp_path / "out", "train") == records


def test_a_image_larger_than_the_usual_page(tmp_path):
    """The page grows for it, and an image fills a page to the last byte."""
    records = make(tmp_path / "in" / "train", {"a": [10, 32 * MEGA - 8, 7], "b": [10, 32 * MEGA - 7, 11]})
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--split", "train", "--shard_size", "3"])
    assert of_source(open_mindrecord(tmp_path / "out", "train")) == records
    assert of_file_reader(tmp_path / "out", "train") == records


def test_empty_and_oversized_images_are_refused(tmp_path, monkeypatch):
    make(tmp_path / "in" / "train", {"a": [10, 200, 30]})
    monkeypatch.setattr(tool, "LARGEST_PAGE", 207)
    with pytest.raises(RunError, match="a_1é.JPEG: 200 bytes are more than a MindRecord file takes"):
        main([str(tmp_path / "in"), str(tmp_path / "out"), "--split", "train"])
    (tmp_path / "in" / "train" / "a" / "a_1é.JPEG").write_bytes(b"")
    with pytest.raises(RunError, match="a_1é.JPEG: an empty file"):
        main([str(tmp_path / "in"), str(tmp_path / "out"), "--split", "train"])


def test_a_finished_conversion_is_kept(small, copy, capsys):
    before = shards_of(copy)
    convert(small, copy)
    assert (
        shards_of(copy) == before
        and "11 images of 3 classes in 3 files, 0 of them written now" in capsys.readouterr().out
    )


@pytest.mark.parametrize("harm", ["no last shard", "no index", "cut off", "no shard, no manifest"])
def test_what_is_missing_is_written_again(small, copy, harm):
    shard = copy / "train_00002.mindrecord"
    index = copy / "train_00002.mindrecord.db"
    if harm == "cut off":
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        (index if harm == "no index" else shard).unlink()
    if harm == "no shard, no manifest":  # as a run leaves it that was killed: with its plan
        manifest = json.loads((copy / "train.json").read_text())
        del manifest["shards"]
        (copy / ".train.part").mkdir()
        (copy / ".train.part" / "plan.json").write_text(json.dumps(manifest))
        (copy / "train.json").unlink()
    before = shards_of(copy)
    convert(small, copy)
    changed = {name for name, written in shards_of(copy).items() if before.get(name) != written}
    assert changed == {shard.name, index.name}
    assert of_source(open_mindrecord(copy, "train")) == small[1] == of_engine(copy, "train")


@pytest.mark.parametrize("moment", range(1, 9))
def test_killed_before_any_of_the_moves(small, tmp_path, monkeypatch, moment):
    """Every file of a conversion gets its final name by a move: plan, then two a shard, then the manifest."""
    moves, real = [], os.replace

    def replace(source, target):
        moves.append(target)
        if len(moves) == moment:
            raise Killed
        real(source, target)

    monkeypatch.setattr(tool.os, "replace", replace)
    with pytest.raises(Killed):
        convert(small, tmp_path / "out")
    monkeypatch.undo()
    kept = {name for name in shards_of(tmp_path / "out") if name.endswith(".db")}
    assert len(kept) == max(0, (moment - 2) // 2)
    with pytest.raises(UsageError, match="train.json is not there"):
        open_mindrecord(tmp_path / "out", "train")
    convert(small, tmp_path / "out")
    assert (
        of_source(open_mindrecord(tmp_path / "out", "train")) == small[1] == of_file_reader(tmp_path / "out", "train")
    )
    assert not list((tmp_path / "out").glob(".*"))


def test_killed_while_a_damaged_shard_is_replaced(small, copy, monkeypatch):
    """The new half and the old half must not pass for a finished shard, whatever their sizes."""
    os.truncate(copy / "train_00000.mindrecord", 1000)
    real = os.replace

    def replace(source, target):
        if str(target).endswith("train_00000.mindrecord.db"):
            raise Killed
        real(source, target)

    monkeypatch.setattr(tool.os, "replace", replace)
    with pytest.raises(Killed):
        convert(small, copy)
    monkeypatch.undo()
    assert not (copy / "train_00000.mindrecord.db").exists()
    convert(small, copy)
    assert of_source(open_mindrecord(copy, "train")) == small[1] == of_file_reader(copy, "train")


def test_killed_within_a_shard_leaves_nothing_that_spoils_the_next(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "BUFFER", 1)
    monkeypatch.setattr(FileWriter, "commit", lambda writer: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        convert(small, tmp_path / "out")
    monkeypatch.undo()
    part = tmp_path / "out" / ".train.part" / "shard"
    assert list(part.glob("*.mindrecord"))
    (part / "train_00000.mindrecord.db-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" * 100)
    convert(small, tmp_path / "out")
    assert of_source(open_mindrecord(tmp_path / "out", "train")) == small[1] == of_engine(tmp_path / "out", "train")


def test_sigkill_and_resume(tmp_path):
    records = make(tmp_path / "in" / "train", {"a": [5000] * 600, "b": [3000] * 600})
    out, words = (
        tmp_path / "out",
        [str(tmp_path / "in"), str(tmp_path / "out"), "--split", "train", "--shard_size", "12"],
    )
    code = f"from skipvit.cli.mindrecord import main; main({words!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while len(list(out.glob("train_*.db"))) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = shards_of(out)
    assert 3 <= sum(name.endswith(".db") for name in before) < 100 and not (out / "train.json").exists()
    main(words)
    after = shards_of(out)
    assert all(after[name[:-3]] == before[name[:-3]] for name in before if name.endswith(".db"))
    assert len(after) == 200 and of_source(open_mindrecord(out, "train")) == records
    engine = of_engine(out, "train")  # it may deal its files out in turn
    assert sorted(engine) == sorted(records)


def test_other_settings_or_images_are_not_mixed_in(small, copy, tmp_path):
    with pytest.raises(UsageError, match="out: holds train with --shard_size 4; remove"):
        convert(small, copy, "--shard_size", "5")
    other = Path(shutil.copytree(small[0], tmp_path / "other"))
    (other / "train" / "a" / "more.jpg").write_bytes(b"1")
    with pytest.raises(UsageError, match="holds train with other images"):
        convert((other, None), copy)
    (other / "train" / "c").mkdir()
    (other / "train" / "c" / "c.jpg").write_bytes(b"1")
    with pytest.raises(UsageError, match="holds train with other classes"):
        convert((other, None), copy)
    (copy / "train.json").unlink()
    with pytest.raises(UsageError, match="holds train files of an unknown conversion"):
        convert(small, copy)
    assert not list(copy.glob(".*"))


def test_an_unfinished_conversion_is_not_mixed_either(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ShardFile", lambda **_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        convert(small, tmp_path / "out")
    with pytest.raises(UsageError, match="holds train with --shard_size 4"):
        convert(small, tmp_path / "out", "--shard_size", "3")


def test_two_at_a_time_are_refused(small, tmp_path):
    with tool._workplace(tmp_path / "out", "train"):
        with pytest.raises(UsageError, match="another skipvit mindrecord is writing train"):
            convert(small, tmp_path / "out")
    convert(small, tmp_path / "out")


def test_words_that_cannot_be(small, tmp_path):
    with pytest.raises(UsageError, match="shard_size: must be a whole number from 1"):
        convert(small, tmp_path / "out", "--shard_size", "0")
    with pytest.raises(UsageError, match="invalid choice: 'test'"):
        convert(small, tmp_path / "out", "--split", "test")
    with pytest.raises(UsageError, match="nowhere/train is not a folder"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="cannot be made .* choose another OUT"):
            convert(small, out)


def test_a_image_that_cannot_be_read_is_named(small, tmp_path):
    folder = Path(shutil.copytree(small[0], tmp_path / "in"))
    (folder / "train" / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError) as error:
        convert((folder, None), tmp_path / "out")
    assert error.value.filename.endswith("a/gone.jpg")


def test_mindspores_reason_is_one_line(small, tmp_path, monkeypatch):
    text = "Exception thrown.\n\n---\n- Message:\n---\n[ERROR] No free disk.\n\n---\n- C++ ...\n"
    monkeypatch.setattr(FileWriter, "commit", lambda writer: (_ for _ in ()).throw(RuntimeError(text)))
    with pytest.raises(RunError) as error:
        convert(small, tmp_path / "out")
    assert str(error.value).endswith(
        "train_00000.mindrecord: cannot be written (No free disk.); check the folder and free space"
    )


def test_refused_when_opened(converted, copy, tmp_path):
    def refused(kind, match):
        with pytest.raises(kind, match=match):
            open_mindrecord(copy, "train")
        sparse_copy(f"{converted}/.", copy)

    with pytest.raises(UsageError, match="data.path: .*train.json is not there"):
        open_mindrecord(tmp_path / "nowhere", "train")
    with pytest.raises(UsageError, match="data.path: .* is not a folder"):
        open_mindrecord(copy / "train.json", "train")
    for content in (
        b"",
        b"[]",
        b'{"classes": ["a"]}',
        b'{"classes": ["a"], "shards": [{"file": "x"}]}',
        b"\xff",
        OUTSIDE,
    ):
        (copy / "train.json").write_bytes(content)
        refused(RunError, "train.json: not a manifest of skipvit mindrecord")
    for name in ("train_00001.mindrecord", "train_00001.mindrecord.db"):
        (copy / name).unlink()
        refused(RunError, f"{name}: No such file or directory; run skipvit mindrecord again")
        size = (copy / name).stat().st_size
        os.truncate(copy / name, size - 1)
        refused(RunError, f"{name}: {size - 1} bytes instead of {size}")
        (copy / name).write_bytes(bytes(size))
        refused(RunError, "train_00001.mindrecord: not a MindRecord file of images")
    shutil.copyfile(copy / "train_00000.mindrecord", copy / "train_00002.mindrecord")
    shutil.copyfile(copy / "train_00000.mindrecord.db", copy / "train_00002.mindrecord.db")
    manifest = json.loads((copy / "train.json").read_text())
    manifest["shards"][2] |= {key: manifest["shards"][0][key] for key in ("bytes", "index_bytes")}
    (copy / "train.json").write_text(json.dumps(manifest))
    refused(RunError, "train_00002.mindrecord: its index does not fit the manifest")
    for column in ("label_0 = 3", "label_0 = -1", "PAGE_ID_BLOB = 9", "PAGE_OFFSET_BLOB_END = PAGE_OFFSET_BLOB"):
        with sqlite3.connect(copy / "train_00000.mindrecord.db") as connection:
            connection.execute(f"UPDATE INDEXES SET {column} WHERE ROW_ID = 1")
        refused(RunError, "train_00000.mindrecord: its index does not fit the manifest")


def test_a_record_damaged_after_opening_is_named(copy):
    source = open_mindrecord(copy, "train")
    with open(copy / "train_00001.mindrecord", "r+b") as file:
        file.seek(int(source.starts[6]))
        file.write(b"\xff")
    with pytest.raises(DamagedRecord, match=r"record 2 of .*train_00001.mindrecord \(a b/.*\): damaged"):
        source.read(6)
    os.truncate(copy / "train_00001.mindrecord", 100)
    with pytest.raises(DamagedRecord, match=r"record 3 of .*train_00001.mindrecord \(.*\): damaged"):
        source.read(7)
    (copy / "train_00001.mindrecord.db").unlink()
    assert source.name(7) == f"record 3 of {copy}/train_00001.mindrecord"
    (copy / "train_00001.mindrecord").unlink()
    with pytest.raises(OSError):
        source.read(7)


def test_an_oddly_named_folder(converted, tmp_path):
    folder = tmp_path / "50% of a?b#c ü"
    sparse_copy(converted, folder)
    assert of_source(open_mindrecord(folder, "train")) == of_source(open_mindrecord(converted, "train"))
