"""Means with intervals against published quantiles, coverage of simulated data, and worked examples."""

import numpy as np
import pytest

from skipvit.lab.intervals import Mean, mean_of, paired


def t_quantile(freedom):
    """The quantile that an interval was made with: its half width over the standard error."""
    values = np.arange(freedom + 1.0)
    return mean_of(values).half / (values.std(ddof=1) / np.sqrt(values.size))


@pytest.mark.parametrize(
    ("freedom", "published"),  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (9, 2.262),
        (20, 2.086),
        (30, 2.042),
        (31, 2.040),
        (40, 2.021),
        (60, 2.000),
        (100, 1.984),
    ],
)
def test_quantiles_are_the_published_ones(freedom, published):
    assert round(t_quantile(freedom), 3) == pytest.approx(published, abs=1e-9)


def test_quantiles_are_those_of_the_density():
    """The mass of Student's density within the quantiles, integrated, is 0.95."""
    from math import gamma, pi, sqrt

    for freedom in (2, 4, 7, 30, 31, 50):
        edge = t_quantile(freedom)
        x = np.linspace(-edge, edge, 20001)
        density = (
            gamma((freedom + 1) / 2)
            / (sqrt(freedom * pi) * gamma(freedom / 2))
            * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        )
        mass = ((density[1:] + density[:-1]) / 2).sum() * (x[1] - x[0])
        assert mass == pytest.approx(0.95, abs=2e-5), freedom


def test_a_worked_example():
    """1, 2, 3, 4, 5: s = 1.5811, half width 2.7764 x 1.5811 / sqrt(5) = 1.9632."""
    found = mean_of([1, 2, 3, 4, 5])
    assert found.mean == 3 and found.half == pytest.approx(1.9632, abs=1e-4) and found.count == 5
    assert mean_of([7.5]) == Mean(7.5, None, 1) and mean_of([7.5]).side is None
    with pytest.raises(ValueError):
        mean_of([])


def test_intervals_of_three_seeds_hold_the_truth_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(5.0, 2.0, (1500, 3))
    held = np.mean([abs(found.mean - 5.0) <= found.half for found in map(mean_of, draws)])
    assert abs(held - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 1500)


def test_differences_are_taken_within_seeds():
    dense, other = {0: 90.0, 1: 80.0, 2: 70.0, 9: 1.0}, {0: 91.1, 1: 81.0, 2: 71.2, 5: 50.0}
    found = paired(other, dense)
    assert found.count == 3 and found.mean == pytest.approx(1.1) and found.side == "above"
    assert paired(dense, other).side == "below"
    assert paired({0: 91.0, 1: 79.0}, dense).side == "same"  # +1 and -1
    assert paired({7: 1.0}, dense) is None


def test_a_difference_that_would_be_seen_is_seen_in_four_of_five_repetitions():
    rng, count, repetitions = np.random.default_rng(0), 5, 4000
    detectable = np.mean([mean_of(rng.normal(size=count)).detectable for _ in range(400)])
    detectable /= 0.94  # the mean standard deviation of five normal values
    seen = [mean_of(row).low > 0 for row in rng.normal(detectable, 1, (repetitions, count))]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
    assert mean_of([1.0]).detectable is None
