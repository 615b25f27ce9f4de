"""Windows of a Swin Transformer as static permutations of a stage's tokens. NumPy only.

A stage stores its tokens window after window, so plain windows are a reshape. A shift by half a window cuts each window
into four cells: the bands of rows are shift and window - shift high in turn, the columns alike. Every plain and every
shifted window is one cell of each of these four kinds, whole: so shifted windows are a permutation of cells, and a
route that keeps a fixed number of each cell leaves every window, shifted or not, the same number of tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

FORBIDDEN = -100.0  # added to the logits of tokens that the shift brought together from two sides of the image


def shift_of(grid: int, window: int) -> int:
    """By how many tokens the shifted windows of a stage are moved: none where there is one window."""
    return window // 2 if grid > window else 0


@lru_cache
def order(grid: int, window: int) -> np.ndarray:
    """Row-major position of each token as they are stored: windows row by row, in each its four cells row by row, in
    each its tokens row by row; int (grid^2,)."""
    return np.concatenate(_cells(grid, window, shifted=False))


@lru_cache
def cell_sizes(grid: int, window: int) -> tuple[int, ...]:
    """Tokens of each cell, in the stored order; four cells a window, or one where nothing shifts."""
    return tuple(len(cell) for cell in _cells(grid, window, shifted=False))


class Shifted(NamedTuple):
    """Shifted windows of stored tokens.

    Attributes:
        index: which stored token comes next in the order of the shifted windows, int32 (n,).
        inverse: the way back.
        mask: added to the logits within each window, float32 (windows, tokens of one, tokens of one).
    """

    index: np.ndarray
    inverse: np.ndarray
    mask: np.ndarray


@lru_cache
def shifted(grid: int, window: int, counts: tuple[int, ...] | None = None) -> Shifted:
    """The shifted windows of all tokens, or of those that a route keeps.

    Args:
        counts: how many tokens of each cell there are, in the stored order; None: all.
    """
    cells = _cells(grid, window, shifted=False)
    counts = counts or tuple(len(cell) for cell in cells)
    first = np.concatenate([[0], np.cumsum(counts)])
    number = {int(cell[0]): i for i, cell in enumerate(cells)}
    moved = [number[int(cell[0])] for cell in _cells(grid, window, shifted=True)]
    index = np.concatenate([np.arange(first[cell], first[cell + 1]) for cell in moved]).astype(np.int32)
    return Shifted(index, np.argsort(index).astype(np.int32), _mask(grid // window, [counts[cell] for cell in moved]))


@lru_cache
def offsets(window: int, shift: int, moved: bool, table_window: int) -> np.ndarray:
    """Row of the table of relative positions for each pair of tokens of a window: int32 (window^2, window^2).

    Args:
        moved: the window is a shifted one, else a plain one: its cells come in another order.
        table_window: the window that the table is for, (2 table_window - 1)^2 rows.
    """
    places = np.concatenate(_cells_of_window(window, shift, moved))
    y, x = places // window, places % window
    side = 2 * table_window - 1
    rows, columns = y[:, None] - y[None] + table_window - 1, x[:, None] - x[None] + table_window - 1
    return (rows * side + columns).astype(np.int32)


def _cells(grid: int, window: int, shifted: bool) -> list[np.ndarray]:
    """Row-major positions of the tokens of each cell, the cells in the order of the plain or of the shifted windows."""
    shift, result = shift_of(grid, window), []
    start = shift if shifted else 0
    for top in range(start, grid + start, window):
        for left in range(start, grid + start, window):
            for places in _cells_of_window(window, shift, shifted):
                y, x = (places // window + top) % grid, (places % window + left) % grid
                result.append(y * grid + x)
    return result


def _cells_of_window(window: int, shift: int, moved: bool) -> list[np.ndarray]:
    """Positions within a window of each of its cells, row-major."""
    if shift == 0:
        return [np.arange(window * window)]
    cut = window - shift if moved else shift
    bands = np.arange(cut), np.arange(cut, window)
    return [(rows[:, None] * window + columns[None]).ravel() for rows in bands for columns in bands]


def _mask(windows: int, counts: list[int]) -> np.ndarray:
    """Cells that meet in a shifted window though the image's border is between them do not see each other."""
    result = []
    for row in range(windows):
        for column in range(windows):
            i = 4 * (row * windows + column)
            cell = np.repeat(np.arange(4), counts[i : i + 4])
            region = np.where(row == windows - 1, cell // 2, 0) * 2 + np.where(column == windows - 1, cell % 2, 0)
            result.append(np.where(region[:, None] == region[None], 0.0, FORBIDDEN))
    return np.array(result, np.float32)
