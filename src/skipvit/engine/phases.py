"""The phases of a run: stretches of epochs that train one forward."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """Epochs [first, end) train the routed or the dense forward."""

    name: str
    routed: bool
    first: int
    end: int


def phases(dense_warmup: int, routed: int, dense_cooldown: int) -> tuple[Phase, ...]:
    """Phases from their lengths in epochs; empty ones are left out."""
    result, first = [], 0
    lengths = (
        ("dense warm-up", False, dense_warmup),
        ("routed", True, routed),
        ("dense cool-down", False, dense_cooldown),
    )
    for name, is_routed, length in lengths:
        if length:
            result.append(Phase(name, is_routed, first, first + length))
            first += length
    return tuple(result)
