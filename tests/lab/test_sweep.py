"""`skipvit sweep`: every run once, whatever happens meanwhile; words and folders refused in one line."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skipvit.cli import run
from skipvit.config.config import to_yaml
from skipvit.config.reading import checked, load_config
from skipvit.lab import plan as plans
from skipvit.lab import sweep as sweeps
from skipvit.lab.sweep import Sweep, places_of, take_over
from support.plans import BASE, ROUTES, refused, write

SRC = Path(__file__).parents[2] / "src"


def begin(folder, *words):
    """A sweep in a process of its own, as from a terminal."""
    command = [sys.executable, "-m", "skipvit", "sweep", "tiny.yaml", *words]
    with open(folder / "out.txt", "ab") as out:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(SRC)},
            start_new_session=True,
        )


def wait(condition, process=None, seconds=200):
    for _ in range(20 * seconds):
        if condition():
            return
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def starts(folder):
    """How often each run has been started."""
    return {
        path.parent.name: len(json.loads(path.read_text())) for path in (folder / "runs/tiny").glob("*/versions.json")
    }


def summaries(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "runs/tiny").glob("*/summary.json")}


def begun(folder, name):
    return (folder / "runs/tiny" / name / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_and_killed_completes_and_does_no_finished_run_twice(tmp_path):
    """Must-show: Ctrl-C in the first runs, SIGKILL in the next ones, then to the end."""
    write(tmp_path)
    words = ["--jobs", "1", "--optim.epochs", "6", "--eval.every", "6"]
    first = begin(tmp_path, *words)
    wait(lambda: begun(tmp_path, "dense-s1"), first)  # so dense-s0 is finished
    os.killpg(first.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the process group
    assert first.wait(200) == 3
    assert "the same command goes on" in (tmp_path / "out.txt").read_text()
    done = summaries(tmp_path)
    assert "dense-s0" in done and "skipvit-s0" not in done

    second = begin(tmp_path, *words)
    wait(lambda: begun(tmp_path, "skipvit-s0"), second)
    second.kill()
    done = summaries(tmp_path)
    assert "dense-s1" in done

    third = begin(tmp_path, *words)  # at once: the orphan may still be saving
    assert third.wait(400) == 0, (tmp_path / "out.txt").read_text()
    after = summaries(tmp_path)
    assert set(after) == {"dense-s0", "dense-s1", "skipvit-s0", "skipvit-s1"}
    assert all(after[name] == when for name, when in done.items())  # not written again
    assert (
        starts(tmp_path)["dense-s0"] == 1
        and starts(tmp_path)["skipvit-s1"] == 1
        and starts(tmp_path)["skipvit-s0"] == 2
    )
    for name in after:
        records = [
            json.loads(line) for line in (tmp_path / "runs/tiny" / name / "metrics.jsonl").read_text().splitlines()
        ]
        assert {r["epoch"] for r in records if "epoch" in r} == set(range(1, 7))
    kept = {name: len(list((tmp_path / "runs/tiny" / name / "checkpoints").glob("epoch_*"))) for name in after}
    assert kept == {"dense-s0": 3, "dense-s1": 1, "skipvit-s0": 3, "skipvit-s1": 1}

    again = begin(tmp_path, *words)
    assert again.wait(100) == 0 and summaries(tmp_path) == after


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_which_are_reported(tmp_path, capsys):
    """The failed one is named; the report of the others measures speed, and dense weights along the route as `skipvit
    eval` does."""
    broken = {"data": {"kind": "image_folder", "path": "nowhere"}}
    write(tmp_path, seeds=1, methods={"dense": {}, "broken": broken, "skipvit": ROUTES})
    process = begin(tmp_path)
    assert process.wait(300) == 1
    printed = (tmp_path / "out.txt").read_text()
    assert (
        "error: 1 of 3 runs failed: broken-s0 (data.path: nowhere/train is not a folder" in printed
        and "2 of 3 done" in printed
    )
    folder = tmp_path / "runs/tiny"
    assert list(json.loads((folder / "failed.json").read_text())) == ["broken-s0"]
    assert set(summaries(tmp_path)) == {"dense-s0", "skipvit-s0"}

    assert run("report", [str(folder), "--bench", "--rounds", "6", "--widest", "9", "--weights", "--images"]) == 0
    markdown = (folder / "report/report.md").read_text()
    assert (
        "one seed: nothing can be said" in markdown
        and "measured gain of a step" in markdown
        and "kept_skipvit.png" in markdown
    )
    capsys.readouterr()
    weights = sorted((folder / "dense-s0/checkpoints").glob("epoch_*"))[-1]
    assert run("eval", ["--config", str(folder / "skipvit-s0/config.yaml"), "--weights", str(weights), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    found = json.loads((folder / "weights.json").read_text())["dense_weights_routed"]
    assert found["skipvit"][0]["top1"] == expected["routed"]["top1"]
    assert f"| skipvit | {expected['dense']['top1']:.2f} | {expected['routed']['top1']:.2f} |" in markdown
    trained = json.loads((folder / "skipvit-s0/summary.json").read_text())
    right = json.loads((folder / "images.json").read_text())["hits"]["skipvit"][0]
    hits = np.unpackbits(np.frombuffer(base64.b64decode(right["hits"]), np.uint8))[: right["images"]]
    assert right["images"] == 40 and 100 * hits.mean() == pytest.approx(trained["forwards"]["routed"]["top1"])
    assert "# Image by image\n" in markdown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs: 0 runs at the same time"),
        (["--job", "2"], "--job is not an option; did you mean --jobs?"),
        (["--name", "x"], "--name: the sweep sets it"),
        (["--routes", "["], "routes: line 1, column 2: not valid YAML"),
        (["--phases", "{a: ["], "phases: line 1, column 6: not valid YAML"),
        (["--model", "3"], "model: input should be a valid dictionary"),
        (["--optim.epochs", "0"], "optim.epochs: input should be greater than 0"),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path, capsys, words, message):
    assert message in refused(write(tmp_path), capsys, *words)


def test_a_dry_run_lists_the_runs_with_their_ideal_gains(tmp_path, capsys):
    plan = write(tmp_path)
    assert run("sweep", [str(plan), "--runs", str(tmp_path / "runs"), "--dry-run", "--optim.epochs", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["dense", "2", "0", "4", "4"] and lines[2].split()[:5] == [
        "skipvit",
        "2",
        "0",
        "4",
        "0",
    ]
    assert lines[-1].startswith("4 runs in ") and not (tmp_path / "runs").exists()


def test_a_run_with_another_configuration_is_not_mixed_in(tmp_path, capsys):
    plan = write(tmp_path)
    other = plans.read(plan).trials[0]
    folder = tmp_path / "runs" / "tiny" / other.name
    folder.mkdir(parents=True)
    config = other.config.model_copy(update={"deterministic": True})
    (folder / "config.yaml").write_text(to_yaml(config))
    assert run("sweep", [str(plan), "--runs", str(tmp_path / "runs")]) == 2
    assert "this run has another deterministic than the plan; remove its folder" in capsys.readouterr().err
    for words in (
        ["--data.batch_size", "40"],
        ["--eval.every", "2"],
        ["--data.path", "elsewhere"],
    ):  # a resume may change these
        (folder / "config.yaml").write_text(to_yaml(other.config))
        assert run("sweep", [str(plan), "--runs", str(tmp_path / "runs"), *words]) == 2
        assert f"this run has another {words[0][2:]} than the plan" in capsys.readouterr().err


def test_finished_runs_of_another_sweep_are_taken_over_where_only_names_differ(tmp_path, capsys):
    """Two of the four runs below are trained in the other sweep under other names, one of them is not finished; seeds
    and keys count."""
    path = write(tmp_path, methods={"dense": {}, "way": ROUTES})
    other, here = tmp_path / "runs/other", tmp_path / "runs/tiny"
    for run_ in plans.read(path).trials:
        name = f"theirs_{run_.name}"
        (other / name / "checkpoints").mkdir(parents=True)
        keep = run_.config.checkpoint.model_copy(update={"keep": 1})
        changed = run_.config.model_copy(
            update={"name": name, "checkpoint": keep} | ({"seed": 7} if run_.name == "way-s1" else {})
        )
        (other / name / "config.yaml").write_text(to_yaml(changed))
        (other / name / "checkpoints" / "best.ckpt").write_bytes(b"weights")
        if run_.name != "dense-s1":
            (other / name / "summary.json").write_text(json.dumps({"epochs": 2, "forwards": {}}))
    here.mkdir()
    assert take_over(plans.read(path).trials, here, other) == ["dense-s0", "way-s0"]
    assert sorted(p.name for p in here.iterdir()) == ["dense-s0", "way-s0"]
    assert (here / "way-s0/checkpoints/best.ckpt").read_bytes() == b"weights"
    assert load_config(here / "way-s0/config.yaml").name == "way-s0"
    assert (here / "way-s0/taken_from.txt").read_text() == f"{other}/theirs_way-s0\n"
    assert take_over(plans.read(path).trials, here, other) == []  # what is there is left alone
    assert run("sweep", [str(path), "--runs", str(tmp_path / "runs"), "--reuse", str(tmp_path)]) == 2
    assert "has no finished runs" in capsys.readouterr().err


def test_each_job_has_cores_of_its_own(monkeypatch):
    """As many as there are, as a container's quota allows, as memory allows, or as one says."""
    config = checked(BASE, "here")
    mine = list(range(4))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(mine))
    monkeypatch.setattr(sweeps, "cores", lambda: 4)
    monkeypatch.setattr(sweeps, "memory_free", lambda: 64 * 2**30)

    def cores(jobs=None):
        return [place.cores and sorted(place.cores) for place in places_of(config, jobs)]

    assert cores() == [[0], [1], [2], [3]] and cores(2) == [[0, 2], [1, 3]]
    assert cores(1) == [None] and cores(5) == [None] * 5
    monkeypatch.setattr(sweeps, "cores", lambda: 2)  # a quota
    assert cores() == [[0], [1]] and cores(1) == [[0, 1]]
    monkeypatch.setattr(sweeps, "memory_free", lambda: 2**30)
    assert cores() == [[0, 1]] and cores(2) == [[0], [1]]


def test_results_are_a_row_for_each_run(tmp_path):
    sweep = Sweep(write(tmp_path), tmp_path / "runs", {"optim.epochs": 4, "optim": {"beta2": 0.9}})
    for trial in sweep.plan.trials[:3]:
        assert (trial.config.optim.epochs, trial.config.optim.beta2, trial.config.optim.lr) == (4, 0.9, 1e-3)
        finish(sweep.folder / trial.name, trial.config)
    rows = sweep.results()
    assert [row["name"] for row in rows] == ["dense-s0", "dense-s1", "skipvit-s0", "skipvit-s1"]
    assert [row["finished"] for row in rows] == [True, True, True, False]
    assert rows[2]["method"] == "skipvit" and rows[2]["seed"] == 0 and rows[2]["path"] == sweep.folder / "skipvit-s0"
    assert rows[2]["forward"] == "routed" and rows[2]["top1"] == {"dense": 50.0, "routed": 60.0}
    assert rows[3]["top1"] == {} and rows[3]["forward"] is None


def finish(folder, config):
    """A run's folder as training would leave it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    forwards = {"dense": {"top1": 50.0}} | ({"routed": {"top1": 60.0}} if config.routes else {})
    (folder / "summary.json").write_text(json.dumps({"epochs": config.optim.epochs, "forwards": forwards}))
