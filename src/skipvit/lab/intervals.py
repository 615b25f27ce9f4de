"""Means over seeds with 95 % intervals, and what may be said of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Mean:
    """A mean of `count` values with the half width of its 95 % interval; None of a single value."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0)

    @property
    def side(self) -> str | None:
        """Of a difference: `higher` or `lower` if the interval leaves zero out, `same` if it covers it; None without an interval."""
        if self.half is None:
            return None
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "same"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and 95 % interval of independent values, by Student's t: mean +- t s / sqrt(n), s with n - 1 in the denominator.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("there is no mean of no values")
    if values.size == 1:
        return Mean(float(values[0]), None, 1)
    half = stats.t.ppf(0.975, values.size - 1) * stats.sem(values)
    return Mean(float(values.mean()), float(half), int(values.size))


def paired(values: dict[int, float], baseline: dict[int, float]) -> Mean | None:
    """Mean difference within the seeds that both have; None if there is no such seed."""
    seeds = sorted(set(values) & set(baseline))
    return mean_of([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def interval(value: Mean | None, signed: bool = False, digits: int = 2) -> str:
    """E.g. `97.10 ± 0.42`; without the second part for a single value."""
    if value is None:
        return "–"
    text = f"{value.mean:{'+' if signed else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {value.half:.{digits}f}"
