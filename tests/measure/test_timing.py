"""Intervals of medians against tables."""

import numpy as np
import pytest

from skipvit.measure.bench.result import Estimate, estimate

# Ranks of the usual tables of distribution-free 95 % intervals for a median (W. J. Conover, Practical Nonparametric
# Statistics).
RANKS = [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)]


@pytest.mark.parametrize(("count", "low", "high"), RANKS)
def test_the_interval_has_the_ranks_of_the_tables(count, low, high):
    values = np.random.default_rng(0).permutation(count) + 1.0  # each value is its rank
    assert estimate(values) == Estimate((count + 1) / 2, low, high)


def test_too_few_values_have_no_interval():
    with pytest.raises(ValueError, match="at least 6"):
        estimate(np.arange(5.0))


def test_the_interval_holds_the_median_of_a_skewed_distribution_often_enough():
    rng = np.random.default_rng(0)
    found = [estimate(rng.exponential(size=15)) for _ in range(2000)]
    assert 0.95 < np.mean([e.low <= np.log(2) <= e.high for e in found]) < 0.98  # exactly 0.9648
