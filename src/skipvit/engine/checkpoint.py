"""Checkpoints: everything a run needs to go on, written so that a crash never harms the one before.

A checkpoint has a name of its own, is written beside its final place, flushed to the disk and renamed, and carries a
checksum. Besides the network's parameters it holds `optimizer.*` (moments, step), `ema.*` (averaged weights) and
`trainer.*` (loss scale, counters, position in the run, best accuracy).
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from mindspore import Parameter, Tensor, dtype_to_nptype, nn

from skipvit.engine.checkpoint_file import Damaged, Record, read_entries, write_checkpoint
from skipvit.util.errors import RunError
from skipvit.util.files import replacing

NOT_MODEL = ("optimizer.", "trainer.", "ema.")
BEST = "best.ckpt"
COPY_OF_WEIGHT = re.compile(r"^(optimizer\.moment\d|ema)\.")  # entries with the shape of a weight
COUNTERS = ("trainer.", "optimizer.step")
POSITION = "trainer.position."
OLD_IMAGES = POSITION + "pictures"  # as earlier versions called it
T = TypeVar("T")
_NAME = re.compile(r"epoch_(\d{4,})_step_(\d{6,})\.ckpt")


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` of `steps` updates of `epoch` (from 0) are done; all of them: it is not yet evaluated.

    `best` is the best accuracy so far, in percent; -1: there is none. `data` is a fingerprint of the training images.
    An update takes `images`, however they are divided among devices, batches and accumulation.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    best: float = -1.0
    data: int = 0
    images: int = 0

    def entries(self) -> dict[str, np.ndarray]:
        """Under their names in a checkpoint."""
        kinds = {name: np.float64 if name == "best" else np.int64 for name in asdict(self)}
        return {POSITION + name: np.array(value, kinds[name]) for name, value in asdict(self).items()}

    @classmethod
    def taken_from(cls, entries: dict[str, np.ndarray]) -> Position:
        """Take it out of a checkpoint's entries. Raises KeyError if it is not there, ValueError if it cannot be one."""
        known = {field.name: entries.pop(POSITION + field.name).item() for field in fields(cls)}
        found = cls(**known)
        counts = found.epoch, found.step, found.steps, found.images
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        if not (whole and found.step <= found.steps and found.best <= 100):
            raise ValueError("what it says of its run cannot be")
        return found


def save(folder: Path, position: Position, parameters: Iterable[Parameter], keep: int) -> Path:
    """Write the checkpoint of a position, then remove all but it and the `keep` - 1 before it.

    Those of later positions go first: they are damaged, or of a run that has been set back.

    Raises:
        RunError: it could not be written (a full disk); what was there before is untouched.
    """
    # The number is of epochs begun before this one; an epoch's last step sorts after its others.
    path = folder / f"epoch_{position.epoch + 1:04d}_step_{position.step:06d}.ckpt"
    for left in folder.glob(".partial.*"):  # by a run that was killed while it wrote
        _remove(left)
    write_checkpoint(path, {p.name: p.asnumpy() for p in parameters} | position.entries())
    others = [other for other in saved(folder) if other != path]
    later = [other for other in others if _place(other) > _place(path)]
    before = [other for other in others if _place(other) < _place(path)]
    for old in [*later, *before[: max(0, len(before) - (keep - 1))]]:
        _remove(old)
    return path


def _remove(path: Path) -> None:
    with suppress(OSError):  # a file too many is no reason to stop
        path.unlink(missing_ok=True)


def keep_best(path: Path) -> None:
    """Make a checkpoint the best one: a second name of the same file, or a copy where there are no such names. Raises
    RunError: it could not be done."""
    try:
        with replacing(path.parent / BEST) as partial:
            try:
                os.link(path, partial)
            except OSError:
                shutil.copyfile(path, partial)
    except OSError as error:
        raise RunError(f"{path.parent / BEST}: not written ({error.strerror})") from None


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; without the best one's second name."""
    return sorted((p for p in folder.glob("epoch_*.ckpt") if _NAME.fullmatch(p.name)), key=_place)


def _place(path: Path) -> tuple[int, int]:
    found = _NAME.fullmatch(path.name)
    assert found is not None  # only such names come here
    return int(found[1]), int(found[2])


def read(path: Path) -> dict[str, np.ndarray]:
    """All entries of a checkpoint. Raises as `checkpoint_file.read_entries`."""
    return {name: record.array() for name, record in read_entries(path).items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run that was read: where the run stood, and all other entries."""

    path: Path
    position: Position
    entries: dict[str, np.ndarray]

    def restore(self, parameters: Iterable[Parameter]) -> None:
        """Load everything that `save` wrote. Raises RunError if it is of another model, naming the first difference."""
        _load(self.path, self.entries, {p.name: p for p in parameters})


def read_fitting(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Record]:
    """The arrays of a checkpoint that `save` wrote of a network.

    Args:
        shapes: of the network's weights, by name.

    Raises:
        UsageError, Damaged: as `checkpoint_file.read_entries`; Damaged: it is of another network.
    """
    entries = read_entries(path)
    misfits = [f"it has no {name}" for name in shapes if name not in entries]
    for name, found in entries.items():
        weight = COPY_OF_WEIGHT.sub("", name)
        if weight not in shapes and not name.startswith(COUNTERS):
            misfits.append(f"{name or 'an entry without name'} has no place in it")
        elif weight in shapes and (found.kind, found.shape) != ("Float32", tuple(shapes[weight])):
            misfits.append(f"{name} is {found.kind} {found.shape}, not Float32 {shapes[weight]}")
    if misfits:
        raise Damaged(f"{path}: a checkpoint of another model: {misfits[0]}; use an older one")
    return entries


def read_run(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Args:
        shapes: of the network's weights, by name; None: of any network.

    Raises:
        UsageError, Damaged: as `read_fitting`; Damaged: one that does not say where its run stood.
    """
    records = read_entries(path) if shapes is None else read_fitting(path, shapes)
    entries = {name: record.array() for name, record in records.items()}
    if OLD_IMAGES in entries:
        entries[POSITION + "images"] = entries.pop(OLD_IMAGES)
    try:
        return Checkpoint(path, Position.taken_from(entries), entries)
    except KeyError:
        raise Damaged(
            f"{path}: it does not say where its run stood (weights alone, or of another version); use an older one"
        ) from None
    except ValueError as error:
        raise Damaged(f"{path}: not a whole checkpoint ({error}); use an older one") from None


def fingerprint(parameters: Iterable[Parameter]) -> int:
    """A checksum of parameters' values."""
    result = 0
    for parameter in parameters:
        result = zlib.crc32(parameter.asnumpy().tobytes(), result)
    return result


def restore_weights(path: Path, network: nn.Cell, averaged: bool = False) -> bool:
    """Load a network's weights, or the average of them.

    Args:
        averaged: take the averaged weights if the checkpoint has any.

    Returns:
        whether they are the averaged ones.

    Raises:
        UsageError, RunError: as `read`, and a checkpoint of another model, naming the first difference.
    """
    entries = read(path)
    averaged = averaged and averages(entries)
    _load(path, weights_of(entries, averaged), {p.name: p for p in network.get_parameters()})
    return averaged


def weights_of(entries: dict[str, T], averaged: bool) -> dict[str, T]:
    """The network's weights among a checkpoint's entries.

    Args:
        averaged: the average of those that have one, which frozen weights do not.
    """
    weights = {name: value for name, value in entries.items() if not name.startswith(NOT_MODEL)}
    if averaged:
        weights |= {name.removeprefix("ema."): value for name, value in entries.items() if name.startswith("ema.")}
    return weights


def has_average(path: Path) -> bool:
    """Whether a checkpoint holds averaged weights. Raises as `read`."""
    return averages(read_entries(path))


def averages(entries: Iterable[str]) -> bool:
    """Whether averaged weights are among a checkpoint's entries."""
    return any(name.startswith("ema.") for name in entries)


def _load(path: Path, entries: dict[str, np.ndarray], targets: dict[str, Parameter]) -> None:
    other = f"{path}: a checkpoint of another model:"
    for name, target in targets.items():
        if name not in entries:
            raise RunError(f"{other} it has no {name}")
        there, dtype = entries[name], np.dtype(dtype_to_nptype(target.dtype))
        if there.shape != target.shape:
            raise RunError(f"{other} {name} is {there.shape} there and {target.shape} here")
        if there.dtype.kind != dtype.kind or not np.can_cast(there.dtype, dtype):
            raise RunError(f"{other} {name} is {there.dtype} there and {dtype} here")
    extra = sorted(set(entries) - set(targets))
    if extra:
        raise RunError(f"{other} {extra[0]} has no place in this one")
    for name, target in targets.items():
        target.set_data(Tensor(entries[name], target.dtype))
