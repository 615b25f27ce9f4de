"""Multiply-accumulates of one forward, by formula."""

from __future__ import annotations

from skipvit.models.routing import ATTENTION_SCORERS, Span
from skipvit.models.sizes import Size


def block_macs(sequence: int, width: int) -> int:
    """One block on `sequence` tokens: projections 4 N d^2, attention 2 N^2 d, MLP 8 N d^2."""
    return 12 * sequence * width**2 + 2 * sequence**2 * width


def forward_macs(size: Size, patch: int, tokens: int, classes: int, spans: tuple[Span, ...] = ()) -> int:
    """Multiply-accumulates of one picture's forward, dense or along routes.

    Counts patch projection, blocks, head, and the scorers' [CLS] rows; norms, softmax and the moving of tokens are not
    counted (the `matmul` formulation adds 2 * kept * tokens * width a restoring route, 0.3 % of ViT-S/16).
    The dense ViT-S/16 at 224 has 4.599 G; the formula reproduces EViT's published 4.0 to 2.3 G.
    """
    total = tokens * 3 * patch**2 * size.width + size.width * classes
    sequence, at, previous = 1 + tokens, 0, None
    for span in spans:
        total += (span.start - at) * block_macs(sequence, size.width)
        total += (span.end - span.start) * block_macs(span.sequence, size.width)
        if span.scorer in ATTENTION_SCORERS:
            total += sequence * size.width
            if previous is not None and previous.restore and previous.end == span.start:
                # Keys (and values, if read) of the tokens that bypassed the block before.
                total += sequence * size.width**2 * (2 if span.scorer == "cls_attention_value" else 1)
        if not span.restore:
            sequence = span.sequence
        at, previous = span.end, span
    return total + (size.depth - at) * block_macs(sequence, size.width)
