"""Widths, depths and heads of the ViT family, as in DeiT (arXiv 2012.12877) and timm."""

from __future__ import annotations

from typing import Literal, NamedTuple

SizeName = Literal["tiny", "small", "base", "large"]


class Size(NamedTuple):
    """Shape of a Vision Transformer; the MLP is four times as wide as the tokens."""

    width: int
    depth: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}
