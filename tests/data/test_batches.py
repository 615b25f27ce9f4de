"""Order, shards, copies, noise, mixing, padding, threads and broken images, against listings made by hand."""

import dataclasses
import errno
import io
import os
import threading
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from skipvit.config.groups import AugmentConfig
from skipvit.data import threads
from skipvit.data.batches import COLUMNS, Batches
from skipvit.data.broken import Broken
from skipvit.data.order import PADDING, Shard, training_order, training_steps
from skipvit.data.sources.arrays import Arrays, Subset
from skipvit.data.sources.image_folder import open_split
from skipvit.util.errors import RunError, Stopped

MIXED = AugmentConfig(mixup=0.8, cutmix=1.0)
ALL = AugmentConfig(
    crop="random_resized", crop_min=0.2, hflip=0.5, rand_augment=9, color_jitter=0.3, random_erasing=0.5
)
EVERYTHING = ALL.model_copy(update={"mixup": 0.8, "cutmix": 1.0, "repeats": 2})
UNMIXED = (1, 0, 0, 0, 0, 1)


class Files:
    """Encoded images in memory; the label of each is its index. What is an exception is raised instead of read."""

    def __init__(self, contents):
        self.contents, self.reads = list(contents), 0
        self.classes, self.labels = (
            tuple(map(str, range(len(self.contents)))),
            np.arange(len(self.contents), dtype=np.int32),
        )

    def __len__(self):
        return len(self.contents)

    def read(self, i):
        self.reads += 1
        if isinstance(self.contents[i], Exception):
            raise self.contents[i]
        return self.contents[i]

    def name(self, i):
        return f"folder/{i}.png"


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def samples(count, side=8):
    """Images in memory that say their own index: every pixel of image i is i, and so is its label."""
    images = np.zeros((count, side, side, 3), np.uint8) + np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Arrays(images, np.arange(count, dtype=np.int32), ("any",))


def photographs(count=26):
    rng = np.random.default_rng(0)
    return Files(encoded(rng.integers(0, 256, (30, 40, 3), np.uint8), "JPEG") for _ in range(count))


def plain_files(count, broken=()):
    """One colour each, which says the index; those of `broken` are text."""
    return Files(b"no image" if i in broken else encoded(np.full((9, 12, 3), i * 5, np.uint8)) for i in range(count))


def batches(source, **changes):
    settings = {"batch_size": 4, "image_size": 8, "noise_width": 3, "training": True, "seed": 5} | changes
    return Batches(source, **settings)


def column(data, name):
    return np.concatenate([np.atleast_1d(batch[COLUMNS.index(name)]) for batch in data])


def equal(first, second):
    """Batch by batch, bit by bit."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for one, other in zip(first, second)
        for a, b in zip(one, other, strict=True)
    )


def read(dataset, passes=1):
    """The passes of a MindSpore data set, each a list of batches."""
    iterator = dataset.create_tuple_iterator(num_epochs=passes, output_numpy=True)
    return [[tuple(batch) for batch in iterator] for _ in range(passes)]


# Order and shards


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_shards_cover_an_epoch_once(devices, accumulate):
    """98 images, 4 a device and step: whole updates of all devices, nothing twice, nothing missing but the rest."""
    source, update = samples(98), 4 * devices * accumulate
    shards = [batches(source, shard=Shard(rank, devices), accumulate=accumulate, epoch=3) for rank in range(devices)]
    seen = [list(shard) for shard in shards]
    assert {len(part) for part in seen} == {98 // update * accumulate} == {shards[0].steps}
    labels = np.concatenate([column(part, "label") for part in seen])
    assert len(set(labels)) == len(labels) == 98 // update * update
    assert 0 <= labels.min() and labels.max() < 98
    assert all((column(part, "image")[:, 0, 0, 0] == column(part, "label")).all() for part in seen)


@pytest.mark.parametrize("devices", [2, 8])
def test_a_step_of_all_devices_has_the_images_of_one_large_batch(devices):
    alone = batches(samples(98), batch_size=32)
    together = [
        list(batches(samples(98), batch_size=32 // devices, shard=Shard(rank, devices))) for rank in range(devices)
    ]
    for step, (_, labels, _, _) in enumerate(alone):
        assert sorted(labels) == sorted(label for part in together for label in part[step][1])


def test_a_batch_has_its_shapes_and_another_order_in_another_epoch_and_of_another_seed():
    images, labels, noise, mix = next(iter(batches(samples(40))))
    assert (images.dtype, labels.dtype, noise.dtype, mix.dtype) == (np.uint8, np.int32, np.float32, np.float32)
    assert (images.shape, labels.shape, noise.shape, mix.shape) == ((4, 8, 8, 3), (4,), (4, 3), (6,))
    runs = [batches(samples(40)), batches(samples(40), epoch=1), batches(samples(40), seed=6)]
    orders = {tuple(column(run, "label")) for run in runs}
    assert len(orders) == 3 and all(sorted(order) == list(range(40)) for order in orders)
    assert equal(runs[0], batches(samples(40)))


def test_every_image_comes_to_every_place():
    """The first place of 2000 epochs: ten images, 200 times each on average."""
    first = Counter(int(training_order(10, 8, Shard(), 0, epoch)[0][0]) for epoch in range(2000))
    assert len(first) == 10 and 130 < min(first.values()) and max(first.values()) < 270


def test_too_few_images_for_an_update_is_one_line():
    with pytest.raises(RunError, match=r"data.batch_size: one update takes 4 x 8 images and the training set has 10"):
        batches(samples(10), shard=Shard(0, 8))
    with pytest.raises(RunError, match=r"takes 4 x 1 x 3 images and the training set has 11"):
        training_steps(11, 4, Shard(), 3)
    assert training_steps(12, 4, Shard(), 3) == 3 and training_steps(23, 4, Shard(), 3) == 3


def test_a_subset_is_these_images_in_this_order():
    subset = Subset(plain_files(9, broken=[7]), [8, 2, 7])
    assert len(subset) == 3 and subset.labels.tolist() == [8, 2, 7] and subset.name(2) == "folder/7.png"
    found = batches(subset, training=False, batch_size=3, broken=Broken(3, 1.0))
    assert column(found, "label").tolist() == [8, 2, PADDING]
    assert column(found, "image")[:, 4, 4, 0].tolist() == [40, 10, 0]


# Repeated augmentation


@pytest.mark.parametrize("devices, repeats", [(1, 2), (2, 3), (4, 4), (8, 3)])
def test_a_chosen_image_occurs_as_often_as_asked_and_on_different_devices(devices, repeats):
    source = samples(98)
    shards = [
        batches(source, shard=Shard(rank, devices), augment=AugmentConfig(repeats=repeats), epoch=1)
        for rank in range(devices)
    ]
    assert shards[0].steps == batches(source, shard=Shard(0, devices)).steps
    devices_of: dict[int, list[int]] = {}
    for rank, shard in enumerate(shards):
        for label in column(shard, "label").tolist():
            devices_of.setdefault(label, []).append(rank)
    total = shards[0].steps * 4 * devices
    cut = [label for label, ranks in devices_of.items() if len(ranks) != repeats]
    assert len(devices_of) == -(-total // repeats) and sum(map(len, devices_of.values())) == total
    assert len(cut) == bool(total % repeats) and all(len(devices_of[label]) == total % repeats for label in cut)
    assert all(len(set(ranks)) == min(repeats, devices) for label, ranks in devices_of.items() if label not in cut)


def test_copies_are_augmented_each_in_its_own_way():
    source, copies = photographs(16), {}
    for rank in range(2):
        data = list(batches(source, shard=Shard(rank, 2), image_size=16, augment=ALL.model_copy(update={"repeats": 3})))
        for image, label, noise in zip(*(column(data, name) for name in ("image", "label", "noise"))):
            copies.setdefault(int(label), []).append((image.tobytes(), noise.tobytes()))
    assert max(map(len, copies.values())) == 3
    for found in copies.values():
        assert all(len(set(part)) == len(found) for part in zip(*found))


# What does not change anything


def test_the_number_of_threads_changes_nothing():
    source = photographs()
    runs = [list(batches(source, image_size=16, augment=EVERYTHING, workers=n, epoch=2)) for n in (1, 2, 4)]
    assert len(runs[0]) == 6 and equal(runs[0], runs[1]) and equal(runs[0], runs[2])
    unchanged = batches(source, image_size=16, augment=AugmentConfig(mixup=0.8, cutmix=1.0, repeats=2), epoch=2)
    assert not equal(runs[0], unchanged)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_entered_at_a_step_is_the_tail_of_the_whole_epoch(workers):
    settings = {"image_size": 16, "augment": EVERYTHING, "workers": workers}
    whole = list(batches(photographs(), **settings).of_epoch(2))
    for step in (0, 1, 4, 5, 6):
        entered = batches(photographs(), epoch=2, first_step=step, **settings)
        assert equal(entered, whole[step:])
        if step < 6:
            assert entered.dataset().get_dataset_size() == 6 - step
            assert equal(read(entered.dataset())[0], whole[step:])


def test_a_image_is_the_same_whichever_device_and_step_makes_it():
    """Pixels and noise are those of epoch and image: neither the number of devices nor the batch size changes them."""
    found = []
    for devices, size in ((1, 4), (2, 4), (2, 3), (8, 3)):
        made = {}
        for rank in range(devices):
            data = list(
                batches(photographs(24), shard=Shard(rank, devices), batch_size=size, image_size=16, augment=ALL)
            )
            for image, label, noise in zip(*(column(data, name) for name in ("image", "label", "noise"))):
                made[int(label)] = (image.tobytes(), noise.tobytes())
        assert len(made) == 24
        found.append(made)
    assert all(made == found[0] for made in found)


# Data sets


def test_the_passes_of_a_data_set_are_the_epochs_in_turn():
    data = batches(samples(40), augment=AugmentConfig(crop="pad", hflip=0.5, mixup=0.8, cutmix=1.0))
    for epoch, made in enumerate(read(data.dataset(), passes=3)):
        assert equal(made, data.of_epoch(epoch))
    for epoch, made in enumerate(read(batches(samples(40), epoch=7).dataset(), passes=2)):
        assert equal(made, batches(samples(40)).of_epoch(7 + epoch))


def test_asking_a_data_set_for_its_shapes_takes_no_epoch_away():
    dataset = batches(samples(40)).dataset()
    assert dataset.get_dataset_size() == 10 and dataset.get_col_names() == list(COLUMNS)
    assert dataset.output_shapes() == [[4, 8, 8, 3], [4], [4, 3], [6]]
    for epoch, made in enumerate(read(dataset, passes=2)):
        assert equal(made, batches(samples(40)).of_epoch(epoch))


# Noise and mixing


def test_noise_is_uniform_and_each_image_and_epoch_has_its_own():
    data = batches(samples(200), noise_width=50)
    first, again, other = (column(data.of_epoch(epoch), "noise") for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.isin(first, other).all(1).any()
    assert 0 <= first.min() and first.max() < 1
    assert abs(first.mean() - 0.5) < 5 * np.sqrt(1 / 12 / first.size)
    counts = np.histogram(first, 10, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 33.7  # chi-squared, 9 degrees of freedom: one in 10,000
    assert len(np.unique(first[:, 0])) == 200
    assert np.abs(np.corrcoef(first[:100].ravel(), other[:100].ravel())[0, 1]) < 0.07  # 5 / sqrt(5000)


def test_mix_numbers_are_those_of_a_step_an_epoch_and_a_device():
    def numbers(**changes):
        return [batch[3].tobytes() for batch in batches(samples(98), augment=AugmentConfig(mixup=0.8), **changes)]

    runs = [numbers(), numbers(epoch=1), numbers(seed=6), numbers(shard=Shard(0, 2)), numbers(shard=Shard(1, 2))]
    assert [len(run) for run in runs] == [24, 24, 24, 12, 12]
    # Whether the number of devices changes those of the first device is left open.
    different = runs[0] + runs[1] + runs[2] + runs[4]
    assert len(set(different)) == len(different)
    assert len(set(runs[3] + runs[4])) == 24
    assert runs == [
        numbers(),
        numbers(epoch=1),
        numbers(seed=6),
        numbers(shard=Shard(0, 2)),
        numbers(shard=Shard(1, 2)),
    ]
    assert all(batch[3].tolist() == list(UNMIXED) for batch in batches(samples(40)))


# Validation


@pytest.mark.parametrize("count, devices", [(10, 1), (10, 2), (3, 2), (16, 2), (1, 8)])
def test_validation_shows_everything_once_and_pads_to_whole_batches(count, devices):
    shards = [
        batches(samples(count), training=False, augment=MIXED, shard=Shard(rank, devices)) for rank in range(devices)
    ]
    data = [list(shard) for shard in shards]
    assert {len(part) for part in data} == {-(-count // (4 * devices))} == {shards[0].steps}
    labels = np.concatenate([column(part, "label") for part in data])
    images = np.concatenate([column(part, "image") for part in data])
    assert sorted(labels[labels != PADDING]) == list(range(count))
    assert (images[labels != PADDING][:, 0, 0, 0] == labels[labels != PADDING]).all() and not images[
        labels == PADDING
    ].any()
    assert all(batch[3].tolist() == list(UNMIXED) for part in data for batch in part)
    if devices == 1:
        assert labels.tolist() == [*range(count), *[PADDING] * (-count % 4)]


def test_validation_is_the_same_every_time_and_on_any_number_of_devices():
    source = samples(10)
    alone = batches(source, training=False)
    assert equal(alone, alone) and equal(alone, batches(source, training=False, workers=3, epoch=4))
    noise = dict(zip(column(alone, "label").tolist(), map(bytes, column(alone, "noise"))))
    for rank in range(2):
        shard = list(batches(source, training=False, shard=Shard(rank, 2)))
        assert all(
            noise[label] == bytes(row)
            for label, row in zip(column(shard, "label"), column(shard, "noise"))
            if label >= 0
        )
    assert len(set(noise.values())) == 11  # of ten images, and the zeros of those that pad


def test_files_are_cropped_for_validation_and_arrays_are_not():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    image = Image.fromarray(pixels)
    of_file = column(batches(Files([encoded(pixels)]), training=False, eval_crop=0.5), "image")[0]
    assert np.array_equal(of_file, image.resize((16, 16), Image.Resampling.BICUBIC).crop((4, 4, 12, 12)))
    of_array = column(
        batches(Arrays(pixels[None], np.zeros(1, np.int32), ("a",)), training=False, eval_crop=0.5), "image"
    )[0]
    assert np.array_equal(of_array, image.resize((8, 8), Image.Resampling.BICUBIC))


# Broken images

BROKEN = [3, 4, 11]


def listed(path):
    return dict(line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("workers", [1, 4])
def test_a_broken_training_image_is_replaced_by_the_next_good_one(tmp_path, workers):
    path = tmp_path / "broken.txt"
    data = batches(plain_files(12, BROKEN), workers=workers, broken=Broken(12, 0.25, path))
    for epoch in range(3):
        made = list(data.of_epoch(epoch))
        labels = column(made, "label")
        assert Counter(labels.tolist()) == Counter([0, 0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10])
        assert (column(made, "image") == (labels * 5)[:, None, None, None]).all()
        # Where it stands in the epoch is where the broken one stood.
        expected = [{3: 5, 4: 5, 11: 0}.get(i, i) for i in training_order(12, 12, Shard(), 5, epoch)[0].tolist()]
        assert labels.tolist() == expected
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"folder/{i}.png\tcannot identify image file" for i in BROKEN)


def test_a_broken_validation_image_does_not_count(tmp_path):
    path = tmp_path / "broken.txt"
    data = batches(plain_files(14, BROKEN), training=False, workers=2, broken=Broken(14, 0.25, path))
    for _ in range(2):
        assert column(data, "label").tolist() == [0, 1, 2, -1, -1, 5, 6, 7, 8, 9, 10, -1, 12, 13, -1, -1]
        assert not column(data, "image")[BROKEN].any()
    assert len(path.read_text().splitlines()) == 3 and set(listed(path)) == {f"folder/{i}.png" for i in BROKEN}


@pytest.mark.parametrize("training", [True, False])
def test_more_broken_images_than_the_share_allows_end_the_run(tmp_path, training):
    path = tmp_path / "broken.txt"
    data = batches(plain_files(12, [*BROKEN, 7]), training=training, broken=Broken(12, 0.25, path))
    with pytest.raises(RunError) as error:
        list(data)
    assert str(error.value).startswith("folder/") and "data.broken_share 0.25 allows 3" in str(error.value)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert len(listed(path)) == 4


def test_no_share_stops_at_the_first_and_any_share_allows_one():
    reason = r"^folder/3.png: not an image that can be decoded \(cannot identify image file\).*data.broken_share"
    with pytest.raises(RunError, match=reason):
        list(batches(plain_files(12, [3]), broken=Broken(12, 0.0)))
    with pytest.raises(RunError, match=reason):
        list(batches(plain_files(12, [3])))  # nothing is allowed unless it is said
    assert len(list(batches(plain_files(12, [3]), broken=Broken(12, 0.01)))) == 3
    with pytest.raises(RunError, match="number 2; data.broken_share 0.01 allows 1"):
        list(batches(plain_files(12, [3, 5]), broken=Broken(12, 0.01)))


def test_what_is_listed_already_counts(tmp_path):
    """As after a resume: the file has three of the four that are allowed."""
    path = tmp_path / "broken.txt"
    path.write_text("".join(f"folder/{i}.png\tsome reason\n" for i in BROKEN))
    four = plain_files(16, [*BROKEN, 7])
    list(batches(four, broken=Broken(16, 0.25, path)))
    assert listed(path) == {f"folder/{i}.png": "some reason" for i in BROKEN} | {
        "folder/7.png": "cannot identify image file"
    }
    with pytest.raises(RunError, match=r"^folder/9.png: .* allows 4"):
        list(batches(plain_files(16, [*BROKEN, 7, 9]), broken=Broken(16, 0.25, path)))


def test_devices_that_share_a_list_name_a_image_once(tmp_path):
    devices = [Broken(100, 0.5, tmp_path / "broken.txt") for _ in range(2)]
    for name in ("a", "b", "a"):
        for device in devices:
            device.add(name, "a reason")
    assert (tmp_path / "broken.txt").read_text() == "a\ta reason\nb\ta reason\n"


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.jpg"), "two\nlines\tand a tab.jpg", "\u2028.jpg"])
def test_a_name_of_strange_characters_is_listed_on_one_line(tmp_path, name):
    path = tmp_path / "broken.txt"
    for _ in range(2):
        broken = Broken(100, 0.5, path)
        broken.add(name, "a reason")
        broken.add("plain.jpg", "a reason")
        assert len(broken.names) == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(RunError) as error:
        Broken(100, 0.0).add(name, "a reason")
    assert len(str(error.value).splitlines()) == 1


def test_many_threads_list_a_image_once(tmp_path):
    broken = Broken(1000, 1.0, tmp_path / "broken.txt")
    threads = [threading.Thread(target=lambda: [broken.add(f"{i}", "reason") for i in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "broken.txt").read_text().splitlines() == [f"{i}\treason" for i in range(200)]


def test_a_list_that_cannot_be_written_stops_nothing(tmp_path):
    broken = Broken(12, 0.25, tmp_path / "nowhere" / "broken.txt")
    assert len(list(batches(plain_files(12, BROKEN), broken=broken))) == 3
    assert broken.names == {f"folder/{i}.png" for i in BROKEN}


def test_a_pipe_in_the_place_of_the_list_stops_nothing(tmp_path):
    os.mkfifo(tmp_path / "broken.txt")
    broken = Broken(12, 0.25, tmp_path / "broken.txt")
    broken.add("image.png", "a reason")
    assert broken.names == {"image.png"}


def test_a_file_that_vanishes_is_a_broken_image(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (12, 9), (label * 200, i * 20, 50)).save(tmp_path / "train" / name / f"{i}.png")
    source, path = open_split(tmp_path, "train"), tmp_path / "broken.txt"
    (tmp_path / "train" / "cat" / "5.png").unlink()
    (tmp_path / "train" / "dog" / "2.png").unlink()
    (tmp_path / "train" / "dog" / "2.png").mkdir()
    made = list(batches(source, broken=Broken(12, 0.2, path)))
    # The next one may be of another class: the label goes with it.
    assert Counter(column(made, "label").tolist()) == {0: 5, 1: 7}
    assert (column(made, "image")[:, 4, 4, 0] == column(made, "label") * 200).all()
    missing, folder = (str(tmp_path / "train" / name) for name in ("cat/5.png", "dog/2.png"))
    assert listed(path) == {missing: "No such file or directory", folder: "not a regular file"}


def test_all_images_broken(tmp_path):
    source = plain_files(8, range(8))
    with pytest.raises(RunError, match="^no image of the training set can be decoded$"):
        list(batches(source, broken=Broken(8, 1.0)))
    assert (column(batches(source, training=False, broken=Broken(8, 1.0)), "label") == PADDING).all()
    with pytest.raises(RunError, match="allows 4"):
        list(batches(source, broken=Broken(8, 0.5)))
    data = batches(source, broken=Broken(8, 1.0))
    with pytest.raises(RuntimeError) as error:
        read(data.dataset())
    assert str(data.explain(error.value)) == "no image of the training set can be decoded"


def test_a_lack_of_memory_is_no_broken_image(tmp_path):
    source = plain_files(12)
    source.contents[5] = MemoryError("no memory left")
    data = batches(source, broken=Broken(12, 1.0, tmp_path / "broken.txt"))
    with pytest.raises(MemoryError):
        list(data)
    assert not data.broken.names and not (tmp_path / "broken.txt").exists()


def test_why_a_step_failed_is_known_although_the_engine_hands_on_a_text():
    data = batches(plain_files(12, [3]))
    with pytest.raises(RuntimeError) as error:
        read(data.dataset())
    reason = data.explain(error.value)
    assert isinstance(reason, RunError) and str(reason).startswith("folder/3.png: not an image that can be decoded")
    other = batches(samples(12)).explain(
        RuntimeError("----------\n- What happened\n----------\nmatmul  broke\n" + "x" * 500)
    )
    assert isinstance(other, RunError) and "\n" not in str(other) and len(str(other)) < 500
    assert str(other).startswith("a training step failed: What happened matmul broke xxx")


# Threads


def alive():
    """The threads that make batches; the dataset engine has some of its own."""
    return {thread for thread in threading.enumerate() if thread.name == "batches"}


def test_a_broken_off_epoch_leaves_no_threads():
    before, source = alive(), photographs(100)
    iterator = iter(batches(source, workers=4, augment=ALL))
    next(iterator)
    assert alive() - before
    iterator.close()
    assert alive() <= before
    with pytest.raises(RunError):
        list(batches(plain_files(100, [3]), workers=4))
    assert alive() <= before
    for _ in batches(source, workers=4):
        break
    deadline = time.monotonic() + 5
    while alive() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() <= before


def test_threads_of_an_epoch_that_is_never_ended_end_before_the_interpreter(monkeypatch):
    """They may be in a library's code when it is taken down, which ends the process by SIGSEGV."""
    monkeypatch.setattr(threads, "ENDS_WITHIN_S", 0.2)
    before = alive()
    left, stuck = iter(batches(photographs(100), workers=4, augment=ALL)), Unanswered()
    next(left)
    waits = iter(batches(stuck, workers=2))
    next(waits)
    while stuck.reads < 5:
        time.sleep(0.01)
    begun = time.monotonic()
    threads.end_all()
    assert time.monotonic() - begun < 3  # a storage that does not answer is not waited for
    stuck.over.set()
    deadline = time.monotonic() + 5
    while alive() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() <= before


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_read_only_a_little_ahead(workers):
    """A batch for each thread, one that is taken: memory does not grow with the epoch."""
    source = plain_files(51)
    iterator = iter(batches(source, batch_size=1, workers=workers))
    for taken in range(1, 20):
        next(iterator)
        time.sleep(0.005)
        assert taken <= source.reads <= taken + workers
    iterator.close()
    assert source.reads <= 19 + workers


class Unanswered:
    """A storage that stops to answer: from the fifth image on reading waits until the test is over."""

    def __init__(self):
        self.reads, self.over = 0, threading.Event()
        self.classes, self.labels = ("any",), np.zeros(40, np.int32)

    def __len__(self):
        return 40

    def read(self, i):
        self.reads += 1
        if self.reads > 4:
            self.over.wait(60)
        return np.zeros((8, 8, 3), np.uint8)

    def name(self, i):
        return f"image {i}"


@pytest.mark.parametrize("training", [True, False])
def test_a_stop_is_heard_while_the_storage_does_not_answer(training):
    source, asked = Unanswered(), threading.Event()
    data = batches(source, training=training, workers=1, interrupted=asked.is_set)
    iterator = iter(data)
    next(iterator)
    threading.Timer(0.3, asked.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        next(iterator)
    assert time.monotonic() - begun < 5 and isinstance(data.problem, Stopped)
    assert all(thread.daemon for thread in alive())  # they keep no process from ending
    source.over.set()


def test_a_stop_is_the_reason_although_the_engine_hands_on_a_text():
    source = Unanswered()
    data = batches(source, interrupted=lambda: source.reads > 4)
    with pytest.raises(RuntimeError) as error:
        read(data.dataset())
    assert isinstance(data.explain(error.value), Stopped)
    source.over.set()


def test_one_of_several_devices_does_not_stop_at_once(monkeypatch):
    """A batch that takes a moment is no reason to leave the others waiting."""
    source = Unanswered()
    data = batches(source, shard=Shard(0, 2), interrupted=lambda: True)
    threading.Timer(1.0, source.over.set).start()
    assert len(list(data)) == 5
    monkeypatch.setattr("skipvit.data.batches.ALONE_AFTER_S", 0.5)
    source = Unanswered()
    with pytest.raises(Stopped):
        list(batches(source, shard=Shard(0, 2), interrupted=lambda: True))
    source.over.set()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP, errno.EINVAL, errno.ENXIO])
def test_an_image_that_cannot_be_opened_is_broken_and_the_storage_is_not(number, tmp_path):
    source = plain_files(12)
    source.contents[3] = OSError(number, os.strerror(number))
    assert len(list(batches(source, broken=Broken(12, 0.1, tmp_path / "broken.txt")))) == 3
    assert listed(tmp_path / "broken.txt") == {"folder/3.png": os.strerror(number)}


def test_a_storage_that_fails_gets_some_time(monkeypatch):
    pauses = []
    monkeypatch.setattr("skipvit.data.batches.time.sleep", pauses.append)
    source = plain_files(12)
    source.contents[3] = OSError(errno.EIO, "Input/output error")
    reason = r"folder/3.png: cannot be read \(Input/output error\); is the storage there\?"
    with pytest.raises(RunError, match=reason):
        list(batches(source, broken=Broken(12, 1.0)))
    assert pauses == [1, 4, 15]


def test_settings_can_be_replaced():
    """As the commands do for another split or another number of threads: steps and order follow."""
    data = batches(samples(40))
    smaller = dataclasses.replace(data, batch_size=2, source=samples(30))
    assert (data.steps, smaller.steps) == (10, 15) and len(list(smaller)) == 15
