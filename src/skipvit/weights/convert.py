"""`skipvit convert`: timm weights (.safetensors) to a MindSpore checkpoint (.ckpt) and back, bit for bit.

Both layouts hold the same numbers under the same names, except that timm

- fuses the attention's projections: `blocks.N.attn.qkv.{weight,bias}`, rows of q, k, v in turn; ours are three;
- cuts patches by convolution: `patch_embed.proj.weight` (D, 3, P, P); ours is (D, P * P * 3): row, column, channel.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
import safetensors
from safetensors.numpy import save_file

from skipvit.engine.checkpoint import NOT_MODEL
from skipvit.util.errors import RunError, UsageError

TIMM_ENDING, OUR_ENDING = ".safetensors", ".ckpt"
KERNEL = "patch_embed.proj.weight"
HEAD = ("head.weight", "head.bias")
LISTED_NAMES = 8
WRITE_ERRORS = (OSError, RuntimeError, ValueError, safetensors.SafetensorError)


class Geometry(NamedTuple):
    """What a set of weights says of its network; 0 where the name that says it is missing."""

    depth: int
    width: int
    patch: int
    grid: int
    classes: int


def from_timm(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a timm ViT in our layout, same order and dtypes.

    `attn.qkv.{weight (3D, D), bias (3D,)}` become `attn.{q,k,v}.{weight (D, D), bias (D,)}`, the patch kernel
    (D, 3, P, P) becomes (D, P * P * 3); all else is passed on.

    Raises:
        ValueError: a shape other than these; `convert` checks them first.
    """
    ours = {}
    for name, value in params.items():
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", np.split(value, 3)):
                ours[name.replace(".qkv.", f".{part}.")] = rows
        elif name == KERNEL:
            ours[name] = value.transpose(0, 2, 3, 1).reshape(len(value), -1)
        else:
            ours[name] = value
    return ours


def to_timm(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of our ViT in timm's layout, the inverse of `from_timm`, same order and dtypes.

    `attn.{q,k,v}.{weight (D, D), bias (D,)}` become `attn.qkv.{weight (3D, D), bias (3D,)}`, the patch matrix
    (D, P * P * 3) becomes (D, 3, P, P); all else is passed on.

    Raises:
        KeyError, ValueError: q, k or v alone, or a shape other than these; `convert` checks them first.
    """
    theirs = {}
    for name, value in params.items():
        if ".attn.q." in name:
            parts = [params[name.replace(".q.", f".{part}.")] for part in "qkv"]
            theirs[name.replace(".q.", ".qkv.")] = np.concatenate(parts)
        elif name == KERNEL:
            patch = math.isqrt(value.shape[1] // 3)
            kernel = value.reshape(len(value), patch, patch, 3).transpose(0, 3, 1, 2)
            theirs[name] = np.ascontiguousarray(kernel)  # safetensors writes memory as it lies
        elif ".attn.k." not in name and ".attn.v." not in name:
            theirs[name] = value
    return theirs


def geometry(params: dict[str, np.ndarray]) -> Geometry:
    """Depth, width, patch, patches along a side and classes of weights in either layout, complete or not."""

    def axis(name: str, i: int) -> int:
        return params[name].shape[i] if name in params and -params[name].ndim <= i < params[name].ndim else 0

    blocks = [re.match(r"blocks\.(\d{1,3})\.", name) for name in params]
    kernel = params.get(KERNEL, np.empty((0, 0)))
    tokens = axis("pos_embed", -2) - 1  # one is [CLS]
    return Geometry(
        depth=1 + max((int(match[1]) for match in blocks if match), default=0),  # without any, block 0 is missing
        width=axis("cls_token", -1) or axis("pos_embed", -1) or axis("norm.weight", 0),
        patch=kernel.shape[-1] if kernel.ndim == 4 else math.isqrt(math.prod(kernel.shape[1:]) // 3),
        grid=max(1, round(math.sqrt(max(0, tokens)))) if "pos_embed" in params else 0,
        classes=axis("head.weight", 0) or axis("head.bias", 0),
    )


def expected_shapes(shape: Geometry, timm: bool) -> dict[str, tuple[int, ...]]:
    """Every name of a ViT of this geometry and its shape, in timm's layout or in ours."""
    width, patch = shape.width, shape.patch
    qkv = {"attn.qkv": (3 * width, width)} if timm else {f"attn.{part}": (width, width) for part in "qkv"}
    layers = {
        "norm1": (width,),
        **qkv,
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    weights = {"patch_embed.proj": (width, 3, patch, patch) if timm else (width, patch * patch * 3)}
    weights |= {f"blocks.{i}.{layer}": weight for i in range(shape.depth) for layer, weight in layers.items()}
    weights |= {"norm": (width,), "head": (shape.classes, width)}
    expected = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + shape.grid**2, width)}
    for layer, weight in weights.items():
        expected |= {f"{layer}.weight": weight, f"{layer}.bias": weight[:1]}
    return expected


def check(params: dict[str, np.ndarray], timm: bool, source: Path, headless: bool = False) -> Geometry:
    """The geometry of complete weights; headless: of those without a head too.

    Raises:
        RunError: names are missing, unexpected or of the wrong shape.
    """
    shape = geometry(params)
    expected = expected_shapes(shape, timm)
    if headless and not any(name in params for name in HEAD):
        expected = {name: value for name, value in expected.items() if name not in HEAD}
    wrong = [
        f"{name} {params[name].shape} instead of {expected[name]}"
        for name in expected
        if name in params and params[name].shape != expected[name]
    ]
    faults = {
        "missing": [name for name in expected if name not in params],
        "unexpected": [name for name in params if name not in expected],
        "wrong shape": wrong,
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault} {_join(names)}" for fault, names in faults.items() if names)
        ours, head = "a checkpoint of this project's ViT", "" if headless else ", with head"
        wanted = f"a timm vit_* or deit_*, not distilled, without registers{head}" if timm else ours
        raise RunError(f"{source}: {listed}; give {wanted}")
    return shape


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a safetensors file as float32, and a note on what was widened (or "").

    Raises:
        RunError: the file is damaged, is something else, or holds other types than float32, float16 and bfloat16.
    """
    try:
        entries = dict(sorted(safetensors.deserialize(path.read_bytes())))  # they come in a random order
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({_line(error)}); export or copy it again") from error
    _refuse_types(path, {name: entry["dtype"] for name, entry in entries.items()}, ("F32", "F16", "BF16"))
    params = {name: _decode(entry["dtype"], entry["data"], entry["shape"]) for name, entry in entries.items()}
    widened = sum(entry["dtype"] != "F32" for entry in entries.values())
    return params, f"widened to float32: {widened} arrays of 16 bits" if widened else ""


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The model's arrays of a MindSpore checkpoint as float32, and a note on what was left out (or "").

    Raises:
        RunError: the file is damaged, is something else, or holds other types than float32, float16 and bfloat16.
    """
    try:
        entries = ms.load_checkpoint(str(path))
    except Exception as error:  # of whatever type MindSpore's parser or the disk comes up with
        raise RunError(f"{path}: not a readable MindSpore checkpoint; it is damaged or something else") from error
    model = {name: value for name, value in entries.items() if not name.startswith(NOT_MODEL)}
    types = {name: str(getattr(value, "dtype", "text")) for name, value in model.items()}
    _refuse_types(path, types, ("Float32", "Float16", "BFloat16"))
    params = {name: value.asnumpy().astype(np.float32, copy=False) for name, value in model.items()}
    others = len(entries) - len(model)
    return params, f"left out: {others} entries of the trainer" if others else ""


def write_safetensors(params: dict[str, np.ndarray], path: Path) -> None:
    """Write arrays as a safetensors file with the mark ("format": "pt") that timm and Hugging Face tools look for."""
    save_file(params, path, metadata={"format": "pt"})


def write_checkpoint(params: dict[str, np.ndarray], path: Path) -> None:
    """Write arrays as a MindSpore checkpoint; `path` ends in .ckpt, else MindSpore appends it."""
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(value)} for name, value in params.items()], str(path))


def convert(source: Path, target: Path) -> str:
    """Translate `source` into `target`, .safetensors to .ckpt or .ckpt to .safetensors.

    Returns:
        One line on what was converted, and a second if anything was widened or left out.

    Raises:
        UsageError: other endings, no source, an existing target, no folder for it.
        RunError: the source is damaged or not a ViT's, or the target cannot be written; nothing is left behind.
    """
    source, target = Path(source), Path(target)
    _check_paths(source, target)
    timm = source.suffix == TIMM_ENDING
    params, note = (read_safetensors if timm else read_checkpoint)(source)
    shape = check(params, timm, source)
    _write(from_timm(params) if timm else to_timm(params), target)
    count = sum(value.size for value in params.values())
    summary = (
        f"{target}: {count:,} parameters, depth {shape.depth}, width {shape.width}, patch {shape.patch}, "
        f"image {shape.grid * shape.patch}, {shape.classes} classes"
    )
    return f"{summary}\n{note}" if note else summary


def _check_paths(source: Path, target: Path) -> None:
    if {source.suffix, target.suffix} != {TIMM_ENDING, OUR_ENDING}:
        raise UsageError(
            f"{source} to {target}: nothing to convert; one must end in {TIMM_ENDING}, the other in {OUR_ENDING}"
        )
    if not os.path.isfile(source):
        raise UsageError(f"{source}: no such file; give the weights to convert")
    if os.path.lexists(target):
        raise UsageError(f"{target}: exists and is not overwritten; remove it or give another name")
    if not os.path.isdir(target.parent):
        raise UsageError(f"{target.parent}: no such folder; create it first")


def _write(params: dict[str, np.ndarray], target: Path) -> None:
    write = write_checkpoint if target.suffix == OUR_ENDING else write_safetensors
    try:
        # A folder, not a file, to write in: MindSpore leaves a half-written file of its own naming when it fails.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
            temporary = Path(folder) / target.name
            write(params, temporary)
            temporary.chmod(0o644)  # MindSpore lets only the owner read it, and no one write
            temporary.rename(target)
    except WRITE_ERRORS as error:
        raise RunError(f"{target}: cannot be written ({_line(error)}); check the folder and free space") from error


def _refuse_types(path: Path, types: dict[str, str], allowed: tuple[str, ...]) -> None:
    wrong = [f"{name} ({kind})" for name, kind in types.items() if kind not in allowed]
    if wrong:
        raise RunError(f"{path}: {_join(wrong)} must be float32, float16 or bfloat16; cast or leave out these entries")


def _decode(dtype: str, data: bytearray, shape: list[int]) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32; NumPy has no such type
        flat = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        flat = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32, copy=False)
    return flat.reshape(shape)


def _join(names: list[str]) -> str:
    rest = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
