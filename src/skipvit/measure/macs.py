"""Multiply-accumulates of a network by formula, by part and by block.

Counted are matrix products; norms, softmax, GELU and the gathering and scattering of tokens are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from skipvit.models.sizes import Size
from skipvit.routing.routing import Span
from skipvit.routing.scorers import SCORERS


@dataclass(frozen=True)
class Sequence:
    """Tokens that a block sees, [CLS] and fused ones included: they differ where a route starts at its MLP."""

    attention: int
    mlp: int


def sequences(depth: int, tokens: int, spans: tuple[Span, ...] = ()) -> tuple[Sequence, ...]:
    """The tokens of each block."""
    attention, mlp = [1 + tokens] * depth, [1 + tokens] * depth
    for span in spans:
        for part, first in ((attention, span.first_block), (mlp, span.start)):
            end = span.end if span.restore else depth
            part[first:end] = [span.sequence] * (end - first)
    return tuple(Sequence(*both) for both in zip(attention, mlp))


def block_parts(sequence: Sequence, width: int) -> dict[str, int]:
    """One block on N tokens: q, k, v and output projection 4 N d^2, attention 2 N^2 d, MLP 8 N d^2."""
    return {
        "attention projections": 4 * sequence.attention * width**2,
        "attention": 2 * sequence.attention**2 * width,
        "MLP": 8 * sequence.mlp * width**2,
    }


def block_macs(sequence: Sequence, width: int) -> int:
    return sum(block_parts(sequence, width).values())


def forward_parts(
    size: Size, patch: int, tokens: int, classes: int, spans: tuple[Span, ...] = (), formulation: str = "gather"
) -> dict[str, int]:
    """Multiply-accumulates of one image's forward, dense or along routes, by part.

    Args:
        formulation: of the routes; `matmul` moves tokens by matrix products, 0.3 % of ViT-S/16.
    """
    width = size.width
    parts = {"patch embedding": tokens * 3 * patch**2 * width}
    for sequence in sequences(size.depth, tokens, spans):
        for name, macs in block_parts(sequence, width).items():
            parts[name] = parts.get(name, 0) + macs
    parts["head"] = width * classes
    if spans:
        moves = formulation == "matmul"
        parts["scorers"] = sum(_scorer_macs(span, before, width, moves) for span, before in zip(spans, (None, *spans)))
        parts["fused tokens"] = sum(_entering(span) * width for span in spans if span.fuse)
        parts["moving tokens"] = sum((1 + span.restore) * _move_macs(span, width) for span in spans) if moves else 0
    return parts


def forward_macs(
    size: Size, patch: int, tokens: int, classes: int, spans: tuple[Span, ...] = (), formulation: str = "gather"
) -> int:
    """Multiply-accumulates of one image's forward, dense or along routes.

    The dense ViT-S/16 at 224 has 4.599 G; the formula reproduces EViT's published 4.0 to 2.3 G.
    """
    return sum(forward_parts(size, patch, tokens, classes, spans, formulation).values())


def training_macs(
    size: Size,
    patch: int,
    tokens: int,
    classes: int,
    spans: tuple[Span, ...] = (),
    formulation: str = "gather",
    head_only: bool = False,
) -> int:
    """Multiply-accumulates of one image's forward and backward.

    The backward of a product is two, one for each factor; the images need no gradient, nor do scores and selections. Where
    the head alone is trained, there is no other product than that of its weight's gradient.
    """
    parts = forward_parts(size, patch, tokens, classes, spans, formulation)
    if head_only:
        return sum(parts.values()) + parts["head"]
    times = {"patch embedding": 2, "scorers": 1, "fused tokens": 2, "moving tokens": 2}
    return sum(times.get(name, 3) * macs for name, macs in parts.items())


def _entering(span: Span) -> int:
    """Tokens of the sequence that a route selects from."""
    return 1 + span.tokens + span.extras


def _scorer_macs(span: Span, before: Span | None, width: int, moves: bool) -> int:
    """The [CLS] row; and where a route follows another at once, keys (and values, if read) of the tokens that bypassed the block before,
    which come back for it."""
    scorer = SCORERS[span.scorer]
    if not scorer.attention:
        return 0
    macs = _entering(span) * width
    follows = before is not None and before.end == span.start and before.first_block < before.end
    if follows and before.restore and span.reads_before:
        macs += _entering(span) * width**2 * (2 if scorer.values else 1)
        macs += _move_macs(before, width) if moves else 0
    return macs


def _move_macs(span: Span, width: int) -> int:
    """A 0/1 matrix times tokens, into the route or out of it."""
    return (1 + span.kept + span.extras) * _entering(span) * width
