"""The runs of a sweep as processes: stops, full disks, runs that cannot be started."""

import json
import signal
import subprocess
from unittest.mock import Mock

import pytest

from skipvit.lab import plan as plans
from skipvit.lab.jobs import Jobs, Place
from skipvit.util.errors import RunError
from support.plans import write


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_are_asked_with_the_signal_that_came_and_then_killed(tmp_path, number):
    jobs, child = Jobs(tmp_path, (), [], lambda line: None), Mock()
    jobs.running = [child]
    for sent in (number, signal.SIGKILL):
        jobs.ask_to_stop(number)
        jobs.hand_stops_on()
        child.process.send_signal.assert_called_with(sent)


def jobs_of(tmp_path, said, monkeypatch, line):
    """Jobs whose trainers do what a line of shell says."""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen(["sh", "-c", line], **options))
    trials = plans.read(write(tmp_path, seeds=1)).trials
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    return Jobs(folder, trials, [Place()], said.append)


def test_a_full_disk_does_not_end_the_sweep(tmp_path, monkeypatch):
    """`failed.json` cannot be written: that is said, every run is tried, and the failures are named at the end."""

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipvit.lab.jobs.write_whole", full)
    said = []
    with pytest.raises(RunError, match="2 of 2 runs failed: dense-s0 .no images.; skipvit-s0 .no images."):
        jobs_of(tmp_path, said, monkeypatch, "echo error: no images; exit 2").follow()
    assert any("failed.json: not written (No space left on device)" in line for line in said)


def test_failures_are_written_whole(tmp_path, monkeypatch):
    with pytest.raises(RunError):
        jobs_of(tmp_path, [], monkeypatch, "kill -SEGV $$").follow()
    failed = json.loads((tmp_path / "runs/tiny/failed.json").read_text())
    assert failed["dense-s0"] == "ended by SIGSEGV, after printing: nothing"
    assert not list((tmp_path / "runs/tiny").glob(".partial*"))


def test_an_error_of_the_sweep_waits_for_its_runs(tmp_path, monkeypatch):
    """A run takes a moment to save after SIGTERM; the sweep ends after it, and leaves no process behind."""
    line = f"trap 'sleep 1; touch {tmp_path}/saved; exit 3' TERM; while true; do sleep 0.1; done"
    jobs = jobs_of(tmp_path, [], monkeypatch, line)

    def fail_later(looks=[]):  # noqa: B006
        looks.append(0)
        if len(looks) > 2:
            raise ValueError

    monkeypatch.setattr(jobs, "look", fail_later)
    with pytest.raises(ValueError):
        jobs.follow()
    assert (tmp_path / "saved").exists() and jobs.running[0].process.poll() == 3


def test_a_run_that_cannot_be_started_is_a_failed_one(tmp_path, monkeypatch):
    jobs = jobs_of(tmp_path, [], monkeypatch, "")

    def refuse(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(RunError, match="dense-s0 .could not be started .Resource temporarily unavailable"):
        jobs.follow()
