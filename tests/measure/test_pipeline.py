"""`skipvit pipeline`: what is measured, against a source that counts and clocks that are set; the whole command."""

import json
import threading
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from skipvit.cli import run
from skipvit.cli.pipeline import main
from skipvit.config.groups import AugmentConfig
from skipvit.config.reading import load_config
from skipvit.measure import pipeline as tool
from skipvit.measure.pipeline import Setting, as_text, measure, report, thread_counts
from skipvit.util.errors import RunError, UsageError

CONFIG = {
    "model": {"size": "tiny", "width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 2},
    "data": {"kind": "image_folder", "batch_size": 4},
    "augment": {"crop": "random_resized", "rand_augment": 9},
    "optim": {"accumulate": 8, "warmup_epochs": 0},
}


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, and a configuration of them."""
    for i in range(6):
        path = tmp_path / "data" / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(CONFIG | {"data": CONFIG["data"] | {"path": str(tmp_path / "data")}})
    )
    return tmp_path


class Slow:
    """Images of which each takes five milliseconds to read and no processor."""

    classes, labels = ("a",), np.zeros(10, np.int32)

    def __init__(self):
        self.lock, self.reads = threading.Lock(), 0

    def __len__(self):
        return 10

    def read(self, i):
        time.sleep(0.005)
        with self.lock:
            self.reads += 1
        return np.full((32, 32, 3), i, np.uint8)

    def name(self, i):
        return str(i)


def words(folder, *more):
    return ["--config", str(folder / "run.yaml"), "--seconds", "0.1", *more]


def test_numbers_of_threads():
    assert [thread_counts(n) for n in (1, 2, 3, 4, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


def test_a_waiting_pipeline_gains_with_threads_and_takes_no_processor(folder):
    config, source = load_config(folder / "run.yaml"), Slow()
    config = config.model_copy(update={"augment": AugmentConfig()})
    settings = measure(config, source, [1, 4], 0.4)
    assert [(s.threads, s.plain) for s in settings] == [(1, False), (4, False), (1, True)]
    one, four, plain = (np.median(s.wall) for s in settings)
    assert one >= 0.005 and plain >= 0.005 and one / four > 2
    assert all(np.median(s.processor) < 0.004 for s in settings)
    assert all(s.seconds >= 0.4 and s.steps % s.threads == 0 and len(s.wall) == len(s.processor) for s in settings)
    assert len({len(s.wall) for s in settings}) == 1  # interleaved: as many rounds of each
    made = sum(4 * s.steps * len(s.wall) for s in settings)
    assert source.reads == made + 3 * 2 * 4  # and two first batches of each setting, which are not counted


def test_processor_time_is_that_of_the_work(folder, monkeypatch):
    """A second of processor for each image augmented, a quarter for one that is only cut out."""
    clock = [0.0, threading.Lock()]

    def image(data, size, augment, rng):
        assert augment.crop == "random_resized"
        with clock[1]:
            clock[0] += 0.25 if augment == AugmentConfig(crop="random_resized") else 1.0
        time.sleep(0.001)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr("skipvit.data.batches.training_image", image)
    monkeypatch.setattr(tool.time, "process_time", lambda: clock[0])
    config = load_config(folder / "run.yaml")
    settings = measure(config, Slow(), [1, 2], 0.1)
    assert [set(s.processor) for s in settings] == [{1.0}, {1.0}, {0.25}]
    result = report(config, 10, settings, 30)
    assert (
        result["decode_share"] == 0.25 and result["cores_per_device"] == 30 and result["cores_for_eight_devices"] == 240
    )


def test_the_report_counts_cores_at_the_most_threads():
    settings = [
        Setting(1, False, wall=[0.01, 0.02, 0.9], processor=[0.01, 0.01, 0.05]),
        Setting(2, False, wall=[0.0125], processor=[0.02]),
        Setting(1, True, wall=[0.01], processor=[0.009]),
    ]
    result = report(load_config("skipvit_small_imagenet.yaml", {"data.path": "x"}), 100, settings, 500)
    assert [row["images_per_s"] for row in result["settings"]] == [50, 80]
    assert [row["images_per_s_per_core"] for row in result["settings"]] == [100, 50]
    assert (result["cores_per_device"], result["cores_for_eight_devices"]) == (10, 80) and np.isclose(
        result["decode_share"], 0.9
    )
    assert as_text(result).splitlines() == [
        "100 images, made 224 x 224 in batches of 128",
        "threads  images/s  against one  CPU ms an image  images/s a core",
        "      1      50.0       1.00 x            10.00            100.0",
        "      2      80.0       1.60 x            20.00             50.0",
        "reading, decoding and cropping: 90 % of the CPU time; augmenting: 10 %",
        "500 images/s: 10.0 cores for one device, 80.0 for eight",
    ]


def test_the_command_on_images_fewer_than_an_update(folder, capsys):
    main(words(folder, "--threads", "2", "--need", "200"))
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("6 images, made 32 x 32 in batches of 4\n") and "200 images/s: " in out
    main(words(folder, "--json", "--threads", "1", "--data.batch_size", "3"))
    result = json.loads(capsys.readouterr().out)
    assert result["batch_size"] == 3 and [row["threads"] for row in result["settings"]] == [1]
    row = result["settings"][0]
    assert row["cpu_s_per_image"] > 0 and np.isclose(result["cores_per_device"], 1000 * row["cpu_s_per_image"])
    assert 0 < result["decode_share"] <= 1


def test_images_from_memory(capsys):
    main(
        [
            "--config",
            "skipvit_mini_shapes_cpu.yaml",
            "--data.train_size",
            "200",
            "--seconds",
            "0.05",
            "--threads",
            "1",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["images"] == 200


WRONG = [["--threads", "0"], ["--seconds", "-1"], ["--need", "nan"], ["--seconds", "x"], ["--thread", "1"]]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_numbers_are_one_line(folder, wrong):
    with pytest.raises(UsageError) as error:
        main(words(folder, *wrong))
    assert wrong[0] in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_and_broken_images_are_one_line(folder, capsys):
    with pytest.raises(UsageError, match="is not a folder"):
        main(words(folder, "--data.path", str(folder / "nowhere")))
    for name in ("a/0.jpg", "b/1.jpg"):
        (folder / "data" / "train" / name).write_text("no image")
    with pytest.raises(RunError, match=r"[ab]/[01]\.jpg: not an image that can be decoded"):
        main(words(folder))
    assert run("pipeline", words(folder)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    main(words(folder, "--data.broken_share", "0.5"))
