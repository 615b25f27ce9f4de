"""Statistics of times that were measured in rounds: medians, their intervals, and what may be said of a ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

CONFIDENCE = 0.95
FEWEST_ROUNDS = 6  # of fewer numbers not even all of them are a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A median over rounds with a 95 % interval, in whatever unit was measured."""

    median: float
    low: float
    high: float

    def within(self, widest: float) -> bool:
        """Whether the interval is at most so wide, as a share of the median."""
        return self.high - self.low <= widest * abs(self.median)


def estimate(values: np.ndarray) -> Estimate:
    """The median of independent values of any distribution, and the narrowest interval between two of them, equally far
    from both ends, that holds the distribution's median with at least 95 % confidence (order statistics: the number of
    values below it is binomial with p = 1/2).

    Raises:
        ValueError: fewer than `FEWEST_ROUNDS` values.
    """
    count = len(values)
    if count < FEWEST_ROUNDS:
        raise ValueError(f"{count} rounds have no {CONFIDENCE:.0%} interval; at least {FEWEST_ROUNDS} do")
    # Fewer than `rank` values lie below the median with a chance of at most 2.5 %; as many above.
    rank = int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    ordered = np.sort(values)
    return Estimate(float(np.median(values)), float(ordered[rank - 1]), float(ordered[count - rank]))


def speedup(baseline: np.ndarray, variant: np.ndarray) -> Estimate:
    """How many times as fast a variant is: the ratio of both times within each round, so that what disturbs a round
    disturbs both; float (rounds,) each, seconds an image."""
    return estimate(np.asarray(baseline) / np.asarray(variant))


def efficiency(measured: float, ideal: float) -> float | None:
    """Measured gain over ideal gain, where a gain is a speed-up less 1; None if the ideal is no gain."""
    return (measured - 1) / (ideal - 1) if ideal > 1.001 else None
