"""The built-in images: reproducible, balanced, and told apart by the object's shape alone."""

import numpy as np
import pytest

from skipvit.data.sources.shapes import CLASSES, generate

CHANCE = 1 / len(CLASSES)
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def train():
    return generate(4000, seed=7, split="train")


@pytest.fixture(scope="module")
def val():
    return generate(2000, seed=7, split="val")


def fields(images):
    return images.images, images.labels, images.masks, images.backgrounds


def standardised(known, new):
    """Both as rows of features scaled by the mean and deviation of `known`: two float32 (n, k)."""
    known, new = (np.asarray(rows, np.float32).reshape(len(rows), -1) for rows in (known, new))
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    return (known - mean) / deviation, (new - mean) / deviation


def ridge(known, labels, new, new_labels):
    """Held-out accuracy of ridge regression on one-hot targets."""
    known, new = standardised(known, new)
    known, new = (np.c_[rows, np.ones(len(rows), np.float32)] for rows in (known, new))
    gram = known.T @ known + 0.1 * len(known) * np.eye(known.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, known.T @ np.eye(len(CLASSES), dtype=np.float32)[labels])
    return ((new @ weights).argmax(1) == new_labels).mean()


def nearest(known, labels, new, new_labels):
    """Held-out accuracy of the single nearest neighbour."""
    known, new = standardised(known, new)
    distance = (known**2).sum(1) - 2 * new @ known.T
    return (labels[distance.argmin(1)] == new_labels).mean()


def chance_bound(count):
    """Four standard deviations over chance for the accuracy on `count` images."""
    return CHANCE + 4 * np.sqrt(CHANCE * (1 - CHANCE) / count)


def boxes(masks):
    """First and last row and column of each mask: int (n, 4) as (top, bottom, left, right)."""
    rows, columns = masks.any(2), masks.any(1)
    last = masks.shape[1] - 1
    return np.stack(
        [rows.argmax(1), last - rows[:, ::-1].argmax(1), columns.argmax(1), last - columns[:, ::-1].argmax(1)], 1
    )


def centred(masks):
    """Masks moved so that their box's middle is the image's middle."""
    top, bottom, left, right = boxes(masks).T
    shifts = zip(15 - (top + bottom) // 2, 15 - (left + right) // 2)
    return np.stack([np.roll(mask, shift, (0, 1)) for mask, shift in zip(masks, shifts)])


def test_fields_have_the_stated_types(train):
    for images in (train, generate(0, seed=7, split="train")):
        n = len(images.labels)
        assert (images.images.dtype, images.images.shape) == (np.uint8, (n, 32, 32, 3))
        assert (images.labels.dtype, images.labels.shape) == (np.int32, (n,))
        assert (images.masks.dtype, images.masks.shape) == (bool, (n, 32, 32))
        assert (images.backgrounds.dtype, images.backgrounds.shape) == (np.uint8, (n, 32, 32, 3))
    assert len(set(CLASSES)) == len(CLASSES) >= 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shorter_set_is_a_prefix_of_a_longer_one(split, train, val):
    longer = {"train": train, "val": val}[split]
    for count in (1, 10, 33):
        for short, long in zip(fields(generate(count, seed=7, split=split)), fields(longer)):
            np.testing.assert_array_equal(short, long[:count])


def test_splits_and_seeds_share_no_image(train, val):
    sets = train, val, generate(200, seed=8, split="train"), generate(200, seed=8, split="val")
    for kind in ("images", "backgrounds"):
        every = [image.tobytes() for images in sets for image in getattr(images, kind)]
        assert len(set(every)) == len(every) == 6400
    assert (train.labels[:200] != sets[2].labels).any()


def test_classes_are_balanced_for_any_count(train):
    for count in (1, 9, 10, 11, 57, 1234):
        tally = np.bincount(train.labels[:count], minlength=len(CLASSES))
        assert tally.max() - tally.min() <= 1


def test_place_in_the_order_does_not_tell_the_class(train):
    for period in (2, 5, 10):
        table = np.zeros((period, len(CLASSES)))
        np.add.at(table, (np.arange(4000) % period, train.labels), 1)
        expected = 4000 / period * CHANCE
        assert np.abs(table - expected).max() < 4.5 * np.sqrt(expected)


def test_object_changes_the_background_inside_its_mask_only(train):
    changed = (train.images != train.backgrounds).any(-1)
    assert not (changed & ~train.masks).any()
    assert changed.sum() > 0.99 * train.masks.sum()


def test_object_is_whole_and_of_moderate_size(train):
    top, bottom, left, right = boxes(train.masks).T
    assert min(top.min(), left.min()) >= 1 and max(bottom.max(), right.max()) <= 30
    assert min((bottom - top).min(), (right - left).min()) + 1 >= 8
    assert max((bottom - top).max(), (right - left).max()) + 1 <= 20
    area = train.masks.sum((1, 2))
    assert 60 <= area.min() and area.max() <= 170


def test_mask_is_one_piece(train):
    pieces = np.zeros((300, 34, 34), bool)
    masks = np.pad(train.masks[:300], ((0, 0), (1, 1), (1, 1)))
    first = masks.reshape(300, -1).argmax(1)
    pieces.reshape(300, -1)[np.arange(300), first] = True
    for _ in range(60):  # grows from one pixel to all that hang together with it
        grown = np.stack([np.roll(pieces, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
        pieces = grown.any(0) & masks
    np.testing.assert_array_equal(pieces, masks)


def test_object_stands_out_from_its_surroundings(train):
    luma = train.images @ LUMA
    inside = np.array([np.percentile(image[mask], 80) for image, mask in zip(luma, train.masks)])
    outside = np.array([np.percentile(image[~mask], 80) for image, mask in zip(luma, train.masks)])
    assert np.percentile(inside - outside, 1) > 50


def test_background_does_not_tell_the_class(train, val):
    bound = chance_bound(2000)
    summary = [np.concatenate([p.backgrounds.mean((1, 2)), p.backgrounds.std((1, 2))], 1) for p in (train, val)]
    for classify in (ridge, nearest):
        assert classify(train.backgrounds, train.labels, val.backgrounds, val.labels) < bound
        assert classify(summary[0], train.labels, summary[1], val.labels) < bound


def test_the_background_check_would_see_a_silhouette(train, val):
    """The same classifiers on backgrounds with the object's region cut out: far over chance."""
    cut = [np.where(p.masks[..., None], 0, p.backgrounds) for p in (train, val)]
    assert ridge(cut[0], train.labels, cut[1], val.labels) > 0.25


def test_shape_tells_the_class(train, val):
    known, new = centred(train.masks), centred(val.masks)
    assert ridge(known, train.labels, new, val.labels) > 0.9
    assert nearest(known, train.labels, new, val.labels) > 0.9


def test_pixels_alone_are_not_trivially_separable(train, val):
    assert nearest(train.images, train.labels, val.images, val.labels) < 0.6


def test_colour_and_place_do_not_tell_the_class(train, val):
    def colour(images):  # of the object's brightest pixel: thin parts blend with the background elsewhere
        luma = np.where(images.masks, images.images @ LUMA, -1).reshape(len(images.labels), -1)
        return images.images.reshape(len(luma), -1, 3)[np.arange(len(luma)), luma.argmax(1)]

    def place(images):
        top, bottom, left, right = boxes(images.masks).T
        return np.stack([top + bottom, left + right], 1)

    for feature in (colour, place):
        known, new = feature(train).astype(float), feature(val).astype(float)
        assert nearest(known, train.labels, new, val.labels) < chance_bound(2000)
        squares = [np.concatenate([rows, rows**2, rows[:, :1] * rows[:, 1:]], 1) for rows in (known, new)]
        assert ridge(squares[0], train.labels, squares[1], val.labels) < chance_bound(2000)


def test_size_tells_the_class_only_weakly(train, val):
    area = [p.masks.sum((1, 2)) for p in (train, val)]
    likeliest = np.zeros((1025, len(CLASSES)))
    np.add.at(likeliest, (area[0], train.labels), 1)
    assert (likeliest[area[1]].argmax(1) == val.labels).mean() < 0.2
