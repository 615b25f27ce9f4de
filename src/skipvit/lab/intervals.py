"""Means over seeds with 95 % intervals, and what may be said of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 0.975 quantiles of Student's t for 1, 2, ... degrees of freedom, as in any statistical table.
_T = (
    12.7062,
    4.3027,
    3.1824,
    2.7764,
    2.5706,
    2.4469,
    2.3646,
    2.3060,
    2.2622,
    2.2281,
    2.2010,
    2.1788,
    2.1604,
    2.1448,
    2.1314,
    2.1199,
    2.1098,
    2.1009,
    2.0930,
    2.0860,
    2.0796,
    2.0739,
    2.0687,
    2.0639,
    2.0595,
    2.0555,
    2.0518,
    2.0484,
    2.0452,
    2.0423,
)
_NORMAL = 1.959964


def t_quantile(freedom: int) -> float:
    """0.975 quantile of Student's t; beyond the table by its expansion in 1 / freedom to the third power (Abramowitz and
    Stegun 26.7.5).

    Raises:
        ValueError: no degree of freedom.
    """
    if freedom < 1:
        raise ValueError("Student's t needs a degree of freedom or more")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _NORMAL
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


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
    half = t_quantile(values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
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
