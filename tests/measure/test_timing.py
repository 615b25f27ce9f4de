"""Statistics of times against tables and hand-made numbers."""

import numpy as np
import pytest

from skipvit.measure.bench.timing import Estimate, efficiency, estimate, speedup

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


def test_a_speedup_is_of_pairs():
    load = np.array([1, 9, 2, 8, 3, 7, 4.0])  # the machine slows down ninefold in some rounds
    assert speedup(3 * load, 2 * load) == Estimate(1.5, 1.5, 1.5)
    assert speedup(3 * load, 2 * load[::-1]).high > 2


def test_an_interval_is_as_wide_as_it_may_be():
    assert Estimate(2.0, 1.96, 2.05).within(0.05) and not Estimate(2.0, 1.95, 2.06).within(0.05)


def test_efficiency_is_a_share_of_the_gain():
    assert efficiency(1.48, 1.6) == pytest.approx(0.8)
    assert efficiency(1.0, 1.6) == 0
    assert efficiency(0.9, 1.0) is None
