"""Images in memory, and a choice of another source's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skipvit.data.sources import Source


@dataclass(frozen=True)
class Arrays:
    """A source in memory: images uint8 (n, S, S, 3), labels int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]

    def name(self, i: int) -> str:
        return f"image {i}"

    def identity(self) -> list[memoryview]:
        return [self.images.data]


class Subset:
    """Some images of a source, by their indices there."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, indices
        self.classes, self.labels = source.classes, source.labels[np.array(indices, np.int64)]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> bytes | np.ndarray:
        return self.source.read(self.indices[i])

    def name(self, i: int) -> str:
        return self.source.name(self.indices[i])

    def identity(self) -> list[bytes | memoryview]:
        return [*self.source.identity(), np.array(self.indices, np.int64).data]


class Relabelled(Subset):
    """All images of a source, with other classes: labels int32 (n,) are positions in `classes`."""

    def __init__(self, source: Source, classes: tuple[str, ...], labels: np.ndarray):
        super().__init__(source, range(len(source)))
        self.classes, self.labels = classes, labels


def evenly_spaced(source: Source, count: int) -> np.ndarray:
    """Positions over a whole split: int (count or fewer,)."""
    return np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
