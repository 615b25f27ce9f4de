"""Files of weights: checkpoints (.ckpt) in our layout, safetensors in timm's; read whole or not at all."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from skipvit.engine.checkpoint import averages, weights_of
from skipvit.engine.checkpoint_file import LONGEST_NAME, MOST_DIMENSIONS, Record, read_entries, write_checkpoint
from skipvit.models.registry import family_of
from skipvit.routing.forward import Forward
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded, read_bytes, replacing
from skipvit.util.text import one_line, printable

TIMM, OURS = ".safetensors", ".ckpt"
KINDS = {"F32": "Float32", "F16": "Float16", "BF16": "BFloat16"}
CHECKSUM = "crc_num"  # MindSpore's: of all names and arrays, in order of the names
HEAD = ("head.weight", "head.bias")
MOST_NAMED = 8


class Weights(NamedTuple):
    """What a file holds of a network.

    Attributes:
        arrays: float32, by name, in our layout.
        spec: of the network that they are of, as far as weights tell.
        averaged: they are a run's averaged weights.
        widened: arrays that were of 16 bits.
        left_out: entries of the file that are not the network's.
    """

    arrays: dict[str, np.ndarray]
    spec: Any
    averaged: bool
    widened: int
    left_out: int


def load_weights(network: nn.Cell, path: str | Path, averaged: bool = True) -> None:
    """Give a network the weights of a file.

    Args:
        network: of `create_model`, or a backbone's cell.
        path: a checkpoint (.ckpt) of a run or of `save_weights`, or timm's weights (.safetensors).
        averaged: take a checkpoint's averaged weights, if it has any.

    Raises:
        UsageError: no such file, or one of another ending.
        RunError: it is damaged, or of another network.
    """
    path, cell = expanded(path), _backbone(network)
    arrays = read_weights(path, cell.spec, averaged).arrays
    parameters = cell.parameters_dict()
    for name, parameter in parameters.items():
        if arrays[name].shape != parameter.shape:
            raise RunError(f"{path}: {name} is {arrays[name].shape} there and {parameter.shape} in this network")
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(arrays[name], parameter.dtype))


def save_weights(network: nn.Cell, path: str | Path) -> None:
    """Write a network's weights, replacing a file as a whole.

    Args:
        network: of `create_model` or `Run.network`, or a backbone's cell.
        path: ends in .ckpt (a MindSpore checkpoint with its checksum) or .safetensors (timm's names and shapes).

    Raises:
        UsageError: another ending.
        RunError: it cannot be written.
    """
    path, cell = expanded(path), _backbone(network)
    arrays = {p.name: p.asnumpy().astype(np.float32, copy=False) for p in cell.get_parameters()}
    write_weights(cell.spec.to_timm(arrays) if ending(path) == TIMM else arrays, path)


def read_weights(path: Path, spec: Any = None, averaged: bool = False, headless: bool = False) -> Weights:
    """Read a file of complete weights. What it raises, and what `averaged` means: `load_weights`.

    Args:
        spec: of a network of the same kind, its numbers may be others; None: what the names of the weights say.
        headless: they may have no head.
    """
    timm = ending(path) == TIMM
    entries = _read_safetensors(path) if timm else read_entries(path)
    averaged = averaged and not timm and averages(entries)
    records = entries if timm else weights_of(entries, averaged)
    for name, record in records.items():
        if record.kind not in KINDS.values():
            raise RunError(
                f"{path}: {printable(name)} is of type {record.kind}; weights are float32, float16 or bfloat16"
            )
    shapes = {name: record.shape for name, record in records.items()}
    found = _checked(shapes, spec or family_of(shapes), path, headless)
    arrays = {name: record.array().astype(np.float32, copy=False) for name, record in records.items()}
    widened = sum(record.kind != "Float32" for record in records.values())
    return Weights(found.from_timm(arrays) if timm else arrays, found, averaged, widened, len(entries) - len(records))


def write_weights(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write float32 arrays as they are; the ending says the format. Raises as `save_weights`."""
    if ending(path) == OURS:
        write_checkpoint(path, dict(arrays))
        return
    # `format` is the mark that timm and Hugging Face tools look for.
    metadata = {"format": "pt", CHECKSUM: str(_checksum({name: value.tobytes() for name, value in arrays.items()}))}
    try:
        with replacing(path) as partial:
            save_file(dict(arrays), partial, metadata=metadata)
            partial.chmod(0o644)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not written ({one_line(error)}); check the folder and free space") from None


def ending(path: Path) -> str:
    """`.ckpt` or `.safetensors`. Raises UsageError for another one."""
    if path.suffix not in (TIMM, OURS):
        raise UsageError(f"{path}: weights end in {OURS} or {TIMM}; save others as {TIMM} first")
    return path.suffix


def _read_safetensors(path: Path) -> dict[str, Record]:
    try:
        content = read_bytes(path)
        entries = dict(sorted(safetensors.deserialize(content)))  # they come in a random order
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except safetensors.SafetensorError as error:
        raise RunError(f"{path}: not a readable safetensors file ({one_line(error)}); copy it again") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    expected = (header.get("__metadata__") or {}).get(CHECKSUM)
    if expected is not None and expected != str(_checksum({name: e["data"] for name, e in entries.items()})):
        raise RunError(f"{path}: its checksum is wrong; copy it again")
    if any(len(name) > LONGEST_NAME or len(e["shape"]) > MOST_DIMENSIONS for name, e in entries.items()):
        raise RunError(f"{path}: not weights of a network (an array of too many dimensions, or too long a name)")
    kinds = {name: str(e["dtype"]) for name, e in entries.items()}
    return {
        name: Record(KINDS.get(k, k), tuple(entries[name]["shape"]), entries[name]["data"]) for name, k in kinds.items()
    }


def _checked(shapes: Mapping[str, tuple[int, ...]], spec: Any, source: Path, headless: bool) -> Any:
    """The specification like `spec` that weights are of. Raises RunError: names are missing, unexpected or of the wrong
    shape."""
    there = family_of(shapes)
    if there.family != getattr(spec, "family", there.family):
        raise RunError(f"{source}: weights of {there.family}, and this network is {spec.family}; set model.name")
    try:
        found, timm = spec.like(shapes), source.suffix == TIMM
    except ValueError:  # numbers that no network of this kind has
        found, timm = spec, source.suffix == TIMM
    expected = found.timm_shapes() if timm else found.shapes()
    head = found.timm_head if timm else HEAD
    if headless and not any(name in shapes for name in head):
        expected = {name: shape for name, shape in expected.items() if name not in head}
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [printable(name) for name in shapes if name not in expected],
        "wrong shape": [
            f"{name} {shapes[name]} instead of {_wanted(name, expected[name], shapes[name], found)}"
            for name in expected
            if name in shapes and shapes[name] != expected[name]
        ],
    }
    if any(faults.values()):
        listed = []
        for fault, names in faults.items():
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            listed += [f"{fault} {', '.join(names[:MOST_NAMED])}{more}"] if names else []
        theirs = found.published + ("" if headless else ", with head")
        raise RunError(f"{source}: {'; '.join(listed)}; give {theirs if timm else 'a checkpoint of this project'}")
    return found


def _wanted(name: str, expected: tuple[int, ...], shape: tuple[int, ...], spec: Any) -> str:
    """The shape that there should be; of positions that no square grid has, what can be said."""
    if name == "pos_embed":
        patches = shape[-2] - spec.prefix if len(shape) > 1 else 0
        if patches < 1 or math.isqrt(patches) ** 2 != patches:
            return f"(1, {'1 + ' if spec.prefix else ''}a square, {expected[-1]})"
    return str(expected)


def _checksum(contents: Mapping[str, Any]) -> int:
    value = 0
    for name in sorted(contents):
        value = zlib.crc32(contents[name], zlib.crc32(name.encode(), value))
    return value


def _backbone(network: nn.Cell) -> Any:
    return network.network if isinstance(network, Forward) else network
