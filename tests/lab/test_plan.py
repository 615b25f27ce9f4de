"""Plans: resolved into trials, every wrong one refused in one line; those of this project and of its documentation."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from skipvit.config.reading import checked
from skipvit.lab import plan as plans
from support.plans import BASE, MODEL, refused, write

SRC = Path(__file__).parents[2] / "src"


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
