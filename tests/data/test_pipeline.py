"""Order, shards, noise, padding and decoding of the batches."""

import numpy as np
import pytest
from PIL import Image

from skipvit.data.image_folder import open_split, refuse_other_classes
from skipvit.data.pipeline import PADDING, Arrays, Batches, Order, Shard
from skipvit.errors import RunError, UsageError


def pictures(count, side=8):
    """Pictures that say their own index: every pixel of picture i is i."""
    images = np.zeros((count, side, side, 3), np.uint8) + np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Arrays(images, (np.arange(count) % 10).astype(np.int32), tuple("abcdefghij"))


def batches(source, **changes):
    settings = {"batch_size": 4, "image_size": 8, "noise_width": 3, "training": True, "seed": 5} | changes
    return Batches(source, **settings)


def indices(data):
    return np.concatenate([images[:, 0, 0, 0] for images, _, _ in data])


@pytest.mark.parametrize("cards", [1, 2, 8])
def test_shards_cover_an_epoch_once(cards):
    """98 pictures, 4 a card and step: what is seen are whole steps of all cards, nothing twice."""
    orders = [Order(98, 4, Shard(rank, cards), seed=1, training=True) for rank in range(cards)]
    seen = np.concatenate([order.ids(epoch=3) for order in orders]) - 3 * 98
    assert len(set(seen)) == len(seen) == 98 // (4 * cards) * 4 * cards
    assert seen.min() >= 0 and seen.max() < 98


def test_validation_shards_cover_everything_once_and_pad_to_whole_batches():
    orders = [Order(10, 4, Shard(rank, 2), seed=1, training=False) for rank in range(2)]
    ids = np.concatenate([order.ids(0) for order in orders])
    assert sorted(ids[ids != PADDING]) == list(range(10))
    assert len(ids) == 16


def test_batches_hold_each_picture_with_its_label_and_other_orders_in_other_epochs():
    data = batches(pictures(40))
    images, labels, noise = next(iter(data))
    assert (images.dtype, labels.dtype, noise.dtype) == (np.uint8, np.int32, np.float32)
    assert images.shape == (4, 8, 8, 3) and noise.shape == (4, 3)
    assert (labels == images[:, 0, 0, 0] % 10).all()
    assert sorted(indices(data)) == list(range(40))
    epochs = [tuple(indices(batches(pictures(40), epoch=e))) for e in (0, 1)]
    assert epochs[0] != epochs[1]


def test_a_data_set_read_for_several_epochs_is_the_same_as_one_made_for_each():
    iterator = batches(pictures(40)).dataset.create_tuple_iterator(num_epochs=3, output_numpy=True)
    for epoch in range(3):
        together = [part for batch in iterator for part in batch]
        alone = [part for batch in batches(pictures(40), epoch=epoch) for part in batch]
        assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_noise_is_uniform_depends_on_picture_and_epoch_and_repeats():
    source = pictures(200)
    first, again = (np.concatenate([b[2] for b in batches(source, noise_width=50)]) for _ in range(2))
    other = np.concatenate([b[2] for b in batches(source, noise_width=50, epoch=1)])
    assert np.array_equal(first, again) and not np.isin(first[:, 0], other[:, 0]).any()
    assert 0 <= first.min() and first.max() < 1
    assert abs(first.mean() - 0.5) < 5 * np.sqrt(1 / 12 / first.size)
    assert len(np.unique(first[:, 0])) == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_augmentation_repeats_and_differs_between_cards(workers):
    rng = np.random.default_rng(0)
    source = Arrays(rng.integers(0, 256, (64, 8, 8, 3), np.uint8), np.zeros(64, np.int32), ("a",))
    runs = [list(batches(source, augment="crop_flip", workers=workers, epoch=2)) for _ in range(2)]
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(*runs, strict=True))
    plain = list(batches(source, epoch=2))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(runs[0], plain))
    # Another card draws otherwise, even for the same pictures.
    white = Arrays(np.tile(source.images[:1], (64, 1, 1, 1)), source.labels, ("a",))
    cards = [next(iter(batches(white, augment="crop_flip", workers=workers, shard=Shard(rank, 2))))[0] for rank in (0, 1)]
    assert not np.array_equal(*cards)


def test_validation_pads_the_last_batch_with_negative_labels():
    labels = np.concatenate([b[1] for b in batches(pictures(10), training=False)])
    assert (labels[:10] >= 0).all() and (labels[10:] == PADDING).all() and len(labels) == 12


def test_too_few_pictures_for_a_step_is_one_line():
    with pytest.raises(RunError, match="one step takes 4 x 8 pictures and the training set has 10"):
        batches(pictures(10), shard=Shard(0, 8))


@pytest.fixture
def folder(tmp_path):
    """Two classes of 12 x 16 PNG pictures, eight each, of one colour a picture."""
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                picture = Image.new("RGB", (16, 12), (label * 200, i * 10, 50))
                picture.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_image_folder_lists_classes_and_decodes_as_pillow_does(folder):
    train, val = open_split(folder, "train"), open_split(folder, "val")
    assert train.classes == ("cat", "dog") and len(train) == len(val) == 16
    for images, labels, _ in batches(val, training=False, eval_crop=1.0):
        for image, label in zip(images, labels):
            assert image[4, 4, 0] == label * 200 and image[4, 4, 2] == 50
    shapes = {images.shape for images, _, _ in batches(train, augment="resized_crop_flip")}
    assert shapes == {(4, 8, 8, 3)}


def test_a_text_file_named_jpg_is_named(folder):
    (folder / "train" / "dog" / "9.jpg").write_text("not a picture")
    with pytest.raises(RunError, match=r"dog.9\.jpg: not a picture that can be decoded"):
        list(batches(open_split(folder, "train"), batch_size=17))


def test_a_truncated_picture_is_named(folder):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noisy.save(folder / "train" / "cat" / "z.png")
    path = folder / "train" / "cat" / "z.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RunError, match=r"cat.z\.png: not a picture"):
        list(batches(open_split(folder, "train"), batch_size=17))


def test_a_file_that_vanishes_is_named(folder):
    train = open_split(folder, "train")
    (folder / "train" / "cat" / "3.png").unlink()
    with pytest.raises(RunError, match=r"3\.png: cannot be read"):
        list(batches(train, batch_size=16))


def test_missing_folder_empty_class_and_different_classes_are_one_line(folder, tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        open_split(tmp_path / "nowhere", "val")
    (folder / "val" / "bird").mkdir()
    with pytest.raises(RunError, match="bird: no pictures in this class"):
        open_split(folder, "val")
    Image.new("RGB", (4, 4)).save(folder / "val" / "bird" / "a.png")
    with pytest.raises(RunError, match="class 'bird' is in val/ but not in train/"):
        refuse_other_classes(open_split(folder, "train"), open_split(folder, "val"))
