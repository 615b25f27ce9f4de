"""The published layouts of Pyramid Vision Transformers' weights, and ours: the same numbers, except that they

- count blocks and norms in each stage: timm's `stages.S.blocks.N`, `stages.S.norm` and `stages.S.downsample` (version
  2), the original's `block1.N`, `patch_embed1`, `pos_embed1` (version 1, which timm has not); ours are `blocks.N`
  through all stages, `norms.S` and `norm`, and `downsample.S` after stage S;
- fuse k and v, `attn.kv`, rows of k and v in turn; ours are two;
- have convolutions where kernels do not overlap: (D, C, P, P); ours are matrices (D, P * P * C): row, column, channel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


def from_timm(params: Mapping[str, np.ndarray], spec: Any) -> dict[str, np.ndarray]:
    """Published weights in our layout, same dtypes."""
    result = {}
    for name, value in params.items():
        if ".attn.kv." in name:
            for part, rows in zip("kv", np.split(value, 2)):
                result[ours(name, spec).replace(".kv.", f".{part}.")] = rows
            continue
        name = ours(name, spec)
        result[name] = value.transpose(0, 2, 3, 1).reshape(len(value), -1) if _is_matrix(name, spec) else value
    return result


def to_timm(params: Mapping[str, np.ndarray], spec: Any) -> dict[str, np.ndarray]:
    """Our weights in the published layout, the inverse of `from_timm`, same dtypes."""
    result = {}
    for name, value in params.items():
        if ".attn.v." in name:
            continue
        if ".attn.k." in name:
            parts = [value, params[name.replace(".k.", ".v.")]]
            result[theirs(name, spec).replace(".k.", ".kv.")] = np.concatenate(parts)
        elif _is_matrix(name, spec):
            side = _side(name, value.shape, spec)
            kernel = value.reshape(len(value), side, side, -1).transpose(0, 3, 1, 2)
            result[theirs(name, spec)] = np.ascontiguousarray(kernel)  # safetensors writes memory as it lies
        else:
            result[theirs(name, spec)] = value
    return result


def timm_shapes(shapes: Shapes, spec: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of our layout in the published one: what `to_timm` makes of arrays."""
    result = {}
    for name, shape in shapes.items():
        if ".attn.v." in name:
            continue
        if ".attn.k." in name:
            result[theirs(name, spec).replace(".k.", ".kv.")] = (2 * shape[0], *shape[1:])
        elif _is_matrix(name, spec):
            side = _side(name, shape, spec)
            result[theirs(name, spec)] = (shape[0], shape[1] // side**2, side, side)
        else:
            result[theirs(name, spec)] = shape
    return result


def _is_matrix(name: str, spec: Any) -> bool:
    """Whether a weight, by our name, is a kernel there and a matrix here."""
    if name.endswith(".attn.sr.weight"):
        return True
    return spec.version == 1 and re.fullmatch(r"(patch_embed|downsample\.\d+)\.proj\.weight", name) is not None


def _side(name: str, shape: tuple[int, ...], spec: Any) -> int:
    """Of the kernel."""
    if name.endswith(".attn.sr.weight"):
        return math.isqrt(shape[1] // shape[0])
    return spec.patch if name.startswith("patch_embed") else 2


def ours(name: str, spec: Any) -> str:
    """Our name of a published weight; one that it does not know stays."""
    firsts, last = [0, *accumulate(spec.depths)], len(spec.depths) - 1
    if match := re.match(r"(?:stages\.(\d{1,2})\.blocks|block(\d{1,2}))\.(\d{1,4})\.(.*)", name):
        stage = int(match[1]) if match[1] else int(match[2]) - 1
        return f"blocks.{firsts[stage] + int(match[3])}.{match[4]}" if 0 <= stage <= last else name
    if match := re.match(r"stages\.(\d{1,2})\.(norm|downsample)\.(.*)", name):
        stage, kind, rest = int(match[1]), match[2], match[3]
        if kind == "downsample":
            return f"downsample.{stage - 1}.{rest}"
        return f"norm.{rest}" if stage == last else f"norms.{stage}.{rest}"
    if match := re.fullmatch(r"(patch_embed|pos_embed)(\d{1,2})(\..*)?", name):
        stage, rest = int(match[2]) - 1, match[3] or ".pos_embed"
        return f"patch_embed{rest}" if stage == 0 else f"downsample.{stage - 1}{rest}"
    return f"downsample.{last - 1}.cls_token" if name == "cls_token" else name


def theirs(name: str, spec: Any) -> str:
    """The published name of a weight of ours."""
    firsts, last, (kind, _, rest) = [0, *accumulate(spec.depths)], len(spec.depths) - 1, name.partition(".")
    first, _, after = rest.partition(".")
    if kind == "blocks":
        stage = spec.stage_of_block(int(first))
        number = int(first) - firsts[stage]
        return f"block{stage + 1}.{number}.{after}" if spec.version == 1 else f"stages.{stage}.blocks.{number}.{after}"
    if spec.version == 2:
        if kind == "norms":
            return f"stages.{first}.norm.{after}"
        if kind == "downsample":
            return f"stages.{int(first) + 1}.downsample.{after}"
        return f"stages.{last}.norm.{rest}" if kind == "norm" else name
    if kind in ("patch_embed", "downsample"):
        stage, what = (0, rest) if kind == "patch_embed" else (int(first) + 1, after)
        special = {"pos_embed": f"pos_embed{stage + 1}", "cls_token": "cls_token"}
        return special.get(what, f"patch_embed{stage + 1}.{what}")
    return name


def numbers_of(shapes: Shapes, spec: Any) -> dict[str, Any]:
    """Numbers of a network that its weights, in either layout, tell; what they do not is as in `spec`."""
    counts: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"(?:stages\.(\d{1,2})\.blocks|block(\d{1,2}))\.(\d{1,4})\.", name):
            stage = int(match[1]) if match[1] else int(match[2]) - 1
            counts[stage] = max(counts.get(stage, 0), int(match[3]) + 1)
    if not counts:
        norms = {name: shape for name, shape in shapes.items() if re.fullmatch(r"blocks\.\d{1,4}\.norm1\.weight", name)}
        for stage, width in enumerate(sorted({shape[0] for shape in norms.values()})):
            counts[stage] = sum(shape[0] == width for shape in norms.values())
    if not counts:
        return {}
    depths = tuple(counts.get(stage, 1) for stage in range(max(counts) + 1))
    stages = SimpleNamespace(depths=depths)
    named = {ours(name, stages): shape for name, shape in shapes.items()}
    firsts = [0, *accumulate(depths)][:-1]

    def side(name: str, i: int) -> int:
        shape = named.get(name, ())
        return shape[i] if -len(shape) <= i < len(shape) else 1

    widths = tuple(side(f"blocks.{first}.norm1.weight", 0) for first in firsts)
    found: dict[str, Any] = {"depths": depths, "widths": widths, "num_classes": side("head.weight", 0)}
    hidden = [side(f"blocks.{first}.mlp.fc1.weight", 0) for first in firsts]
    found["mlp_ratios"] = tuple(max(1, inside // width) for inside, width in zip(hidden, widths))
    if not spec.linear:
        reductions = [_reduction(named.get(f"blocks.{first}.attn.sr.weight", ())) for first in firsts]
        found["reductions"] = tuple(reductions)
    kernel = named.get("patch_embed.proj.weight", ())
    if kernel:
        patch = kernel[-1] if len(kernel) == 4 else math.isqrt(kernel[1] // 3)
        found["patch"] = patch if spec.version == 1 else (patch + 1) // 2
        found["image_size"] = _image_size(named, found["patch"], spec)
    if len(found["widths"]) != len(spec.heads):
        found["heads"] = (1,) * len(depths)
    return found


def _image_size(named: Shapes, patch: int, spec: Any) -> int:
    """Pixels along a side, as far as positions tell."""
    positions = named.get("patch_embed.pos_embed", ())
    return patch * max(1, math.isqrt(positions[1])) if len(positions) == 3 else spec.image_size


def _reduction(shape: tuple[int, ...]) -> int:
    """Side of the cells that a weight reduces, in either layout."""
    return shape[-1] if len(shape) == 4 else max(1, math.isqrt(shape[1] // shape[0])) if len(shape) == 2 else 1
