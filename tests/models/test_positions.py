"""Resized position embeddings against Pillow's BICUBIC, another implementation of the same filter."""

import numpy as np
import pytest
from PIL import Image

from skipvit.models.positions import bicubic_weights, resized_positions

WIDTH = 5


def positions(grid):
    return np.random.default_rng(0).normal(size=(1, 1 + grid * grid, WIDTH)).astype(np.float32)


# 224 to 384 pixels in patches of 16, 32 to 48 in patches of 4, and smaller, by whole and by odd factors.
@pytest.mark.parametrize(
    ("old", "new"), [(14, 24), (8, 12), (24, 14), (12, 6), (16, 3), (7, 1), (1, 4), (2, 9), (5, 5)]
)
def test_patches_are_resized_as_pillow_does_and_cls_stays(old, new):
    given = positions(old)
    resized = resized_positions(given, new)
    assert resized.dtype == np.float32 and resized.shape == (1, 1 + new * new, WIDTH)
    assert np.array_equal(resized[0, 0], given[0, 0])
    for channel in range(WIDTH):
        image = Image.fromarray(given[0, 1:, channel].reshape(old, old))
        expected = np.asarray(image.resize((new, new), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(resized[0, 1:, channel].reshape(new, new), expected, atol=2e-6, rtol=0)


def test_the_same_grid_is_the_same_to_the_last_bit():
    assert resized_positions(positions(6), 6).tobytes() == positions(6).tobytes()


def test_a_plane_stays_a_plane_within():
    """Keys' kernel with a = -1/2 is exact for polynomials up to the second degree, away from the ends, where it enlarges."""
    old, new = 20, 30
    at, wanted = (np.arange(old) + 0.5) / old, (np.arange(new) + 0.5) / new
    inside = slice(3, -3)
    for power in (0, 1, 2):
        np.testing.assert_allclose((bicubic_weights(old, new) @ at**power)[inside], (wanted**power)[inside], atol=1e-12)
