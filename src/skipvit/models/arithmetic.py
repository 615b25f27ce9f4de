"""What a forward costs, by formula: multiply-accumulates by part and by block, and what the backward keeps. Without
MindSpore.

Counted are matrix products; norms, softmax, GELU and the gathering and scattering of tokens are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skipvit.routing.program import Program, Step, routed_stage

# A product's backward is two, one for each factor. The images need no gradient, nor do scores and selections.
TRAINING_TIMES = {"patch embedding": 2, "scorers": 1, "fused tokens": 2, "moving tokens": 2, "biases of kept tokens": 2}


@dataclass(frozen=True)
class Block:
    """One block of a forward.

    Attributes:
        attention, mlp: tokens that its halves see; they differ where a route starts at its MLP.
        macs: multiply-accumulates of an image's forward.
        steps: its two halves.
    """

    attention: int
    mlp: int
    macs: int
    steps: tuple[Step, Step]


def blocks_of(spec: Any, program: Program) -> tuple[Block, ...]:
    """The blocks of a forward, in order."""
    result = []
    for attend, feed in zip(program.of_kind("attend"), program.of_kind("feed")):
        macs = sum(sum(spec.products(step).values()) for step in (attend, feed))
        result.append(Block(attend.before.length, feed.before.length, macs, (attend, feed)))
    return tuple(result)


def forward_parts(spec: Any, program: Program, formulation: str = "gather") -> dict[str, int]:
    """Multiply-accumulates of one image's forward, by part.

    Args:
        formulation: of the routes; `matmul` moves tokens by matrix products, 0.3 % of ViT-S/16.
    """
    parts: dict[str, int] = {}
    for step in program.steps:
        for name, macs in spec.products(step).items():
            parts[name] = parts.get(name, 0) + macs
    if program.selections:
        moves = formulation == "matmul"
        width = routed_stage(spec).width
        parts["scorers"] = _scorers(spec, program, moves)
        parts["fused tokens"] = sum(s.carrier.adds * s.before.length * width for s in program.selections)
        moving = [*program.selections, *program.of_kind("restore")] if moves else []
        parts["moving tokens"] = sum(_moved(step, width) for step in moving)
    return parts


def forward_macs(spec: Any, program: Program, formulation: str = "gather") -> int:
    """Multiply-accumulates of one image's forward.

    The dense ViT-S/16 at 224 has 4.599 G; with EViT's routes the formula gives its published 4.0 to 2.3 G.
    """
    return sum(forward_parts(spec, program, formulation).values())


def training_macs(spec: Any, program: Program, formulation: str = "gather", head_only: bool = False) -> int:
    """Multiply-accumulates of one image's forward and backward. Where the head alone is trained, there is no other
    product in the backward than that of its weight's gradient."""
    parts = forward_parts(spec, program, formulation)
    if head_only:
        return sum(parts.values()) + parts["head"]
    return sum(TRAINING_TIMES.get(name, 3) * macs for name, macs in parts.items())


def activations(spec: Any, program: Program, compute: int) -> int:
    """Bytes that a forward keeps of an image for its backward; `compute`: of a number of the matrix products, 4 or
    2."""
    return sum(spec.activations(step, compute) for step in program.steps)


def _scorers(spec: Any, program: Program, moves: bool) -> int:
    """Of the scorers themselves, and what they read, e.g. the [CLS] row; also of tokens that bypassed a block."""
    steps: tuple[Any, ...] = program.steps
    width, total = routed_stage(spec).width, 0
    for step in steps:
        if step.kind == "score":
            total += step.scorer.products(step.before.patches, width) + spec.read_products(step, step.scorer.reads)
        elif step.kind == "rescore":
            total += _moved(step, width) if moves else 0
            total += spec.signal_products(step, step.reads) if step.asks_attention else 0
    return total


def _moved(step: Any, width: int) -> int:
    """A 0/1 matrix times tokens, into a route or out of it."""
    inner, outer = (step.after, step.before) if step.kind == "select" else (step.before, step.after)
    return (inner.length - step.carrier.adds) * outer.length * width
