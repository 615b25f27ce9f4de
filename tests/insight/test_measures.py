"""Measures of importance on constructed cases: a scorer that knows the mask, a random one, one with it upside down."""

import numpy as np
import pytest

from skipvit.insight.measures import (
    area,
    correlation,
    deletion_insertion,
    mirrored,
    moved_right,
    on_object,
    overlap,
    separation,
    shares_kept,
    shifted,
    still_there,
    top,
)

IMAGES, GRID, SIDE, OBJECT = 200, 8, 4, 16  # the object is 16 of 64 patches, all of each
TOKENS = GRID * GRID


@pytest.fixture(scope="module")
def objects():
    """bool (n, tokens): a square of 4 x 4 patches somewhere."""
    rng = np.random.default_rng(0)
    result = np.zeros((IMAGES, GRID, GRID), bool)
    for image, (row, column) in zip(result, rng.integers(0, GRID - 3, (IMAGES, 2))):
        image[row : row + 4, column : column + 4] = True
    return result.reshape(IMAGES, TOKENS)


@pytest.fixture(scope="module")
def rankings(objects):
    rng = np.random.default_rng(1)
    noise = rng.random(objects.shape)
    return {"knows": objects + 0.5 * noise, "random": rng.random(objects.shape), "inverted": -(objects + 0.5 * noise)}


def painted(objects):
    """White objects on black: uint8 (n, S, S, 3)."""
    cover = objects.reshape(-1, GRID, GRID).repeat(SIDE, 1).repeat(SIDE, 2)
    return np.repeat(255 * cover[..., None], 3, axis=3).astype(np.uint8)


# Kept: 24 of 64. Who knows the object keeps all of it and 8 of the other 48; upside down none of it and 24 of 48.
KEPT = {"knows": (1, 8 / 48), "random": (24 / 64, 24 / 64), "inverted": (0, 24 / 48)}


@pytest.mark.parametrize(("who", "shares"), KEPT.items())
def test_shares_of_object_and_background_kept(objects, rankings, who, shares):
    tolerance = 0.03 if who == "random" else 1e-12
    assert shares_kept(top(rankings[who], 24), objects) == pytest.approx(shares, abs=tolerance)


@pytest.mark.parametrize(("who", "chance"), [("knows", 1), ("random", 0.5), ("inverted", 0)])
def test_separation(objects, rankings, who, chance):
    assert separation(rankings[who], objects) == pytest.approx(chance, abs=0.03 if who == "random" else 1e-12)


def test_separation_is_the_share_of_won_pairs_and_ties_are_half():
    ranking, objects = np.array([[3.0, 1.0, 1.0, 0.0, 2.0]]), np.array([[True, True, False, False, False]])
    assert separation(ranking, objects) == pytest.approx(
        (3 + 1.5) / 6
    )  # 3 beats all three; 1 ties, beats 0, loses to 2
    assert separation(np.zeros((1, 5)), objects) == 0.5


def test_images_without_object_or_background_count_where_they_can():
    objects = np.array([[True, True], [False, False], [True, False]])
    kept = np.array([[True, False], [False, True], [True, False]])
    assert shares_kept(kept, objects) == pytest.approx(((0.5 + 1) / 2, (0.5 + 0) / 2))
    assert separation(np.array([[1.0, 2.0]] * 3), objects) == 0
    assert np.isnan(shares_kept(kept[:1], objects[:1])[1]) and np.isnan(separation(kept[:1] * 1.0, objects[:1]))


# Visible object: the probability. Taken away first it falls to nothing over a quarter of the patches: area 1/8. Upside
# down it falls over the last quarter: 7/8. Insertion is the mirror image.
AREAS = {"knows": (1 / 8, 7 / 8), "random": (1 / 2, 1 / 2), "inverted": (7 / 8, 1 / 8)}


@pytest.mark.parametrize(("who", "areas"), AREAS.items())
def test_deletion_and_insertion_of_a_network_that_sees_the_object(objects, rankings, who, areas):
    images, labels = painted(objects), np.zeros(IMAGES, int)

    def predict(samples):
        seen = samples.sum((1, 2, 3)) / (255 * 3 * OBJECT * SIDE**2)
        return np.stack([seen, 1 - seen], axis=1)

    curves = deletion_insertion(predict, images, np.zeros_like(images), labels, rankings[who], points=17)
    assert (curves[0][0], curves[0][-1], curves[1][0], curves[1][-1]) == (1, 0, 0, 1)
    assert [area(curve) for curve in curves] == pytest.approx(areas, abs=0.01 if who == "random" else 1e-12)


def test_the_true_class_is_the_one_that_counts(objects):
    images, labels = painted(objects), np.arange(IMAGES) % 2
    probabilities = np.tile([0.25, 0.75], (IMAGES, 1))
    curves = deletion_insertion(lambda _: probabilities, images, images, labels, objects * 1.0, points=3)
    assert np.allclose(curves, 0.5)


def test_overlap_of_equal_random_and_disjoint_sets(rankings):
    a, b = top(rankings["random"], 24), top(rankings["knows"], 24)
    assert overlap(a, a) == 1 and overlap(a, ~a) == 0
    assert overlap(a, b) == pytest.approx(24 / 64, abs=0.03)
    half = np.arange(TOKENS) < 32
    assert overlap(a, np.where(half, a, ~a), half) == 1


def test_correlation_of_equal_inverted_random_and_constant_rankings(rankings):
    knows = rankings["knows"]
    assert correlation(knows, knows**3) == pytest.approx(1) and correlation(
        knows, rankings["inverted"]
    ) == pytest.approx(-1)
    assert correlation(knows, rankings["random"]) == pytest.approx(0, abs=0.03)
    assert correlation(knows, np.ones_like(knows)) == 0


def test_correlation_by_spearmans_formula():
    """1 - 6 sum d^2 / (n (n^2 - 1)), without ties."""
    assert correlation(np.array([[1.0, 2, 3, 4, 5]]), np.array([[2.0, 1, 4, 3, 5]])) == pytest.approx(
        1 - 6 * 4 / (5 * 24)
    )


def test_a_scorer_that_follows_the_object_is_stable_under_flip_and_shift(objects):
    """Its scores of the changed images, mapped back, are those of the images."""
    images = painted(objects)

    def follow(samples):
        return samples.reshape(-1, GRID, SIDE, GRID, SIDE, 3).mean((2, 4, 5)).reshape(-1, TOKENS)

    assert np.array_equal(mirrored(follow(images[:, :, ::-1]), GRID), follow(images))
    there = still_there(GRID)
    assert there.sum() == TOKENS - GRID
    assert np.array_equal(shifted(follow(moved_right(images, SIDE)), GRID)[:, there], follow(images)[:, there])


def test_a_scorer_that_keeps_to_positions_is_not_stable():
    fixed = np.tile(np.arange(TOKENS) % GRID < 4, (3, 1))  # the left half
    assert overlap(fixed, mirrored(fixed, GRID)) == 0
    assert overlap(fixed, shifted(fixed, GRID), still_there(GRID)) == pytest.approx(6 / 7)  # 4 and 3 of 7 columns


def test_a_patch_is_the_objects_with_a_single_pixel_of_it():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 3, 4] = True
    assert on_object(masks, 4).reshape(4, 4).nonzero() == (1, 2)


def test_ties_go_to_the_earlier_position():
    assert top(np.array([[1.0, 2.0, 2.0, 2.0]]), 2).tolist() == [[False, True, True, False]]
