"""How the tokens of a sequence are laid out, and which of them a route may take out."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor


@dataclass(frozen=True)
class Layout:
    """Tokens of a sequence, in order.

    Attributes:
        prefix: tokens in front that no route touches: [CLS].
        patches: patch tokens, in the order of their stage (see `Stage.order`).
        suffix: tokens behind that no route touches: fused ones.
        of: patches that there were before any route; None: as many.
    """

    prefix: int
    patches: int
    suffix: int = 0
    of: int | None = field(default=None, compare=False)

    @property
    def length(self) -> int:
        return self.prefix + self.patches + self.suffix

    @property
    def places(self) -> int:
        """Patches that there were before any route."""
        return self.of or self.patches


@dataclass(frozen=True)
class Cells:
    """Patches that a route must treat alike, in order of the sequence.

    Attributes:
        groups: patches of each cell; of each a fixed number stays.
        window: cells in turn that make a window of attention: each window keeps the same number.
        unit: patches in turn that stay or go together.
    """

    groups: tuple[int, ...]
    window: int = 1
    unit: int = 1

    def kept(self, keep_ratio: float) -> tuple[int, ...]:
        """How many patches of each cell stay.

        A window keeps round(keep_ratio x its units) of them, at least 1. Its cells share them in proportion to their
        size: each the whole part of its share, and what is left goes to the largest remainders, of equal ones to the
        last.
        """
        sizes = [count // self.unit for count in self.groups[: self.window]]
        total = sum(sizes)
        kept = max(1, round(keep_ratio * total))
        counts = [floor(kept * size / total) for size in sizes]
        remainders = [kept * size % total for size in sizes]
        for i in sorted(range(len(sizes)), key=lambda i: (remainders[i], i), reverse=True)[: kept - sum(counts)]:
            counts[i] += 1
        return tuple(count * self.unit for count in counts) * (len(self.groups) // self.window)


@dataclass(frozen=True)
class Stage:
    """Blocks through which neither the number nor the width of the tokens changes.

    Attributes:
        depth: its blocks.
        width: of the tokens.
        layout: of the tokens that enter its first block.
        cells: how routes may take patches out; None: freely.
        order: row-major position in the grid of each patch of the sequence; None: as they come.
        keeps_grid: every patch has a place that its blocks or what follows them need: a route's tokens must return, and
            there is no place for one more.
        gives: signals that scorers may read of its blocks, besides `cls_row` where there is [CLS].
        name: in messages.
    """

    depth: int
    width: int
    layout: Layout
    cells: Cells | None = None
    order: tuple[int, ...] | None = None
    keeps_grid: bool = False
    gives: tuple[str, ...] = ("received", "q", "k", "v", "entered", "tokens")
    name: str = "the model"

    @property
    def signals(self) -> tuple[str, ...]:
        """What scorers may read here."""
        return ("cls_row", *self.gives) if self.layout.prefix else self.gives

    def kept(self, keep_ratio: float, patches: int) -> tuple[int, ...]:
        """Of `patches` that are left, how many of each cell stay."""
        return (self.cells or Cells((patches,))).kept(keep_ratio)
