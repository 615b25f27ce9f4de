"""Image folders, with and without an index, against listings by os.walk."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from skipvit.data.open import refuse_other_classes
from skipvit.data.sources import image_folder
from skipvit.data.sources.image_folder import open_split
from skipvit.util.errors import RunError, UsageError

IMAGES = {
    "n02": ["b.JPEG", "a.jpg", "B.png", "é.gif", "10.webp", "9.tiff"],
    "n01": ["x_1.jpeg", "x_10.JPG", "x_2.TIF"],
    "with space": ["z.bmp"],
}
SUFFIXES = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "gif")


@pytest.fixture
def data(tmp_path):
    for name, files in IMAGES.items():
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        for file in [*files, ".hidden.jpg", "notes.txt", "jpg"]:
            (folder / file).write_text(f"{name}/{file}")
    (tmp_path / "data" / "train" / ".thumbnails").mkdir()
    (tmp_path / "data" / "train" / "README.jpg").touch()
    return tmp_path / "data"


@pytest.fixture
def later(monkeypatch):
    """The clock as the scanner sees it, ten seconds on: no folder of this test is too new to be trusted."""
    now = time.time_ns
    monkeypatch.setattr(image_folder.time, "time_ns", lambda: now() + 10 * 10**9)


@pytest.fixture
def scanned(monkeypatch):
    """Names of the class folders that were listed, in any order; clear() it between two starts."""
    names, scan = [], image_folder._scan
    monkeypatch.setattr(image_folder, "_scan", lambda folder: names.append(os.path.basename(folder)) or scan(folder))
    return names


def walked(root: Path) -> list[tuple[str, str]]:
    """(class, path) of every image, by os.walk."""
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        name = os.path.basename(folder)
        good = [file for file in files if file[0] != "." and "." in file and file.rsplit(".", 1)[1].lower() in SUFFIXES]
        if folder != str(root) and name[0] != ".":
            found += [(name, file, os.path.join(folder, file)) for file in good]
    return [(name, path) for name, _, path in sorted(found)]


def listed(source) -> list[tuple[str, str]]:
    return [(source.classes[label], source.name(i)) for i, label in enumerate(source.labels)]


def check(data: Path, index: Path | None = None):
    source = open_split(data, "train", index)
    assert listed(source) == walked(data / "train")
    assert source.labels.dtype == np.int32 and source.offsets.dtype == np.int64 and len(source) == len(source.labels)
    return source


def test_lists_what_a_walk_finds_and_reads_it(data):
    source = check(data)
    assert source.classes == ("n01", "n02", "with space")
    assert source.labels.tolist() == [0] * 3 + [1] * 6 + [2]
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(source.read, range(len(source))))
    assert contents == [Path(path).read_bytes() for _, path in walked(data / "train")]
    assert source.relative(1) == "n01/x_10.JPG" and source.read(1) == b"n01/x_10.JPG"


def test_symlinked_classes_and_images(data, tmp_path):
    (data / "train" / "n02").rename(tmp_path / "elsewhere")
    (data / "train" / "n02").symlink_to(tmp_path / "elsewhere")
    (data / "train" / "n01" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    source = check(data, tmp_path / "index")
    assert [source.read(i) for i in range(len(source)) if source.name(i).endswith("link.png")] == [b"n02/a.jpg"]


def test_names_that_are_not_utf8(data, tmp_path):
    folder = os.fsencode(data / "train" / "n01")
    with open(folder + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"latin")
    os.makedirs(os.fsencode(data / "train") + b"/\xff")
    open(os.fsencode(data / "train") + b"/\xff/1.jpg", "wb").close()
    for _ in range(2):
        source = check(data, tmp_path / "index")
    assert b"latin" in [source.read(i) for i in range(len(source))]


def test_a_image_that_is_gone_raises_oserror_with_its_path(data):
    source = open_split(data, "train")
    os.unlink(source.name(2))
    with pytest.raises(OSError) as error:
        source.read(2)
    assert error.value.filename == source.name(2)


def test_index_gives_the_same_without_listing(data, tmp_path, later, scanned):
    without = check(data)
    for expected in (["n01", "n02", "with space"], []):
        scanned.clear()
        source = check(data, tmp_path / "new" / "index")
        assert sorted(scanned) == expected
        assert (source.names, source.classes) == (without.names, without.classes)
        assert np.array_equal(source.labels, without.labels) and np.array_equal(source.offsets, without.offsets)
    assert len(os.listdir(tmp_path / "new" / "index")) == 1


def test_any_content_can_be_kept(tmp_path):
    """Whatever bytes the checksum happens to have, line ends among them."""
    for i in range(1000):
        kept = {
            "a": image_folder.Listing((i, 1), 1, b"1.jpg\0"),
            "b": image_folder.Listing((1, i), 2, b"2.jpg\0003.jpg\0"),
        }
        image_folder._save(tmp_path / "index", kept)
        assert image_folder._load(tmp_path / "index") == kept


def change_add(train):
    (train / "n02" / "new.jpg").touch()


def change_remove(train):
    (train / "n02" / "a.jpg").unlink()


def change_rename(train):
    (train / "n02" / "a.jpg").rename(train / "n02" / "c.jpg")


def change_behind_the_mtime(train):
    """As tar and rsync do, which set a folder's mtime back to what it was at the source."""
    before = os.stat(train / "n02").st_mtime_ns
    change_rename(train)
    os.utime(train / "n02", ns=(before, before))


@pytest.mark.parametrize("change", [change_add, change_remove, change_rename, change_behind_the_mtime])
def test_only_the_changed_folder_is_listed_again(data, tmp_path, later, scanned, change):
    check(data, tmp_path)
    change(data / "train")
    for expected in (["n02"], []):
        scanned.clear()
        check(data, tmp_path)
        assert scanned == expected


def test_classes_come_and_go(data, tmp_path, later, scanned):
    check(data, tmp_path)
    shutil.move(data / "train" / "n01", data / "train" / "n03")
    scanned.clear()
    assert check(data, tmp_path).classes == ("n02", "n03", "with space")
    assert scanned == ["n03"]
    shutil.rmtree(data / "train" / "n02")
    size = next(tmp_path.glob("train-*.index")).stat().st_size
    scanned.clear()
    assert check(data, tmp_path).classes == ("n03", "with space")
    assert scanned == [] and next(tmp_path.glob("train-*.index")).stat().st_size < size


def test_a_folder_changed_within_two_seconds_of_the_listing_is_not_trusted(data, tmp_path, monkeypatch, scanned):
    now = time.time_ns()
    monkeypatch.setattr(image_folder.time, "time_ns", lambda: now + 10 * 10**9)
    recent = now + 10 * 10**9 - 1_900_000_000
    os.utime(data / "train" / "n01", ns=(recent, recent))
    check(data, tmp_path)
    # Within the same tick of a coarse clock: the content changes, the stamp does not.
    stamp = image_folder._stamp(str(data / "train" / "n01"))
    (data / "train" / "n01" / "late.jpg").touch()
    real = image_folder._stamp
    monkeypatch.setattr(image_folder, "_stamp", lambda folder: stamp if folder.endswith("n01") else real(folder))
    scanned.clear()
    check(data, tmp_path)
    assert scanned == ["n01"]
    monkeypatch.setattr(image_folder.time, "time_ns", lambda: now + 13 * 10**9)
    for expected in (["n01"], []):  # now it is old enough
        scanned.clear()
        check(data, tmp_path)
        assert scanned == expected


def test_fresh_folders_are_listed_at_every_start(data, tmp_path, scanned):
    check(data, tmp_path)
    scanned.clear()
    check(data, tmp_path)
    assert sorted(scanned) == ["n01", "n02", "with space"]


def flip(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


DAMAGE = {
    "empty": lambda content: b"",
    "short": lambda content: content[:3],
    "zeros": lambda content: bytes(len(content)),
    "cut": lambda content: content[:-7],
    "cut header": lambda content: content[:40],
    "bit": flip,
    "text": lambda content: b"something else\n" * 9,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_replaced(data, tmp_path, later, scanned, damage):
    check(data, tmp_path)
    index = next(tmp_path.glob("train-*.index"))
    good = index.read_bytes()
    index.write_bytes(DAMAGE[damage](good))
    scanned.clear()
    check(data, tmp_path)
    assert len(scanned) == 3 and index.read_bytes() == good


def test_an_index_of_other_extensions_is_not_used(data, tmp_path, later, scanned, monkeypatch):
    monkeypatch.setattr(image_folder, "EXTENSIONS", (".jpg", ".bmp"))
    open_split(data, "train", tmp_path)
    monkeypatch.undo()
    assert len(check(data, tmp_path)) == 10


def test_an_index_that_cannot_be_written_is_no_error(data, tmp_path):
    (tmp_path / "file").touch()
    check(data, tmp_path / "file")
    check(data, tmp_path / "file" / "below")
    occupied = tmp_path / "index" / image_folder._index_name(data / "train")
    (occupied / "x").mkdir(parents=True)
    check(data, tmp_path / "index")
    assert os.listdir(tmp_path / "index") == [occupied.name]  # no half-written file either


def test_data_sets_of_the_same_names_have_indexes_of_their_own(data, tmp_path, later):
    shutil.copytree(data, tmp_path / "other")
    (tmp_path / "other" / "train" / "n01" / "x_1.jpeg").unlink()
    for _ in range(2):
        assert len(check(data, tmp_path / "index")) == 10
        assert len(check(tmp_path / "other", tmp_path / "index")) == 9


def test_relative_and_absolute_paths_share_an_index(data, tmp_path, later, scanned, monkeypatch):
    check(data, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    scanned.clear()
    open_split(Path("data"), "train", Path("index"))
    assert scanned == []


def test_refusals(data, tmp_path):
    with pytest.raises(UsageError, match="data.path: .*nowhere/train is not a folder"):
        open_split(tmp_path / "nowhere", "train")
    (data / "val").mkdir()
    with pytest.raises(RunError, match="no class folders"):
        open_split(data, "val")
    (data / "train" / "n015").mkdir()
    for index in (None, tmp_path, tmp_path):
        with pytest.raises(RunError, match=r"n015: no images in this class \(\.jpg, .*\.gif\)"):
            open_split(data, "train", index)


def test_splits_with_other_classes_are_refused(data):
    shutil.copytree(data / "train", data / "val")
    (data / "val" / "n01").rename(data / "val" / "n09")
    with pytest.raises(RunError, match="class 'n01' is in train/ but not in val/"):
        refuse_other_classes(open_split(data, "train"), open_split(data, "val"))
