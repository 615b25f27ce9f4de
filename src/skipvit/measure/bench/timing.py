"""The median of times that were measured in rounds, and its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binom

FEWEST_ROUNDS = 6  # of fewer numbers not even all of them are a 95 % interval


class Estimate(NamedTuple):
    """A median over rounds with a 95 % interval, in whatever unit was measured."""

    median: float
    low: float
    high: float


def estimate(values: np.ndarray) -> Estimate:
    """The median of independent values of any distribution, and the narrowest interval between two of them, equally far
    from both ends, that holds the distribution's median with at least 95 % confidence (order statistics: the number of
    values below it is binomial with p = 1/2).

    Raises:
        ValueError: fewer than `FEWEST_ROUNDS` values.
    """
    count = len(values)
    if count < FEWEST_ROUNDS:
        raise ValueError(f"{count} rounds have no 95 % interval; at least {FEWEST_ROUNDS} do")
    # Fewer than `rank` values lie below the median with a chance of at most 2.5 %; as many above.
    rank = int(binom.ppf(0.025, count, 0.5))
    ordered = np.sort(values)
    return Estimate(float(np.median(values)), float(ordered[rank - 1]), float(ordered[count - rank]))
