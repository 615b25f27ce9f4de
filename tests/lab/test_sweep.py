"""`skipvit sweep`: every run once, whatever happens meanwhile; every wrong plan refused in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest
import yaml

from skipvit.cli import run
from skipvit.config import config as configuration
from skipvit.lab import plan as plans
from skipvit.lab.sweep import places_of
from skipvit.lab.sweep_reuse import take_over

SRC = Path(__file__).parents[2] / "src"
BASE = {
    "device": "cpu",
    "model": {"size": "tiny", "width": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10},
    "data": {"kind": "shapes", "batch_size": 20, "train_size": 120, "val_size": 40},
    "phases": {"dense_warmup_epochs": 0},
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
    """The failed one is named; the report of the others measures speed, and dense weights along the route as `skipvit eval` does."""
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

    assert run("report", [str(folder), "--bench", "--rounds", "6", "--widest", "9", "--weights"]) == 0
    markdown = (folder / "report/report.md").read_text()
    assert (
        "one seed: nothing can be said" in markdown
        and "measured gain, routed step" in markdown
        and "kept_skipvit.png" in markdown
    )
    capsys.readouterr()
    weights = sorted((folder / "dense-s0/checkpoints").glob("epoch_*"))[-1]
    assert run("eval", ["--config", str(folder / "skipvit-s0/config.yaml"), "--weights", str(weights), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "dense_weights_routed.json").read_text()) == {
        "skipvit": {"0": expected["routed"]["top1"]}
    }
    assert f"| skipvit | {expected['dense']['top1']:.2f} | {expected['routed']['top1']:.2f} |" in markdown


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
        (["--name", "x"], "--name, --seed: the sweep sets them"),
        (["--optim.epochs", "0"], "optim.epochs: input should be greater than 0"),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path, capsys, words, message):
    assert message in refused(write(tmp_path), capsys, *words)


def test_a_key_that_is_there_twice_is_refused(tmp_path, capsys):
    text = "base: base.yaml\nmethods:\n  dense: {}\n  dense: {optim.lr: 1.0e-3}\n"
    assert "line 4, column 3: not valid YAML (dense is there twice)" in refused(write(tmp_path, text), capsys)


def test_a_plan_is_resolved_into_methods_times_grids_times_seeds(tmp_path):
    (tmp_path / "way.yaml").write_text(
        "routes: [{start: 1, end: 11}]\nphases: {dense_warmup_epochs: 1}\n"
    )  # of 12 blocks
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
    names = [run.name for run in plan.runs]
    assert names[:4] == ["dense-width_narrow-s3", "dense-width_narrow-s5", "dense-width_wide-s3", "dense-width_wide-s5"]
    assert len(names) == 2 * 2 * (1 + 1 + 2) and len(set(names)) == len(names)
    last = plan.runs[-1]
    assert (
        last.name == "ratios-keep_ratio_0.7-width_wide-s5"
        and last.variant == "ratios-keep_ratio_0.7"
        and last.cell == "width_wide"
    )
    assert last.point == {"width": "wide", "routes.0.keep_ratio": 0.7}
    config = last.config
    assert (config.name, config.seed, config.routes[0].keep_ratio) == (last.name, 5, 0.7)
    assert (config.routes[0].start, config.routes[0].end) == (1, 2)  # of 3 blocks
    assert (config.optim.lr, config.optim.beta2, config.optim.epochs) == (
        2e-3,
        0.9,
        2,
    )  # the method's, the plan's, the base's
    assert (config.model.width, config.model.heads, config.model.depth) == (
        32,
        4,
        3,
    ) and config.phases.dense_warmup_epochs == 1
    assert plan.runs[0].config.routes == [] and plan.baseline == "dense"


def test_method_files_are_scaled_to_each_depth(tmp_path, capsys):
    (tmp_path / "way.yaml").write_text("routes: [{start: 4, end: 11}]\n")
    plan = write(tmp_path, seeds=1, grid={"model.depth": [6, 12]}, methods={"dense": {}, "way": "way.yaml"})
    assert [[(r.start, r.end) for r in run.config.routes] for run in plans.read(plan).runs] == [
        [],
        [],
        [(2, 5)],
        [(4, 11)],
    ]
    assert "set it in the plan" in refused(plan, capsys, "--model.depth", "8")
    write(tmp_path, methods={"way": {"from": "way.yaml", "model.size": "huge"}})
    assert "methods.way: model.size: input should be" in refused(plan, capsys)


def test_another_base_goes_without_common_and_scales_the_routes_of_the_plan(tmp_path, capsys):
    deep = BASE | {"model": BASE["model"] | {"depth": 12}, "optim": BASE["optim"] | {"epochs": 20}}
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(deep))
    route = {"routes": [{"start": 2, "end": 5}], "phases": {"dense_warmup_epochs": "5%"}}
    ways = {"own": route | {"grid": {"routes.0.keep_ratio": [0.3, 0.6]}}}
    path = write(
        tmp_path,
        seeds=1,
        target=50,
        blocks=6,
        common={"model.depth": 6, "optim.epochs": 9},
        methods={"dense": {}} | ways,
    )
    here = [(run.config.optim.epochs, *(astuple(r)[:3] for r in run.config.routes)) for run in plans.read(path).runs]
    assert here == [(9,), (9, (2, 5, 0.3)), (9, (2, 5, 0.6))]
    moved = plans.read(path, base=tmp_path / "deep.yaml")
    there = [(run.config.optim.epochs, *(astuple(r)[:3] for r in run.config.routes)) for run in moved.runs]
    assert there == [(20,), (20, (4, 11, 0.3)), (20, (4, 11, 0.6))]
    assert plans.read(path).target == 50 and moved.target is None
    assert "set it in the plan" in refused(path, capsys, "--model.depth", "8")
    assert "nowhere.yaml: no such config file" in refused(path, capsys, "--base", "nowhere.yaml")
    write(tmp_path, blocks=6, methods={"dense": {}, "own": {"routes": [{"start": 2, "end": 5, "keepratio": 1}]}})
    assert "methods.own: routes.0.keepratio is not a key; did you mean keep_ratio?" in refused(path, capsys)
    write(tmp_path, blocks=6, methods={"dense": {}, "own": route | {"grid": {"routes.0.start": [1, 2]}}})
    assert "routes.0.start cannot be scaled from 6 to 3 blocks; give the whole route" in refused(path, capsys)


STUDIES = [
    path for path in sorted((SRC.parent / "configs" / "studies").glob("*.yaml")) if not path.stem.startswith("base_")
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_and_says_how_many_runs_it_has(path):
    plan = plans.read(path)
    assert (
        f" = {len(plan.runs)} runs" in path.read_text()
        and f"skipvit sweep configs/studies/{path.name}" in path.read_text()
    )
    assert plan.baseline == "dense" and not any(run.config.routes for run in plan.runs if run.method == "dense")


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
    other = plans.read(plan).runs[0]
    folder = tmp_path / "runs" / "tiny" / other.name
    folder.mkdir(parents=True)
    config = other.config.model_copy(update={"deterministic": True})
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    assert run("sweep", [str(plan), "--runs", str(tmp_path / "runs")]) == 2
    assert "this run has another deterministic than the plan; remove its folder" in capsys.readouterr().err
    for words in (
        ["--data.batch_size", "40"],
        ["--eval.every", "2"],
        ["--data.path", "elsewhere"],
    ):  # a resume may change these
        (folder / "config.yaml").write_text(configuration.to_yaml(other.config))
        assert run("sweep", [str(plan), "--runs", str(tmp_path / "runs"), *words]) == 2
        assert f"this run has another {words[0][2:]} than the plan" in capsys.readouterr().err


def test_finished_runs_of_another_sweep_are_taken_over_where_only_names_differ(tmp_path, capsys):
    """Two of the four runs below are trained in the other sweep under other names, one of them is not finished; seeds and keys count."""
    path = write(tmp_path, methods={"dense": {}, "way": ROUTES})
    other, here = tmp_path / "runs/other", tmp_path / "runs/tiny"
    for run_ in plans.read(path).runs:
        name = f"theirs_{run_.name}"
        (other / name / "checkpoints").mkdir(parents=True)
        keep = run_.config.checkpoint.model_copy(update={"keep": 1})
        changed = run_.config.model_copy(
            update={"name": name, "checkpoint": keep} | ({"seed": 7} if run_.name == "way-s1" else {})
        )
        (other / name / "config.yaml").write_text(configuration.to_yaml(changed))
        (other / name / "checkpoints" / "best.ckpt").write_bytes(b"weights")
        if run_.name != "dense-s1":
            (other / name / "summary.json").write_text(json.dumps({"epochs": 2}))
    here.mkdir()
    assert take_over(plans.read(path), here, other) == ["dense-s0", "way-s0"]
    assert sorted(p.name for p in here.iterdir()) == ["dense-s0", "way-s0"]
    assert (here / "way-s0/checkpoints/best.ckpt").read_bytes() == b"weights"
    assert configuration.read(here / "way-s0/config.yaml").name == "way-s0"
    assert (here / "way-s0/taken_from.txt").read_text() == f"{other}/theirs_way-s0\n"
    assert take_over(plans.read(path), here, other) == []  # what is there is left alone
    assert run("sweep", [str(path), "--runs", str(tmp_path / "runs"), "--reuse", str(tmp_path)]) == 2
    assert "has no finished runs" in capsys.readouterr().err


def test_each_job_has_cores_of_its_own():
    config = configuration.checked(BASE, "here")
    mine = os.sched_getaffinity(0)
    places = places_of(config, None)
    assert len(places) == len(mine)
    if len(mine) > 1:
        assert set.union(*(place["cores"] for place in places)) == mine and sum(
            len(place["cores"]) for place in places
        ) == len(mine)
    assert [place["cores"] for place in places_of(config, 1)] == [None]
    assert [place["cores"] for place in places_of(config, len(mine) + 1)] == [None] * (len(mine) + 1)
