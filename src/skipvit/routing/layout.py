"""How the tokens of a sequence are laid out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Tokens of a sequence, in order.

    Attributes:
        prefix: tokens in front that no route touches: [CLS].
        patches: patch tokens, in order of position.
        suffix: tokens behind that no route touches: fused ones.
    """

    prefix: int
    patches: int
    suffix: int = 0

    @property
    def length(self) -> int:
        return self.prefix + self.patches + self.suffix
