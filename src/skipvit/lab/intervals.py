"""Means over seeds with 95 % intervals, and what may be said of a difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


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
    def detectable(self) -> float | None:
        """Of a difference: how large it had to be in truth to leave zero out of such an interval, on its own side, in
        four of five repetitions (a power of 80 %, by the noncentral t distribution); None without an interval."""
        if self.half is None:
            return None
        quantile = stats.t.ppf(0.975, self.count - 1)
        power = optimize.root_scalar(
            lambda shift: stats.nct.sf(quantile, self.count - 1, shift) - 0.8, bracket=(0.5, 50)
        )
        return float(self.half / quantile * power.root)

    @property
    def side(self) -> str | None:
        """Of a difference: `above` or `below` zero, if the interval leaves it out, `same` if not; None without one."""
        if self.half is None:
            return None
        return "above" if self.low > 0 else "below" if self.high < 0 else "same"

    def text(self, signed: bool = False, digits: int = 2) -> str:
        """E.g. `97.10 ± 0.42`; without the second part for a single value."""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{digits}f}"


def mean_of(values: Iterable[float]) -> Mean:
    """Mean and 95 % interval of independent values, by Student's t. Raises ValueError if there are none."""
    array = np.array(list(values), np.float64)
    if not array.size:
        raise ValueError("there is no mean of no values")
    if array.size == 1:
        return Mean(float(array[0]), None, 1)
    half = stats.t.ppf(0.975, array.size - 1) * stats.sem(array)
    return Mean(float(array.mean()), float(half), int(array.size))


def paired(values: dict[int, float], baseline: dict[int, float]) -> Mean | None:
    """Mean difference within the seeds that both have; None if there is no such seed."""
    seeds = sorted(set(values) & set(baseline))
    return mean_of(values[seed] - baseline[seed] for seed in seeds) if seeds else None
