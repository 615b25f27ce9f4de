"""Image by image in a report, against McNemar's figures worked out by hand."""

import numpy as np
import pytest

from skipvit.lab.report.images import compared


def test_one_seed_is_mcnemar():
    """Of 1000 images 30 only ours, 10 only theirs: 2 points, interval 1.96 sqrt(30 + 10 - 20^2 / 1000) / 1000."""
    ours, theirs = np.zeros(1000, bool), np.zeros(1000, bool)
    ours[:530], theirs[30:540] = True, True
    more, less, difference = compared({0: ours}, {0: theirs})
    assert (more, less, difference.count) == (30, 10, 1000) and difference.mean == pytest.approx(2.0)
    wald = 1.959964 * np.sqrt(40 - 20**2 / 1000) / 1000
    assert difference.half == pytest.approx(100 * wald, rel=1e-3)


def test_seeds_are_averaged_within_images():
    rng = np.random.default_rng(0)
    ours, theirs = ({seed: rng.random(500) < share for seed in range(3)} for share in (0.7, 0.6))
    more, less, difference = compared(ours, theirs | {7: rng.random(500) < 0.5})
    by_image = 100 * (np.mean(list(ours.values()), 0) - np.mean(list(theirs.values()), 0))
    assert difference.mean == pytest.approx(by_image.mean()) and more - less == pytest.approx(5 * by_image.mean())
    resampled = [by_image[rng.integers(500, size=500)].mean() for _ in range(4000)]  # a bootstrap over images
    assert difference.half == pytest.approx(1.96 * np.std(resampled), rel=0.06)
    assert compared(ours, {7: theirs[0]}) is None and compared({0: ours[0][:100]}, theirs) is None
