"""An image folder into MindRecord files, which are few and large; resumable.

A shard is written in OUT/.<split>.part/shard under its final name (MindSpore keeps the name inside both files and
refuses renamed ones) and moved into OUT when it is whole, its index last: it is finished when both files are in OUT.
What is being converted is kept in OUT/.<split>.part/plan.json until the manifest, which repeats it, tells that all
shards are there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from skipvit.data.sources.image_folder import ImageFolder
from skipvit.data.sources.mindrecord import LENGTH, Manifest, Plan, ShardFile, index_path, manifest_path, read_manifest
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import flush, lock, make_folder, write_whole
from skipvit.util.text import as_utf8

SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "name": {"type": "string"}}
PLAN = "plan.json"
PAGE, LARGEST_PAGE = 32 << 20, 256 << 20  # MindSpore's default and its limit, bytes; an image lies within a page
BUFFER = 8 << 20  # bytes handed to MindSpore at a time


def convert(source: ImageFolder, out: Path, split: str, shard_size: int) -> str:
    """Write the shards of a split that are not in `out` yet, then the manifest.

    Args:
        shard_size: images a shard.

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
    names = hashlib.sha256(source.names)
    names.update(source.labels.data)
    plan = Plan(
        shard_size=shard_size,
        classes=[as_utf8(name) for name in source.classes],
        images=len(source),
        names_sha256=names.hexdigest(),
    )
    with _workplace(out, split) as work:
        sizes = _resume(plan, out, split, work)
        todo = [k for k, shard in enumerate(shards) if not _finished(shard, sizes.get(shard.name))]
        kept = len(source) - sum(len(ranges[k]) for k in todo)
        with tqdm(total=len(source), initial=kept, desc=split, unit=" images", leave=False, disable=None) as bar:
            for k in todo:
                _write_shard(source, ranges[k], shards[k], work / "shard", bar)
        files = [_shard_file(shard, len(rows)) for shard, rows in zip(shards, ranges)]
        manifest = Manifest(**plan.model_dump(), shards=files)
        write_whole(manifest_path(out, split), manifest.model_dump_json(indent=1))
        (work / PLAN).unlink()
    return (
        f"{manifest_path(out, split)}: {len(source):,} images of {len(source.classes):,} classes in {len(shards)} "
        f"files, {len(todo)} of them written now"
    )


@contextmanager
def _workplace(out: Path, split: str) -> Iterator[Path]:
    """The folder OUT/.<split>.part, this process's alone; removed at the end unless there is a plan to go on with."""
    work = out / f".{split}.part"
    make_folder(work, "folder", "OUT")
    with lock(work / "lock", f"{out}: another skipvit mindrecord is writing {split} there; wait for it"):
        try:
            yield work
        finally:
            if not (work / PLAN).exists():
                shutil.rmtree(work)


def _resume(plan: Plan, out: Path, split: str, work: Path) -> dict[str, ShardFile]:
    """Make sure that what `out` holds of a split, if anything, is part of the same plan; note the plan. Returns what a
    manifest tells of each shard, by its name; empty without a manifest."""
    before: Plan | None = None
    if manifest_path(out, split).exists():
        before = read_manifest(out, split)
    elif (work / PLAN).exists():
        before = Plan.model_validate_json((work / PLAN).read_bytes())  # whole: it is moved into place
    elif any(out.glob(f"{split}_*.mindrecord")):
        raise UsageError(f"{out}: holds {split} files of an unknown conversion; remove them or give another OUT")
    if before is not None:
        what = {"shard_size": f"--shard_size {before.shard_size}", "classes": "other classes"}
        for key, value in plan:
            if getattr(before, key) != value:
                found = what.get(key, "other images")
                raise UsageError(f"{out}: holds {split} with {found}; remove its {split} files or give another OUT")
    write_whole(work / PLAN, plan.model_dump_json(indent=1))
    return {file.file: file for file in before.shards} if isinstance(before, Manifest) else {}


def _finished(shard: Path, known: ShardFile | None) -> bool:
    if not (shard.is_file() and index_path(shard).is_file()):
        return False
    return known is None or known == _shard_file(shard, known.images)


def _shard_file(shard: Path, images: int) -> ShardFile:
    size, index_size = (path.stat().st_size for path in (shard, index_path(shard)))
    return ShardFile(file=shard.name, images=images, bytes=size, index_bytes=index_size)


def _write_shard(source: ImageFolder, rows: range, shard: Path, folder: Path, bar: tqdm) -> None:
    """Write a shard in `folder`, which is emptied first, and move it to its place."""
    from mindspore.mindrecord import FileWriter  # here, so that what only asks for --help does not wait for MindSpore

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
        writer.add_index(["label", "name"])
        for records in _buffers(source, rows):
            writer.write_raw_data(records)
            bar.update(len(records))
        writer.commit()
    except RuntimeError as error:  # MindSpore's errors, of many lines; the reason is behind the mark
        reason = str(error).split("[ERROR]")[-1].split("\n")[0].strip()
        raise RunError(f"{shard}: cannot be written ({reason}); check the folder and free space") from None
    for file, target in ((temporary, shard), (index_path(temporary), index_path(shard))):
        file.chmod(0o644)  # MindSpore lets only the owner read it
        flush(file)  # the move must not reach the disk before the content does
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
        records.append({"image": image, "label": int(source.labels[i]), "name": as_utf8(source.relative(i))})
        size += len(image)
        if size >= BUFFER:
            yield records
            records, size = [], 0
    if records:
        yield records
