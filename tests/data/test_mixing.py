"""Mixup and CutMix, against NumPy's formulas."""

import math

import numpy as np

from skipvit.config.groups import AugmentConfig
from skipvit.data.mixing import _cutmix, mix_numbers


def mixed(count=4000, size=32, **settings):
    numbers = [mix_numbers(AugmentConfig(**settings), size, np.random.default_rng(seed)) for seed in range(count)]
    assert all(row.dtype == np.float32 and row.shape == (6,) for row in numbers)
    return np.array(numbers)


UNMIXED = (1, 0, 0, 0, 0, 1)


def test_no_mixing():
    assert (mixed(20) == UNMIXED).all()
    assert (mixed(20, mixup=0.8, cutmix=1.0, mix_prob=0.0) == UNMIXED).all()


def test_mixup_weighs_pixels_and_targets_alike():
    numbers = mixed(mixup=0.8)
    assert (numbers[:, 1:5] == 0).all() and (numbers[:, 0] == numbers[:, 5]).all()
    weight = numbers[:, 0]
    assert abs(weight.mean() - 0.5) < 0.02 and abs(weight.var() - 0.25 / 2.6) < 0.005  # of Beta(0.8, 0.8)


def test_cutmix_targets_count_the_pixels_that_stay():
    numbers = mixed(cutmix=1.0)
    weight, top, bottom, left, right, target = numbers.T
    assert (weight == 1).all()
    assert (0 <= top).all() and (top <= bottom).all() and (bottom <= 32).all()
    assert (0 <= left).all() and (left <= right).all() and (right <= 32).all()
    assert np.allclose(target, 1 - (bottom - top) * (right - left) / 32**2)
    whole = (top > 0) & (left > 0) & (bottom < 32) & (right < 32)
    assert (bottom - top == right - left)[whole].all() and whole.mean() > 0.1
    assert top.min() == left.min() == 0 and bottom.max() == right.max() == 32
    middle = (top + bottom) / 2  # small boxes: their centres are everywhere
    small = bottom - top < 6
    assert np.histogram(middle[small], 4, (0, 32))[0].min() > 0.15 * small.sum()


def test_the_side_of_a_cutmix_box_is_the_root_of_the_share():
    """Beta(1, 1) is uniform: P(side <= s) = (s / size)^2, for boxes that the edge does not cut."""
    rng = np.random.default_rng(0)
    for weight in (0.0, 0.36, 0.75, 0.9999, 1.0):
        sides = [_cutmix(weight, 100, rng) for _ in range(300)]
        assert max(bottom - top for _, top, bottom, *_ in sides) == int(100 * math.sqrt(1 - weight))


def test_probabilities_of_mixing_and_of_cutmix():
    numbers = mixed(mixup=0.8, cutmix=1.0, mix_prob=0.6, mix_switch_prob=0.3)
    unmixed = (numbers == UNMIXED).all(1)  # or a CutMix box of no area, about one of 1000
    by_mixup = numbers[:, 0] < 1
    assert abs(unmixed.mean() - 0.4) < 0.03
    assert abs(by_mixup.mean() - 0.6 * 0.7) < 0.03
    assert (mixed(50, mixup=0.8, mix_switch_prob=1.0)[:, 0] < 1).all()
    assert (mixed(50, cutmix=1.0, mix_switch_prob=0.0)[:, 0] == 1).all()
