"""`skipvit convert`: timm's weights (.safetensors) to a MindSpore checkpoint (.ckpt) and back, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

from skipvit.util.errors import UsageError
from skipvit.util.files import expanded
from skipvit.util.text import printable
from skipvit.weights.files import OURS, TIMM, read_weights, write_weights


def convert(source: Path, target: Path) -> str:
    """Translate `source` into `target`, .safetensors to .ckpt or .ckpt to .safetensors.

    Returns:
        One line on what was converted, and a second if anything was widened or left out.

    Raises:
        UsageError: other endings, no source, an existing target, no folder for it.
        RunError: the source is damaged or not a ViT's, or the target cannot be written; nothing is left behind.
    """
    source, target = expanded(source), expanded(target)
    if {source.suffix, target.suffix} != {TIMM, OURS}:
        raise UsageError(f"{source} to {target}: nothing to convert; one must end in {TIMM}, the other in {OURS}")
    if not os.path.lexists(source):
        raise UsageError(f"{source}: no such file; give the weights to convert")
    if os.path.lexists(target):
        raise UsageError(f"{target}: exists and is not overwritten; remove it or give another name")
    if not os.path.isdir(target.parent):
        raise UsageError(f"{target.parent}: no such folder; create it first")
    found = read_weights(source)
    spec = found.spec
    write_weights(spec.to_timm(found.arrays) if target.suffix == TIMM else found.arrays, target)
    lines = [
        f"{printable(str(target))}: {spec.parameters():,} parameters, {spec.described()}, {spec.num_classes} classes"
    ]
    if found.widened:
        lines.append(f"widened to float32: {found.widened} arrays of 16 bits")
    if found.left_out:
        lines.append(f"left out: {found.left_out} entries of the trainer")
    return "\n".join(lines)
