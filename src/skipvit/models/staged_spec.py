"""What specifications of backbones of several stages have in common. Without MindSpore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

from skipvit.routing.layout import Stage
from skipvit.routing.program import Downsample, Step

Numbers = int | tuple[int, ...] | list[int]


@dataclass(frozen=True)
class StagedSpec(ABC):
    """Stages of ever fewer and wider tokens. A family says what `stages` and `shapes` are.

    Attributes:
        depths: blocks of each stage.
        heads: of attention, in each stage.
        patch: side of the first stage's patches, pixels.
        image_size: side of the square images, pixels.
        drop_path: drop rate of the last block.
    """

    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch: int = 4
    image_size: int = 224
    drop_path: float = 0.0

    @property
    def depth(self) -> int:
        """All blocks."""
        return sum(self.depths)

    def drop_path_of(self, block: int) -> float:
        """Drop rate of a block, linear from 0 at the first."""
        return self.drop_path * block / max(1, self.depth - 1)

    @property
    def routed_stage(self) -> int:
        """The stage of the most blocks, of equal ones the later, the last left out: it has the fewest tokens."""
        return max(range(max(1, len(self.depths) - 1)), key=lambda s: (self.depths[s], s))

    @abstractmethod
    def stages(self, image_size: int | None = None) -> tuple[Stage, ...]:
        """In order."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight, by name, in the order of the network's parameters."""

    def stage_of(self, step: Step) -> int:
        """In which stage a step is: embedding in the first, the head in the last."""
        if step.kind == "embed":
            return 0
        if isinstance(step, Downsample):
            return step.stage
        if step.kind in ("attend", "feed"):
            return self.stage_of_block(step.block)
        return self.routed_stage if step.kind in ("score", "select", "restore", "rescore") else len(self.depths) - 1

    def stage_of_block(self, block: int) -> int:
        return next(s for s, end in enumerate(accumulate(self.depths)) if block < end)

    def at_size(self, image_size: int) -> Any:
        """The same for images of another size."""
        return replace(self, image_size=image_size)

    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(prod(shape) for shape in self.shapes().values())

    def layer(self, name: str) -> int:
        """The layer of a weight for layer-wise learning rates: what comes before the blocks 0, block i i + 1, what is
        between two stages that of the block before it, what follows depth + 1 (SimMIM, arXiv 2111.09886)."""
        kind, _, rest = name.partition(".")
        if kind == "blocks":
            return int(rest.split(".")[0]) + 1
        if kind == "downsample":
            return sum(self.depths[: int(rest.split(".")[0]) + 1])
        return 0 if kind.startswith(("patch_embed", "pos_embed")) else self.depth + 1


def one_a_stage(key: str, value: Numbers, count: int) -> tuple[int, ...]:
    """A number for each stage. Raises ValueError, one line, for a list of another length."""
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(numbers) != count:
        raise ValueError(f"model.{key}: {len(numbers)} numbers for {count} stages; give a list of {count}")
    return numbers


def with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
