"""Widths, depths and heads of the ViT family, as in DeiT (arXiv 2012.12877) and timm."""

from __future__ import annotations

from typing import Literal, NamedTuple

SizeName = Literal["tiny", "small", "base", "large"]


class Size(NamedTuple):
    """Shape of a Vision Transformer; the MLP is four times as wide as the tokens."""

    width: int
    depth: int
    heads: int

    def parameters(self, patch: int, tokens: int, classes: int) -> int:
        """Number of a classifier's parameters: patch embedding, [CLS], positions, blocks, last norm, head."""
        d = self.width
        block = 12 * d**2 + 13 * d  # q, k, v, projection 4 (d^2 + d); MLP 8 d^2 + 5 d; two norms 4 d
        return (3 * patch**2 + 1) * d + d + (1 + tokens) * d + self.depth * block + 2 * d + (d + 1) * classes


SIZES: dict[str, Size] = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}
