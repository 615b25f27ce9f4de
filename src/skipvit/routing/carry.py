"""Carriers: what becomes of the tokens that a route does not keep.

A carrier says how many tokens it adds to the sequence and whether the others return, and has three functions of a
selector: into the span, where each token is then, and out of it again. There are selectors of tensors
(`routing.select`) and one that writes an ONNX graph (`weights.onnx`). Sources: SkipViT (arXiv 2401.15293) for the
bypass, EViT (2202.07800) for the fused token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from skipvit.util.lazy import ops


@dataclass(frozen=True)
class Carrier:
    """The others are gone for good.

    Attributes:
        adds: tokens that stand for them in the span, behind all others.
        returns: whether they come back where the span ends.
    """

    adds: ClassVar[int] = 0
    returns: ClassVar[bool] = False

    def enter(self, select: Any, x: Any, mask: Any, weights: Any) -> Any:
        """Tokens (B, before, D) to those of the span (B, after, D).

        Args:
            mask: what the selector's `mask` gave; of tensors float32 (B, before), 1 for the tokens that stay.
            weights: float32 (B, patches) >= 0, what each patch weighs if it is summed up.
        """
        return select.take(x, mask)

    def places(self, select: Any, mask: Any) -> Any:
        """Where each token of a sequence (B, before) is in the span: float32 (B, before), -1 for nowhere."""
        return mask * ops.CumSum()(mask, 1) - 1.0


@dataclass(frozen=True)
class Bypass(Carrier):
    """The others keep the values that they had and return to their places."""

    returns: ClassVar[bool] = True

    def leave(self, select: Any, inside: Any, x: Any, mask: Any) -> Any:
        """Tokens of the span (B, after, D) among those that were before it, x (B, before, D)."""
        return select.put(inside, x, mask)


@dataclass(frozen=True)
class Fuse(Carrier):
    """One token goes on for the others: their mean, weighted by their scores."""

    adds: ClassVar[int] = 1

    def enter(self, select: Any, x: Any, mask: Any, weights: Any) -> Any:
        return select.take_and_fuse(x, mask, weights)

    def places(self, select: Any, mask: Any) -> Any:
        return mask * ops.CumSum()(mask, 1) - 1.0 + (1.0 - mask) * (select.length + 1.0)


@dataclass(frozen=True)
class FuseBypass(Fuse):
    """Their mean goes through the span and ends there; they themselves return."""

    returns: ClassVar[bool] = True

    def leave(self, select: Any, inside: Any, x: Any, mask: Any) -> Any:
        return select.put(select.without_added(inside), x, mask)


def carrier_of(restore: bool, fuse: bool) -> Carrier:
    """The carrier of a route."""
    if fuse:
        return FuseBypass() if restore else Fuse()
    return Bypass() if restore else Carrier()
