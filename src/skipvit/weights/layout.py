"""Are these the weights of a network, and of which?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skipvit.util.errors import RunError
from skipvit.util.text import printable

HEAD = ("head.weight", "head.bias")
MOST_NAMED = 8


def check(params: Mapping[str, np.ndarray], spec: Any, timm: bool, source: Path, headless: bool = False) -> Any:
    """The specification of complete weights: one like `spec`, with the numbers that the weights tell.

    Args:
        timm: they are in timm's layout, else in ours.
        headless: they may have no head.

    Raises:
        RunError: names are missing, unexpected or of the wrong shape.
    """
    shapes = {name: value.shape for name, value in params.items()}
    found = spec.like(shapes)
    expected = found.timm_shapes() if timm else found.shapes()
    if headless and not any(name in shapes for name in HEAD):
        expected = {name: shape for name, shape in expected.items() if name not in HEAD}
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
        listed = "; ".join(f"{fault} {_some(names)}" for fault, names in faults.items() if names)
        head = "" if headless else ", with head"
        theirs = f"a timm vit_* or deit_*, not distilled, without registers{head}"
        raise RunError(f"{source}: {listed}; give {theirs if timm else 'a checkpoint of this project'}")
    return found


def _wanted(name: str, expected: tuple[int, ...], shape: tuple[int, ...], spec: Any) -> str:
    """The shape that there should be; of positions that no square grid has, what can be said."""
    if name == "pos_embed":
        patches = shape[-2] - spec.prefix if len(shape) > 1 else 0
        if patches < 1 or math.isqrt(patches) ** 2 != patches:
            return f"(1, {'1 + ' if spec.prefix else ''}a square, {expected[-1]})"
    return str(expected)


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
