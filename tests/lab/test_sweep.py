"""`skipvit sweep`: every run once, whatever happens meanwhile; every wrong plan refused in one line."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from skipvit.cli import run
from skipvit.config.config import to_yaml
from skipvit.config.reading import checked, load_config
from skipvit.lab import plan as plans
from skipvit.lab import sweep as sweeps
from skipvit.lab.jobs import Jobs, Place
from skipvit.lab.sweep import Sweep, places_of, take_over
from skipvit.util.errors import RunError

SRC = Path(__file__).parents[2] / "src"
MODEL = {"name": "vit_tiny_patch16_224", "width": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32}
MODEL |= {"num_classes": 10}
BASE = {
    "device": "cpu",
    "model": MODEL,
    "data": {"kind": "shapes", "batch_size": 20, "train_size": 120, "val_size": 40},
    "optim": {"epochs": 2, "lr": 1.0e-3, "warmup_epochs": 0},
}
ROUTES = {"routes": [{"start": 1, "end": 2}]}
PLAN = {"base": "base.yaml", "seeds": 2, "methods": {"dense": {}, "skipvit": ROUTES}}


def write(folder, values=PLAN, **changes):
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "tiny.yaml").write_text(
        values if isinstance(values, str) else yaml.safe_dump(values | changes, sort_keys=False)
    )
    return folder / "tiny.yaml"


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_are_asked_with_the_signal_that_came_and_then_killed(tmp_path, number):
    jobs, child = Jobs(tmp_path, (), [], lambda line: None), Mock()
    jobs.running = [child]
    for sent in (number, signal.SIGKILL):
        jobs.ask_to_stop(number)
        jobs.hand_stops_on()
        child.process.send_signal.assert_called_with(sent)


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


def refused(plan, capsys, *words):
    assert run("sweep", [str(plan), "--runs", str(plan.parent / "runs"), *words]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and not out
    assert not (plan.parent / "runs").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}}, "method is not a key; did you mean methods?"),
        ({"base": "bas.yaml"}, "bas.yaml: no such config file; did you mean"),
        ({"methods": {}}, "methods: "),
        ({"common": {"seed": 3}}, "common.seed: the sweep sets it"),
        ({"methods": {"dense": "no.yaml"}}, "no.yaml: no such config file"),
        ({"methods": {"a b": {}}}, "methods.a b: a method's name is letters"),
        ({"methods": {"dense": {"optim": {"lrr": 1}}}}, "methods.dense: optim.lrr is not a key; did you mean lr?"),
        ({"methods": {"dense": {"optim.lr": -1}}}, "methods.dense: optim.lr: input should be greater than 0, got -1"),
        ({"methods": {"dense": {"routes.0.start": 1}}}, "routes.0.start: there is no such place"),
        ({"methods": {"dense": {"seed": 1}}}, "methods.dense.seed: the sweep sets it"),
        ({"methods": {"dense": {}, "again": {}}}, "dense-s0 and again-s0 are the same run"),
        ({"methods": {"a": {"routes": [{"start": 1, "end": 3}]}}}, "restored after the last block"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] is to be"),
        ({"seeds": 0}, "seeds: 0 is to be"),
        ({"baseline": "dens"}, "baseline: dens is not one of the methods; did you mean dense?"),
        (
            {"methods": {"dense": {"grid": {"optim.lr": [1e-3]}}}},
            "methods.dense.grid: the baseline is to be one method",
        ),
        ({"grid": {"optim.lr": 1}}, "grid.optim.lr: give a list"),
        ({"grid": {"optim.lr": []}}, "grid.optim.lr: give a list"),
        ({"grid": {"optim.lrr": [1]}}, "optim.lrr is not a key; did you mean lr?"),
        ({"grid": {"size": {"a": {"seed": 1}}}}, "grid.seed: the sweep sets it"),
        ({"grid": {"a": {"x": {"optim.lr": 1.0e-3}}, "b.a": {"x": {"optim.lr": 2.0e-3}}}}, "optim.lr is set twice"),
        ({"target": 100}, "target: input should be less than 100"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path, capsys, changes, message):
    assert message in refused(write(tmp_path, **changes), capsys)


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


def test_a_key_that_is_there_twice_is_refused(tmp_path, capsys):
    text = "base: base.yaml\nmethods:\n  dense: {}\n  dense: {optim.lr: 1.0e-3}\n"
    assert "line 4, column 3: not valid YAML (dense is there twice)" in refused(write(tmp_path, text), capsys)


def test_a_plan_is_resolved_into_methods_times_grids_times_seeds(tmp_path):
    (tmp_path / "way.yaml").write_text("routes: [{start: 1/3, end: -1}]\nphases: [{epochs: 1, routes: []}, {}]\n")
    path = write(
        tmp_path,
        seeds=[3, 5],
        common={"optim": {"beta2": 0.9}},
        grid={"width": {"narrow": {"model.width": 16}, "wide": {"model": {"width": 32, "heads": 4}}}},
        methods={
            "dense": None,
            "skipvit": "way.yaml",
            "ratios": {"from": "way.yaml", "optim": {"lr": 2e-3}, "grid": {"routes.0.keep_ratio": [0.3, 0.7]}},
        },
    )
    plan = plans.read(path)
    names = [trial.name for trial in plan.trials]
    assert names[:4] == ["dense-width_narrow-s3", "dense-width_narrow-s5", "dense-width_wide-s3", "dense-width_wide-s5"]
    assert len(names) == 2 * 2 * (1 + 1 + 2) and len(set(names)) == len(names)
    last = plan.trials[-1]
    assert last.name == "ratios-keep_ratio_0.7-width_wide-s5"
    assert (last.variant, last.cell) == ("ratios-keep_ratio_0.7", "width_wide")
    assert last.point == {"width": "wide", "routes.0.keep_ratio": 0.7}
    config = last.config
    assert (config.name, config.seed, config.routes[0].keep_ratio) == (last.name, 5, 0.7)
    optim, model = config.optim, config.model  # the method's, the plan's, the base's; the grid's
    assert (optim.lr, optim.beta2, optim.epochs) == (2e-3, 0.9, 2)
    assert (model.width, model.heads, model.depth) == (32, 4, 3)
    assert [(phase.forward, phase.epochs) for phase in config.resolved_phases()] == [("dense", 1), ("routed", 1)]
    assert plan.trials[0].config.routes == [] and plan.baseline == "dense"


def spans(trial):
    return [(span["start"], span["end"]) for span in plans.forward_of(trial.config, trial.config.main())["spans"]]


def test_routes_fit_each_depth(tmp_path):
    """Of a method file and of the plan, over the base, the grid and a command line."""
    (tmp_path / "way.yaml").write_text("routes: [{start: 1/3, end: -1}]\n")
    methods = {"dense": {}, "way": "way.yaml", "own": {"routes": [{"start": "1/2", "end": None}]}}
    plan = write(tmp_path, seeds=1, grid={"model.depth": [6, 12]}, methods=methods)
    found = [[], [], [(2, 5)], [(4, 11)], [(3, 6)], [(6, 12)]]
    assert [spans(trial) for trial in plans.read(plan).trials] == found
    plan = write(tmp_path, seeds=1, methods=methods)
    found = [[], [(8, 23)], [(12, 24)]]
    assert [spans(trial) for trial in plans.read(plan, {"model.depth": 24}).trials] == found


def test_another_base_goes_without_common_and_target(tmp_path, capsys):
    deep = BASE | {"model": MODEL | {"depth": 12}, "optim": BASE["optim"] | {"epochs": 20}}
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(deep))
    route = {"routes": [{"start": "1/3", "end": -1}], "phases": [{"epochs": "5%", "routes": []}, {}]}
    ways = {"dense": {}, "own": route | {"grid": {"routes.0.keep_ratio": [0.3, 0.6]}}}
    path = write(tmp_path, seeds=1, target=50, common={"model.depth": 6, "optim.epochs": 9}, methods=ways)
    here, there = plans.read(path), plans.read(path, base=tmp_path / "deep.yaml")
    assert [(trial.config.optim.epochs, spans(trial)) for trial in here.trials] == [
        (9, []),
        (9, [(2, 5)]),
        (9, [(2, 5)]),
    ]
    moved = [(trial.config.optim.epochs, spans(trial)) for trial in there.trials]
    assert moved == [(20, []), (20, [(4, 11)]), (20, [(4, 11)])]
    assert here.target == 50 and there.target is None
    assert "nowhere.yaml: no such config file" in refused(path, capsys, "--base", "nowhere.yaml")
    write(tmp_path, methods={"dense": {}, "own": {"routes": [{"start": 1, "end": 2, "keepratio": 1}]}})
    assert "methods.own: routes.0.keepratio is not a key; did you mean keep_ratio?" in refused(path, capsys)


def test_a_method_file_holds_keys_of_a_run_but_no_name(tmp_path, capsys):
    (tmp_path / "way.yaml").write_text("name: mine\nroutes: []\n")
    assert "way.yaml.name: the sweep sets it" in refused(write(tmp_path, methods={"way": "way.yaml"}), capsys)
    (tmp_path / "way.yaml").write_text("routes: [{start: 1, end: 2, keep_ration: 1}]\n")
    said = refused(write(tmp_path, methods={"way": "way.yaml"}), capsys)
    assert "methods.way (" in said and "way.yaml): routes.0.keep_ration is not a key; did you mean keep_ratio?" in said


def test_a_run_is_the_same_however_it_is_written(tmp_path):
    """As an earlier version wrote it, with shares of the depth, with defaults written out, with another name; not with
    another key, route, phase or seed."""
    old = {"size": "tiny", "width": 16, "depth": 6, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}
    before = BASE | {
        "model": old | {"gelu": "tanh"},
        "routes": [{"start": 2, "end": 5, "keep_ratio": 0.45, "random_share": None}],
        "phases": {"dense_warmup_epochs": "5%", "dense_cooldown_epochs": 0, "evaluate": "auto"},
    }
    now = BASE | {
        "name": "other",
        "model": MODEL | {"depth": 6},
        "routes": [{"start": "1/3", "end": -1}],
        "phases": [{"epochs": 1, "routes": []}, {"epochs": 1}],
        "checkpoint": {"keep": 7},
    }
    same = plans.identity(checked(now, "now"))
    assert plans.identity(checked(before, "before")) == same
    others = [
        {"seed": 1},
        {"routes": [{"start": 1, "end": -1}]},
        {"phases": []},
        {"optim": now["optim"] | {"beta1": 0.8}},
    ]
    others += [
        {"eval": {"main": "dense"}},
        {"model": MODEL | {"depth": 6, "gelu": "erf"}},
        {"data": now["data"] | {"val_size": 50}},
    ]
    assert len({same, *(plans.identity(checked(now | other, "other")) for other in others)}) == 1 + len(others)


STUDIES = [
    path for path in sorted((SRC.parent / "configs" / "studies").glob("*.yaml")) if not path.stem.startswith("base_")
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_and_says_how_many_runs_it_has(path):
    plan = plans.read(path)
    assert (
        f" = {len(plan.trials)} runs" in path.read_text()
        and f"skipvit sweep configs/studies/{path.name}" in path.read_text()
    )
    assert plan.baseline == "dense" and not any(run.config.routes for run in plan.trials if run.method == "dense")


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


def test_too_many_runs_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 100)
    plan = write(tmp_path, grid={"optim.lr": [i / 1000 for i in range(1, 200)]})
    assert "these are more than 100 runs; use fewer" in refused(plan, capsys)


def example(holds):
    """The only piece of YAML in the lab's page that holds a text."""
    pieces = re.findall(r"```yaml\n(.*?)```", (SRC.parent / "docs/lab.md").read_text(), re.S)
    (found,) = (piece for piece in pieces if holds in piece)
    return found


def test_the_plan_and_the_method_of_the_lab_page(tmp_path):
    shutil.copytree(SRC.parent / "configs", tmp_path / "configs")
    path = tmp_path / "configs/studies/own.yaml"
    path.write_text(example("base: base_shapes.yaml"))
    trials = plans.read(path).trials
    assert len(trials) == 5 * 2 * (1 + 1 + 3 + 1)  # seeds x sizes x (dense, skipvit, mine with three keep ratios, late)
    assert {trial.config.routes[0].keep_ratio for trial in trials if trial.method == "mine"} == {0.3, 0.45, 0.7}
    (late, *_) = (trial for trial in trials if trial.method == "late")
    assert [phase.forward for phase in late.config.resolved_phases()] == ["dense", "routed", "dense"]
    (tmp_path / "mine.yaml").write_text(example("keep_ratio: 0.6, scorer: random"))
    path.write_text("base: base_shapes.yaml\nmethods: {dense: {routes: []}, mine: ../../mine.yaml}\n")
    assert spans(plans.read(path, {"model.depth": 12}).trials[-1]) == [(2, 6), (6, 11)]
