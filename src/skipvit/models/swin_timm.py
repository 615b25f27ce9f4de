"""timm's layout of a Swin Transformer's weights, and ours: the same numbers, except that timm

- counts blocks in each stage, `layers.S.blocks.N`, and what is between two stages is the later one's,
  `layers.S.downsample`; ours are `blocks.N` through all stages, and `downsample.S` after stage S;
- fuses q, k and v, cuts patches by convolution (as in `models.vit_timm`), and has its head under `head.fc`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from skipvit.models import vit_timm

Shapes = Mapping[str, tuple[int, ...]]


def from_timm(params: Mapping[str, np.ndarray], depths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The weights of a timm Swin in our layout, same order and dtypes."""
    return vit_timm.from_timm({ours(name, depths): value for name, value in params.items()})


def to_timm(params: Mapping[str, np.ndarray], depths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The weights of our Swin in timm's layout, the inverse of `from_timm`, same dtypes."""
    return {theirs(name, depths): value for name, value in vit_timm.to_timm(params).items()}


def timm_shapes(shapes: Shapes, depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of our layout in timm's."""
    return {theirs(name, depths): shape for name, shape in vit_timm.timm_shapes(shapes).items()}


def ours(name: str, depths: tuple[int, ...]) -> str:
    """Our name of a weight of timm's; one that it does not know stays."""
    firsts = [0, *accumulate(depths)]
    if match := re.match(r"layers\.(\d{1,3})\.blocks\.(\d{1,4})\.(.*)", name):
        stage = int(match[1])
        return f"blocks.{firsts[stage] + int(match[2])}.{match[3]}" if stage < len(depths) else name
    if match := re.match(r"layers\.(\d{1,3})\.downsample\.(.*)", name):
        return f"downsample.{int(match[1]) - 1}.{match[2]}"
    return name.replace("head.fc.", "head.")


def theirs(name: str, depths: tuple[int, ...]) -> str:
    """timm's name of a weight of ours."""
    kind, _, rest = name.partition(".")
    if kind == "blocks":
        block, _, rest = rest.partition(".")
        firsts = [0, *accumulate(depths)]
        stage = next(s for s in range(len(depths)) if int(block) < firsts[s + 1])
        return f"layers.{stage}.blocks.{int(block) - firsts[stage]}.{rest}"
    if kind == "downsample":
        stage, _, rest = rest.partition(".")
        return f"layers.{int(stage) + 1}.downsample.{rest}"
    return f"head.fc.{rest}" if kind == "head" else name


def numbers_of(shapes: Shapes, spec: Any) -> dict[str, Any]:
    """Numbers of a network that its weights, in either layout, tell; what they do not is as in `spec`."""
    found: dict[str, Any] = {}
    counts: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layers\.(\d{1,3})\.blocks\.(\d{1,4})\.", name):
            counts[int(match[1])] = max(counts.get(int(match[1]), 0), int(match[2]) + 1)
    widths = {}
    for name, shape in shapes.items():
        if match := re.match(r"blocks\.(\d{1,4})\.norm1\.weight", name):
            widths[int(match[1])] = shape[0]
    if widths and not counts:
        for stage, width in enumerate(sorted(set(widths.values()))):
            counts[stage] = sum(w == width for w in widths.values())
    if counts:
        found["depths"] = tuple(counts.get(stage, 1) for stage in range(max(counts) + 1))
    depths = found.get("depths", spec.depths)
    named = {ours(name, depths): shape for name, shape in shapes.items()}
    firsts = [0, *accumulate(depths)][:-1]
    tables = [named.get(f"blocks.{first}.attn.relative_position_bias_table", (0, 0)) for first in firsts]
    if all(len(table) == 2 and table[1] for table in tables):
        found["heads"] = tuple(table[1] for table in tables)
        found["window"] = (math.isqrt(tables[0][0]) + 1) // 2
    elif len(depths) != len(spec.heads):
        found["heads"] = (1,) * len(depths)
    kernel = named.get(vit_timm.KERNEL, ())
    if kernel:
        found["width"] = kernel[0]
        found["patch"] = kernel[-1] if len(kernel) == 4 else math.isqrt(kernel[1] // 3)
    if "head.weight" in named or "head.bias" in named:
        found["num_classes"] = named.get("head.weight", named.get("head.bias", (0,)))[0]
    return found
