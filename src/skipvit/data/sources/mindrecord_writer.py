"""`skipvit mindrecord`: an image folder into MindRecord files, which are few and large; resumable.

A shard is written in OUT/.<split>.part/shard under its final name (MindSpore keeps the name inside both files and
refuses renamed ones) and moved into OUT when it is whole, its index last: it is finished when both files are in OUT.
What is being converted is kept in OUT/.<split>.part/plan.json until the manifest, which repeats it, tells that all
shards are there.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspore.mindrecord import FileWriter
from tqdm import tqdm

from skipvit.config.config import OneLineParser
from skipvit.data.open import refuse_other_classes
from skipvit.data.sources.image_folder import ImageFolder, open_split
from skipvit.data.sources.mindrecord import LENGTH, index_path, manifest_path, read_manifest
from skipvit.util.errors import RunError, UsageError

SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "name": {"type": "string"}}
SPLITS = ("train", "val")
PLAN = "plan.json"
PAGE, LARGEST_PAGE = 32 << 20, 256 << 20  # MindSpore's default and its limit, bytes; an image lies within a page
BUFFER = 8 << 20  # bytes handed to MindSpore at a time
LARGEST_SHARD = 1_000_000

DESCRIPTION = """\
Convert an image folder (FOLDER/<split>/<class>/<image>) into MindRecord files in OUT. Images are copied as they are,
not decoded. Interrupted, it goes on where it was when it is started again with the same words."""

EPILOG = """\
each record has: image (the encoded image), label (int32, position of the class among the sorted class names), name
(<class>/<image>). OUT/<split>.json lists classes and files.

example:
  skipvit mindrecord imagenet imagenet_mindrecord"""


def parser() -> OneLineParser:
    result = OneLineParser(prog="skipvit mindrecord", description=DESCRIPTION, epilog=EPILOG)
    result.add_argument("folder", type=Path, metavar="FOLDER", help="image folder to read")
    result.add_argument("out", type=Path, metavar="OUT", help="folder to write; created if it is not there")
    result.add_argument(
        "--split", nargs="+", choices=SPLITS, default=list(SPLITS), help="what to convert (default: both)"
    )
    result.add_argument(
        "--shard_size", type=_shard_size, default=10000, metavar="N", help="images a file (default: 10000)"
    )
    return result


def main(words: list[str]) -> None:
    """Convert and print a line a split; errors as of `open_split` and `convert`."""
    options = parser().parse_args(words)
    sources = {split: open_split(options.folder, split) for split in dict.fromkeys(options.split)}
    if len(sources) == 2:
        refuse_other_classes(sources["train"], sources["val"])
    for split, source in sources.items():
        print(convert(source, options.out, split, options.shard_size))


def convert(source: ImageFolder, out: Path, split: str, shard_size: int) -> str:
    """Write the shards of a split that are not in `out` yet, then the manifest.

    Returns:
        One line on what is there now.

    Raises:
        UsageError: `out` is no folder, or holds this split of other images or with another shard size; another process
            is writing it.
        RunError: an image is empty or too large, or a shard cannot be written.
        OSError: an image cannot be read, or a file cannot be written.
    """
    ranges = [range(i, min(i + shard_size, len(source))) for i in range(0, len(source), shard_size)]
    shards = [out / f"{split}_{k:05d}.mindrecord" for k in range(len(ranges))]
    plan = _plan(source, shard_size)
    with _workplace(out, split) as work:
        sizes = _resume(plan, out, split, work)
        todo = [k for k, shard in enumerate(shards) if not _finished(shard, sizes.get(shard.name))]
        kept = len(source) - sum(len(ranges[k]) for k in todo)
        with tqdm(total=len(source), initial=kept, desc=split, unit=" images", leave=False, disable=None) as bar:
            for k in todo:
                _write_shard(source, ranges[k], shards[k], work / "shard", bar)
        rows = [_row(shard, len(rows)) for shard, rows in zip(shards, ranges)]
        _write_json(manifest_path(out, split), plan | {"shards": rows}, work)
        (work / PLAN).unlink()
    return (
        f"{manifest_path(out, split)}: {len(source):,} images of {len(source.classes):,} classes in {len(shards)} "
        f"files, {len(todo)} of them written now"
    )


@contextmanager
def _workplace(out: Path, split: str) -> Iterator[Path]:
    """The folder OUT/.<split>.part, this process's alone; removed at the end unless there is a plan to go on with."""
    work = out / f".{split}.part"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{out} is not a folder; give another OUT") from None
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out}: another skipvit mindrecord is writing {split} there; wait for it") from None
        try:
            yield work
        finally:
            if not (work / PLAN).exists():
                shutil.rmtree(work)


def _plan(source: ImageFolder, shard_size: int) -> dict:
    """What decides every record of a split, images' contents aside."""
    digest = hashlib.sha256(source.names)
    digest.update(source.labels)
    return {
        "shard_size": shard_size,
        "classes": [_text(name) for name in source.classes],
        "images": len(source),
        "names_sha256": digest.hexdigest(),
    }


def _resume(plan: dict, out: Path, split: str, work: Path) -> dict[str, tuple[int, int]]:
    """Make sure that what `out` holds of a split, if anything, is part of the same plan; note the plan.

    Returns:
        Bytes that a manifest tells of each shard and of its index, by the shard's name; empty without a manifest.
    """
    manifest, path = {}, work / PLAN
    if manifest_path(out, split).exists():
        manifest = read_manifest(out, split)
    elif path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))  # whole: it is moved into place
    elif any(out.glob(f"{split}_*.mindrecord")):
        raise UsageError(f"{out}: holds {split} files of an unknown conversion; remove them or give another OUT")
    for key, value in plan.items() if manifest else ():
        if manifest.get(key) != value:
            what = {"shard_size": f"--shard_size {manifest.get(key)}", "classes": "other classes"}.get(
                key, "other images"
            )
            raise UsageError(f"{out}: holds {split} with {what}; remove its {split} files or give another OUT")
    _write_json(path, plan, work)
    return {row["file"]: (row["bytes"], row["index_bytes"]) for row in manifest.get("shards", ())}


def _finished(shard: Path, sizes: tuple[int, int] | None) -> bool:
    files = shard, index_path(shard)
    return all(file.is_file() for file in files) and sizes in (None, tuple(file.stat().st_size for file in files))


def _write_shard(source: ImageFolder, rows: range, shard: Path, folder: Path, bar: tqdm) -> None:
    """Write a shard in `folder`, which is emptied first, and move it to its place."""
    # What a killed run left behind: not only half a shard, but perhaps SQLite's journal, which would spoil a new index.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    index_path(shard).unlink(missing_ok=True)  # so that it does not make a half-moved shard look finished
    temporary = folder / shard.name
    page = _page_size(source, rows)
    try:
        writer = FileWriter(str(temporary.absolute()))
        writer.set_page_size(page)
        writer.add_schema(SCHEMA, "images")
        writer.add_index(["label"])
        for records in _buffers(source, rows):
            writer.write_raw_data(records)
            bar.update(len(records))
        writer.commit()
    except RuntimeError as error:  # MindSpore's errors, of many lines; the reason is behind the mark
        reason = str(error).split("[ERROR]")[-1].split("\n")[0].strip()
        raise RunError(f"{shard}: cannot be written ({reason}); check the folder and free space") from None
    for file, target in ((temporary, shard), (index_path(temporary), index_path(shard))):
        file.chmod(0o644)  # MindSpore lets only the owner read it
        with open(file, "rb") as written:
            os.fsync(written)  # the move must not reach the disk before the content does
        os.replace(file, target)


def _page_size(source: ImageFolder, rows: range) -> int:
    """Bytes of a page that the largest of the images fits in."""
    page = PAGE
    for i in rows:
        size = os.stat(source.name(i)).st_size
        if not size:
            raise RunError(f"{source.name(i)}: an empty file; replace or remove it")
        if size + LENGTH > LARGEST_PAGE:
            raise RunError(
                f"{source.name(i)}: {size} bytes are more than a MindRecord file takes ({LARGEST_PAGE}); remove it"
            )
        while size + LENGTH > page:
            page *= 2
    return page


def _buffers(source: ImageFolder, rows: range) -> Iterator[list[dict]]:
    """The records of a shard, a few at a time."""
    records, size = [], 0
    for i in rows:
        image = source.read(i)
        records.append({"image": image, "label": int(source.labels[i]), "name": _text(source.relative(i))})
        size += len(image)
        if size >= BUFFER:
            yield records
            records, size = [], 0
    if records:
        yield records


def _row(shard: Path, images: int) -> dict:
    sizes = {"bytes": shard.stat().st_size, "index_bytes": index_path(shard).stat().st_size}
    return {"file": shard.name, "images": images} | sizes


def _write_json(path: Path, content: dict, work: Path) -> None:
    """Write a file as a whole or not at all."""
    temporary = work / "json"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _text(name: str) -> str:
    """A file name as MindRecord and JSON take it: bytes that are not UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _shard_size(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= LARGEST_SHARD:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {LARGEST_SHARD}")
    return int(word)
