"""Checkpoints: everything a run needs to go on, written so that a crash never harms the one before.

A checkpoint has a name of its own, is written beside its final place and renamed, and carries a checksum.
Besides the network's parameters it holds `optimizer.*` and `trainer.*` (epochs done).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from skipvit.errors import RunError, UsageError

NOT_MODEL = ("optimizer.", "trainer.")
_NAME = re.compile(r"epoch_(\d+)\.ckpt")


def save(folder: Path, epochs_done: int, network: nn.Cell, optimizer: nn.Cell, keep: int) -> Path:
    """Write the checkpoint after `epochs_done` epochs, then remove all but the newest `keep`.

    Raises:
        RunError: it could not be written (a full disk); what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch_{epochs_done:04d}.ckpt"
    partial = folder / f".partial_{epochs_done:04d}.ckpt"
    parameters = {p.name: p for p in (*network.get_parameters(), *optimizer.get_parameters())}
    entries = [{"name": name, "data": Tensor(p.asnumpy())} for name, p in parameters.items()]
    entries.append({"name": "trainer.epochs_done", "data": Tensor(epochs_done, ms.int32)})
    try:
        ms.save_checkpoint(entries, str(partial), crc_check=True)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except (OSError, RuntimeError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: checkpoint not written ({str(error).splitlines()[0]}); free some space") from None
    for old in saved(folder)[:-keep]:
        old.unlink()
    return path


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("epoch_*.ckpt") if _NAME.fullmatch(p.name))


def read(path: Path) -> dict[str, np.ndarray]:
    """All entries of a checkpoint.

    Raises:
        UsageError: no such file.
        RunError: the file is damaged or no checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        entries = ms.load_checkpoint(str(path), crc_check=True)
    except Exception as error:  # MindSpore raises many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: not a whole checkpoint ({reason[:120]}); use an older one") from None
    return {name: value.asnumpy() for name, value in entries.items()}


def restore(path: Path, network: nn.Cell, optimizer: nn.Cell | None = None) -> int:
    """Load a checkpoint into the network, and the optimizer if given; returns the epochs done (0 if not recorded).

    Raises:
        UsageError, RunError: as `read`, and a checkpoint of another model, naming the first difference.
    """
    entries = read(path)
    targets = {p.name: p for p in network.get_parameters()}
    if optimizer is not None:
        targets.update({p.name: p for p in optimizer.get_parameters()})
    found = {name for name in entries if optimizer is not None or not name.startswith(NOT_MODEL)} - {"trainer.epochs_done"}
    for name, target in targets.items():
        if name not in found:
            raise RunError(f"{path}: a checkpoint of another model: it has no {name}")
        if entries[name].shape != target.shape:
            raise RunError(
                f"{path}: a checkpoint of another model: {name} is {entries[name].shape} there and {target.shape} here"
            )
    extra = sorted(found - set(targets))
    if extra:
        raise RunError(f"{path}: a checkpoint of another model: {extra[0]} has no place in this one")
    for name, target in targets.items():
        target.set_data(Tensor(entries[name], target.dtype))
    return int(entries.get("trainer.epochs_done", 0))
