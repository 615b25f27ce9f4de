"""Where images come from: each file one kind of `data.kind`, each class a `Source`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Images by index; may be read by several threads at once."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray:
        """int32 (n,)."""
        ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """An encoded file, or uint8 (H, W, 3)."""
        ...

    def name(self, i: int) -> str:
        """What to call image i in a message."""
        ...

    def identity(self) -> Iterable[bytes | memoryview]:
        """What tells these images from others with the same labels: names and sizes of files, or the pixels."""
        ...
