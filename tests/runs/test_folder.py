"""What a run writes beside its checkpoints: log lines, records, curves, TensorBoard events."""

import json
import os
import struct
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from skipvit.config.config import Config
from skipvit.runs import events
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import read_records
from skipvit.util.errors import UsageError
from skipvit.util.log import show


@pytest.fixture
def folder(tmp_path):
    result = RunFolder(tmp_path / "run")
    result.claim()
    result.write_config("name: run\n")
    return result


def epoch(number, **values):
    scores = {"top1": 10.0 * number, "top5": 50.0, "loss": 2.0 / number}
    return {
        "epoch": number,
        "phase": "routed",
        "train_loss": 1.0,
        "val": {"dense": scores, "routed_ema": scores},
    } | values


def test_numbers_that_are_not_finite_are_null_and_a_torn_line_harms_only_itself(folder):
    folder.log(epoch(1, gradient_norm=float("inf"), train_loss=float("nan")))
    path = folder.path / "metrics.jsonl"
    assert json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))["gradient_norm"] is None
    with open(path, "a") as file:
        file.write('{"epoch": 2, "tra')  # killed here
    folder.log(epoch(3))
    assert [r["epoch"] for r in read_records(folder.path)] == [1, 3]


def test_a_log_that_cannot_be_written_is_a_warning(folder, capsys):
    show()
    (folder.path / "metrics.jsonl").mkdir()
    folder.log(epoch(1))
    assert "warning: " in capsys.readouterr().err and read_records(folder.path) == []


@pytest.mark.parametrize("what", ["file", "loop", "locked"])
def test_checkpoints_that_could_not_be_written_are_noticed_before_the_training(folder, what, monkeypatch):
    if what == "file":
        folder.checkpoints.touch()
    elif what == "loop":
        folder.checkpoints.symlink_to("checkpoints")
    else:
        folder.checkpoints.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    folder.release()
    with pytest.raises(UsageError, match="run/checkpoints: not a folder that can be read and written"):
        folder.claim()


def test_a_pipe_in_the_place_of_the_log_is_a_warning(folder, capsys):
    """Nobody reads from it: whoever opens it to write would wait for ever."""
    show()
    os.mkfifo(folder.path / "metrics.jsonl")
    folder.log(epoch(1))
    assert "warning: " in capsys.readouterr().err and read_records(folder.path) == []


def test_curves_show_every_panel(folder):
    for number in (1, 2, 3):
        folder.log(epoch(number, lr=0.1, images_per_s=100.0, loss_scale=2.0**number, overflows=number))
    phases = [{"epochs": 1, "routes": []}, {"epochs": 1}, {"routes": []}]
    model = {"width": 16, "depth": 4, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}
    config = Config(
        model=model, routes=[{"start": 1, "end": 3}], phases=phases, optim={"epochs": 3, "warmup_epochs": 0}
    )
    folder.draw_curves(config.resolved_phases())
    image = np.asarray(Image.open(folder.path / "curves.png").convert("L"))
    height, width = image.shape
    for row in range(2):
        for column in range(3):
            panel = image[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
            assert (panel < 200).mean() > 0.01


def test_curves_that_cannot_be_drawn_stop_nothing(folder, capsys, monkeypatch):
    show()
    (folder.path / "curves.png").write_text("old")
    for error in (OSError(28, "No space left on device"), ValueError("no glyph\nfor it")):
        monkeypatch.setattr("skipvit.runs.folder.curves", Mock(side_effect=error))
        folder.draw_curves(())
        err = capsys.readouterr().err
        assert "curves.png: not drawn (no glyph)" in err or "curves.png: not drawn (No space left" in err
    assert (folder.path / "curves.png").read_text() == "old"


def test_logs_that_are_no_files_are_a_warning(folder, capsys):
    show()
    os.mkfifo(folder.path / "metrics.jsonl")
    folder.log(epoch(1))
    assert "a line of the log could not be written (not a regular file)" in capsys.readouterr().err
    assert read_records(folder.path) == []


def test_tensorboard_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(events, "EventsWriter", None)
    with pytest.raises(UsageError, match="log.tensorboard: needs `pip install tensorboardX`"):
        events.require()


def test_a_folder_in_which_another_process_trains_is_refused(folder):
    with pytest.raises(UsageError, match="another process trains in it"):
        RunFolder(folder.path).claim()
    folder.release()
    RunFolder(folder.path).claim()


def test_garbage_in_its_own_files_stops_nothing(folder):
    (folder.path / "metrics.jsonl").write_bytes(b'17\n{"epoch": "x"}\n\xff\xfe\n[1]\n')
    folder.log(epoch(1))
    assert [r["epoch"] for r in read_records(folder.path)] == [1]
    for text in ("", "17", '{"started": "today"}', "[" * 100_000):
        (folder.path / "versions.json").write_text(text)
        folder.note(["train.py"])
        (start,) = json.loads((folder.path / "versions.json").read_text())
        assert start["command"] == "train.py", text


@pytest.mark.slow
def test_tensorboard_events_hold_the_logged_numbers(folder):
    from tensorboardX.proto.event_pb2 import Event

    folder.open_events()
    folder.log({"step": 50, "loss": 2.5})
    folder.log(epoch(1))
    folder.release()
    (path,) = (folder.path / "tensorboard").iterdir()
    content, at, found = path.read_bytes(), 0, {}
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)  # then its checksum, the event, the event's checksum
        event = Event.FromString(content[at + 12 : at + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += 16 + length
    assert found["step/loss"] == (50, 2.5) and found["epoch/routed_ema/top1"] == (1, 10.0)


def test_no_room_for_the_checkpoints_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 * 2**30}))
    folder = RunFolder(tmp_path / "runs/run")
    folder.refuse_no_room(2**30, keep=3)
    with pytest.raises(UsageError, match=r"its checkpoints will take 6.0 GiB and the disk has 5.0 GiB free"):
        folder.refuse_no_room(2**30, keep=4)
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "best.ckpt").touch()  # a run to go on with needs less
    folder.refuse_no_room(2**30, keep=4)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the run folder cannot be made in .*/file; choose another --runs"):
        RunFolder(tmp_path / "file/run").refuse_no_room(1, keep=1)
