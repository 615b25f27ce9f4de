"""timm's layout of a Vision Transformer's weights, and ours: the same numbers under the same names, except that timm

- fuses the attention's projections: `blocks.N.attn.qkv.{weight,bias}`, rows of q, k, v in turn; ours are three;
- cuts patches by convolution: `patch_embed.proj.weight` (D, 3, P, P); ours is (D, P * P * 3): row, column, channel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

KERNEL = "patch_embed.proj.weight"
Shapes = Mapping[str, tuple[int, ...]]


def from_timm(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a timm ViT in our layout, same order and dtypes.

    `attn.qkv.{weight (3D, D), bias (3D,)}` become `attn.{q,k,v}.{weight (D, D), bias (D,)}`, the patch kernel
    (D, 3, P, P) becomes (D, P * P * 3); all else is passed on.

    Raises:
        ValueError: a shape other than these; `weights.files` checks them first.
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


def to_timm(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of our ViT in timm's layout, the inverse of `from_timm`, same order and dtypes.

    Raises:
        KeyError, ValueError: q, k or v alone, or a shape that is not ours; `weights.files` checks them first.
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


def timm_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of our layout in timm's: what `to_timm` makes of arrays."""
    theirs = {}
    for name, shape in shapes.items():
        if ".attn.q." in name:
            theirs[name.replace(".q.", ".qkv.")] = (3 * shape[0], *shape[1:])
        elif name == KERNEL:
            patch = math.isqrt(shape[1] // 3)
            theirs[name] = (shape[0], 3, patch, patch)
        elif ".attn.k." not in name and ".attn.v." not in name:
            theirs[name] = shape
    return theirs


def numbers_of(shapes: Shapes, prefix: int) -> dict[str, Any]:
    """Numbers of a network that its weights, in either layout, complete or not, tell: by their specification's names.

    Where the name that says it is missing it is 1, num_classes 0.
    """

    def side(name: str, i: int) -> int:
        shape = shapes.get(name, ())
        return shape[i] if -len(shape) <= i < len(shape) else 0

    blocks = [re.match(r"blocks\.(\d{1,3})\.", name) for name in shapes]
    kernel = shapes.get(KERNEL, ())
    patch = kernel[-1] if len(kernel) == 4 else math.isqrt(math.prod(kernel[1:]) // 3) if kernel else 0
    patch = max(1, patch)
    return {
        "depth": 1 + max((int(match[1]) for match in blocks if match), default=0),
        "width": side("cls_token", -1) or side("pos_embed", -1) or side("norm.weight", 0) or 1,
        "patch": patch,
        "image_size": patch * max(1, math.isqrt(max(0, side("pos_embed", -2) - prefix))),
        "num_classes": side("head.weight", 0) or side("head.bias", 0),
    }
