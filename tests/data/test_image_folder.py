"""Image folders, with and without an index, against listings by os.walk."""

import errno
import json
import os
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

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

    def noted(folder):
        if os.path.basename(folder) not in ("train", "val"):  # the split's own folder, which is always listed
            names.append(os.path.basename(folder))
        return scan(folder)

    monkeypatch.setattr(image_folder, "_scan", noted)
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
    """Line ends and bytes that are no UTF-8 in names among it."""
    for i in range(100):
        kept = {
            "a": image_folder.Folder([i, 1], "1.jpg/", "", {".heic": 3}),
            "a/\udcff": image_folder.Folder([1, i], "2\n.jpg/3\udce9.jpg/", "c/", {}),
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
        with pytest.raises(RunError, match=r"n015: no images in this class \(\.jpg, .*\.gif, "):
            open_split(data, "train", index)


def test_folders_below_a_class_are_its_images_too(data, tmp_path, later, scanned):
    """In order of their paths; with an index, only the folder that changed is listed again."""
    for inner in ("b", "c/d"):
        (data / "train" / "n01" / inner).mkdir(parents=True)
        (data / "train" / "n01" / inner / "1.jpg").write_text(inner)
    (data / "train" / "n01" / "empty.jpg").mkdir()
    expected = ["n01/b/1.jpg", "n01/c/d/1.jpg", "n01/x_1.jpeg", "n01/x_10.JPG", "n01/x_2.TIF"]
    for known in (None, tmp_path / "index", tmp_path / "index"):
        source = open_split(data, "train", known)
        assert [source.relative(i) for i in range(5)] == expected and source.labels.tolist()[:6] == [0] * 5 + [1]
        assert source.read(1) == b"c/d"
    (data / "train" / "n01" / "c" / "d" / "0.jpg").write_text("new")
    scanned.clear()
    source = open_split(data, "train", tmp_path / "index")
    assert scanned == ["d"] and len(source) == 13 and source.read(1) == b"new"
    shutil.rmtree(data / "train" / "n01" / "c")
    assert len(open_split(data, "train", tmp_path / "index")) == 11


def test_links_into_themselves_end(data, tmp_path):
    """A folder that is linked from below itself is listed once; a link to itself is one broken image."""
    below = data / "train" / "n01" / "below"
    below.mkdir()
    (below / "again").symlink_to(data / "train" / "n01")
    (below / "and_again").symlink_to(data / "train" / "n01" / "below")
    (below / "loop.jpg").symlink_to("loop.jpg")
    for known in (None, tmp_path, tmp_path):
        source = open_split(data, "train", known)
        assert [source.relative(i) for i in range(4)][0] == "n01/below/loop.jpg" and len(source) == 11
    with pytest.raises(OSError) as error:
        source.read(0)
    assert error.value.errno == errno.ELOOP


def test_what_is_left_out_is_said_in_one_line(data, tmp_path, caplog):
    """By ending; hidden files and what systems leave in folders are not worth a word."""
    for name in ("1.heic", "2.HEIC", "Thumbs.db", "desktop.ini", ".DS_Store", "list.txt"):
        (data / "train" / "n01" / name).touch()
    lines = []
    for known in (None, tmp_path, tmp_path):
        caplog.clear()
        open_split(data, "train", known)
        lines += [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and len(set(lines)) == 1
    found = "10 files left out: 4 .txt, 3 without an ending, 2 .heic, 1 outside the class folders; images end in .jpg, "
    assert lines[0].startswith(f"{data / 'train'}: {found}")
    for name in ("n01", "n02", "with space"):
        for path in (data / "train" / name).iterdir():
            if path.suffix.lower() in ("", ".txt", ".heic"):
                path.unlink()
    (data / "train" / "README.jpg").unlink()
    caplog.clear()
    open_split(data, "train")
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        [1, 2],
        [[2], {"n01": []}],
        "KIND {}",
        'KIND {"n01": [[1, 1], 5, "", {}]}',
        'KIND {"n01": [[1, 1], "x.jpg/", "", {".heic": "many"}]}',
        'KIND {"n01": null}',
        "[" * 20000,
    ],
    ids=lambda content: str(content)[:30],
)
def test_an_index_of_another_shape_is_not_used(data, tmp_path, content):
    check(data, tmp_path)
    index = next(tmp_path.glob("train-*.index"))
    text = content if isinstance(content, str) else json.dumps(content)
    if text.startswith("KIND"):
        text = f"[{json.dumps(image_folder._kind())}, {text[5:]}]"
    index.write_bytes(zlib.compress(text.encode()))
    assert len(check(data, tmp_path)) == 10


@pytest.mark.parametrize("images", ["a.jpg", "a\0b.jpg/", "\ud800.jpg/"])
def test_names_that_no_folder_has_are_not_taken_from_an_index(data, tmp_path, later, images):
    """Whatever its checksum says."""
    check(data, tmp_path)
    index = next(tmp_path.glob("train-*.index"))
    kind, rows = json.loads(zlib.decompress(index.read_bytes()))
    for row in rows.values():
        row[1] = images
    index.write_bytes(zlib.compress(json.dumps([kind, rows]).encode()))
    assert len(check(data, tmp_path)) == 10


def test_what_tells_two_folders_apart(data, tmp_path):
    """Names, and sizes as they are now, whatever an index says; not where the folder is."""
    shutil.copytree(data, tmp_path / "copy")

    def identity(folder):
        return [bytes(part) for part in open_split(folder, "train", tmp_path / "index").identity()]

    first = identity(data)
    assert first == identity(data) == identity(tmp_path / "copy")
    (data / "train" / "n01" / "x_1.jpeg").write_text(
        "exchanged for another"
    )  # which leaves its folder's stamp as it is
    assert identity(data) != first
    (tmp_path / "copy" / "train" / "n01" / "x_1.jpeg").rename(tmp_path / "copy" / "train" / "n01" / "x_0.jpeg")
    assert identity(tmp_path / "copy") != first
