"""Configuration: every shipped recipe is read, every wrong one is refused in one line that names the key."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from skipvit.cli import run
from skipvit.cli.options import OneLineParser, from_words
from skipvit.config.config import Config, to_yaml
from skipvit.config.reading import load_config
from skipvit.data.open import open_source
from skipvit.models.arithmetic import forward_macs
from skipvit.routing.spec import Route
from skipvit.util.errors import UsageError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOOD = {
    "name": "a",
    "model": {"name": "vit_tiny_patch16_224", "depth": 6, "patch": 4, "image_size": 32, "num_classes": 10},
    "routes": [{"start": 2, "end": 4}],
    "phases": [{"epochs": 1, "routes": []}, {}],
    "optim": {"epochs": 8, "warmup_epochs": 1},
}

SMALL = {"model": {"image_size": 32, "num_classes": 10}}


def read(tmp_path, values, words=()):
    path = tmp_path / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    parser = OneLineParser(prog="train.py")
    parser.add_argument("--config", default=str(path))
    return from_words(parser, list(words))[0]


def test_a_home_is_written_out_in_every_path(tmp_path, monkeypatch, capsys):
    """A shell leaves `~` as it is in --config=~/run.yaml, in quotes, and of course in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("name: mine\ndata: {kind: image_folder, path: ~/images}\n")
    assert load_config("~/run.yaml").name == "mine"
    for words in (["--config=~/run.yaml"], ["--config", "~/run.yaml"], ["--config", "~nobody_x/run.yaml"]):
        code = run("cost", words)
        assert code == (2 if "~nobody_x/run.yaml" in words else 0), capsys.readouterr().err
    assert "~nobody_x/run.yaml: no such config file" in capsys.readouterr().err
    with pytest.raises(UsageError, match=f"^data.path: {tmp_path}/images/train is not a folder"):
        open_source(load_config("~/run.yaml"), "train")


def test_a_pipe_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="run.yaml: cannot be read as a text file .not a regular file."):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_as_its_file(path):
    config = load_config(path)
    assert config.name in (path.stem, path.stem.removesuffix("_cpu"))


@pytest.mark.parametrize("name", ["loop.py", "a\0b.py", "\ud800.py", "ends.py", "latin.py", "folder.py"])
def test_imports_that_fail_are_one_line_with_their_key(tmp_path, name):
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValidationError, match="imports.0: .*(is not a Python file|cannot be imported)"):
        Config(**SMALL, imports=[str(tmp_path / name)])


def test_a_file_that_is_like_none_has_no_neighbour(tmp_path):
    (tmp_path / "twice.yaml").touch()
    with pytest.raises(UsageError, match="quixotry.yaml: no such config file$"):
        load_config(tmp_path / "quixotry.yaml")


def test_fine_tuning_has_the_drop_path_of_evits_script():
    assert load_config("finetune_skipvit_small_imagenet.yaml").model.drop_path == 0.1


def test_recipes_come_in_pairs_that_differ_in_their_routes_only():
    by_name = {path.stem: load_config(path) for path in CONFIGS}
    names = [name for name in by_name if name.startswith("skip")]
    twins = [(name, name.removeprefix("skip").replace("conservative_", "").replace("fast_", "")) for name in names]
    assert twins
    for routed, dense in twins:
        a, b = by_name[routed].model_dump(), by_name[dense].model_dump()
        different = {key for key in a if a[key] != b[key]}
        assert "routes" in different and different <= {"name", "routes", "phases"}


def test_file_sets_and_command_line_overrides(tmp_path):
    config = read(tmp_path, GOOD, ["--optim.lr", "1e-2", "--model.depth=5", "--augment.crop", "pad"])
    assert (config.optim.lr, config.model.depth, config.augment.crop) == (1e-2, 5, "pad")
    assert config.optim.epochs == 8  # from the file
    assert config.optim.beta1 == 0.9  # the default
    assert config.routes == [Route(start=2, end=4)]


def test_routes_on_the_command_line_are_yaml(tmp_path):
    words = ["--routes", "[{start: 1, end: 6, keep_ratio: 0.3, scorer: random, restore: false}]"]
    assert read(tmp_path, GOOD, words).routes == [Route(start=1, end=6, keep_ratio=0.3, scorer="random", restore=False)]
    assert read(tmp_path, GOOD, ["--routes", "[]"]).routes == []


@pytest.mark.parametrize(
    ("given", "epochs", "lengths"),
    [
        (["5%", None], 300, [15, 285]),
        (["5%", None], 8, [1, 7]),
        (["20%", None], 8, [2, 6]),
        (["3.3%", None], 300, [10, 290]),
        (["0%", None], 300, [300]),
        ([0, None], 300, [300]),
        (["5%", None, "5%"], 8, [1, 6, 1]),
        (["5%", None, "5%"], 300, [15, 270, 15]),
        (["20%", "20%", "20%", "20%", None], 8, [2, 1, 2, 1, 2]),
        (["50%", "50%"], 7, [4, 3]),
        ([2, 3, 3], 8, [2, 3, 3]),
        ([2, "25%", None], 8, [2, 2, 4]),
    ],
)
def test_phases_take_epochs_shares_or_the_rest(given, epochs, lengths):
    config = Config(
        **GOOD | {"phases": [{"epochs": e} for e in given], "optim": {"epochs": epochs, "warmup_epochs": 0}}
    )
    phases = config.resolved_phases()
    assert [phase.epochs for phase in phases] == lengths
    assert [phase.first for phase in phases] == [sum(lengths[:i]) for i in range(len(lengths))]
    assert phases[-1].end == epochs


def test_phases_differ_in_what_they_say_and_forwards_have_names():
    other = [{"start": 1, "end": 3, "keep_ratio": 0.7}]
    phases = [
        {"epochs": 1, "routes": [], "image_size": 16, "augment": {"hflip": 0.25}},
        {"epochs": 1, "routes": other},
        {"epochs": 2, "name": "long"},
        {"epochs": 1, "routes": other, "image_size": 24},
        {"epochs": 1, "routes": other},
        {"routes": []},
    ]
    config = Config(**GOOD | {"phases": phases, "augment": {"hflip": 0.5, "crop": "pad"}})
    found = config.resolved_phases()
    names = ["dense@16", "phase2", "routed", "phase4@24", "phase2", "dense"]
    assert [phase.forward for phase in found] == names
    assert [phase.name for phase in found] == [*names[:2], "long", *names[3:]]
    assert [phase.config.model.image_size for phase in found] == [16, 32, 32, 24, 32, 32]
    assert (found[0].config.augment.hflip, found[1].config.augment.hflip) == (0.25, 0.5)
    assert found[0].config.augment.crop == "pad"
    assert list(config.forwards()) == ["dense", "routed", "dense@16", "phase2", "phase4@24"]
    assert (config.trained(), config.main(), config.evaluated()) == ("dense", "dense", ("dense", "routed"))
    assert config.program("phase4@24").steps[0].after.patches == 36 and config.program("phase2").image_size == 32
    assert config.noise_width() == max(config.program(name).noise_width for name in config.forwards())


def test_the_forward_that_counts_is_the_last_trained_unless_it_is_named(tmp_path):
    cooled = ["--phases", "[{epochs: 1, routes: []}, {}, {epochs: 1, routes: []}]"]
    assert read(tmp_path, GOOD).main() == "routed" and read(tmp_path, GOOD, cooled).main() == "dense"
    named = read(tmp_path, GOOD, ["--eval.main", "dense", "--ema.decay", "0.99"])
    assert (named.trained(), named.main(), named.best()) == ("routed", "dense", "dense_ema")


OLD = {
    "name": "a",
    "model": {"size": "small", "width": None, "patch": 16, "image_size": 224, "num_classes": 1000, "gelu": "tanh"},
    "routes": [{"start": 4, "end": 11, "scorer": "sampled_cls_attention", "temperature": 2.0, "random_share": None}],
    "phases": {"dense_warmup_epochs": 15, "dense_cooldown_epochs": 5, "evaluate": "routed"},
    "data": {"kind": "image_folder", "path": "x"},
    "optim": {"epochs": 300},
}


def test_configurations_of_earlier_versions_are_read(tmp_path):
    config = read(tmp_path, OLD)
    assert (config.model.name, config.model.patch, config.model.image_size) == ("vit_small_patch16_224", None, 224)
    assert [(p.forward, p.epochs) for p in config.resolved_phases()] == [("dense", 15), ("routed", 280), ("dense", 5)]
    assert (config.trained(), config.main()) == ("dense", "routed")
    assert config.routes[0].knobs == {"temperature": 2.0}
    small = OLD["model"] | {"size": "tiny", "patch": 4, "image_size": 32, "num_classes": 10}
    config = read(tmp_path, OLD | {"model": small, "routes": [], "phases": {"dense_warmup_epochs": 400}})
    spec = config.model.spec()
    assert (spec.width, spec.patch, spec.image_size) == (192, 4, 32)
    assert [(p.forward, p.epochs) for p in config.resolved_phases()] == [("dense", 300)]


def test_a_configuration_made_in_python_is_checked_like_a_file():
    with pytest.raises(ValidationError, match="model.patch: 16 does not divide image_size 30"):
        Config(model={"image_size": 30, "num_classes": 10})
    with pytest.raises(ValidationError, match="optim.warmup_epochs: 50.0 is more than optim.epochs 10"):
        Config(**GOOD | {"phases": [], "optim": {"epochs": 10, "warmup_epochs": 50}})
    with pytest.raises(ValidationError, match="not valid YAML"):
        Config(**GOOD | {"routes": "["})
    with pytest.raises(ValidationError, match="routes.0.end: a token restored after the last block"):
        Config(**GOOD | {"routes": [Route(start=1, end=6)]})


def test_configuration_and_help_need_no_mindspore():
    code = (
        "import sys, time; begun = time.perf_counter(); import skipvit; "
        "config = skipvit.load_config('skipvit_small_imagenet.yaml'); config.program('routed'); "
        "from skipvit.cli.train import parser; from skipvit.cli.options import from_words\n"
        "try: from_words(parser(), ['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'mindspore', 'matplotlib', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stderr == "[]\n" and "--phases" in result.stdout


def test_environment_variables_do_not_describe_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("NAME", "other")
    assert (read(tmp_path, GOOD).seed, read(tmp_path, GOOD).name) == (0, "a")


def test_written_configuration_reads_back_equal(tmp_path):
    config = read(tmp_path, GOOD)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_help_documents_every_key_with_its_default():
    parser = argparse.ArgumentParser()
    from pydantic_settings import CliSettingsSource

    CliSettingsSource(Config, root_parser=parser)
    actions = {option: action for action in parser._actions for option in action.option_strings}
    for group, field in Config.model_fields.items():
        keys = [group]
        if hasattr(field.annotation, "model_fields"):
            keys = [f"{group}.{key}" for key in field.annotation.model_fields]
        for key in keys:
            text = actions[f"--{key}"].help
            assert "default" in text and len(text.split("(default")[0]) > 3, key


def with_key(path, value):
    """GOOD with one key changed, e.g. "optim.lr" or "routes.0.start"."""
    values = yaml.safe_load(yaml.safe_dump(GOOD))
    at = values
    *parts, last = path.split(".")
    for part in parts:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    return values


REFUSED = [
    (with_key("optim.lrr", 1), "optim.lrr is not a key; did you mean lr?"),
    (with_key("optims", {}), "optims is not a key; did you mean optim?"),
    (with_key("routes.0.keepratio", 0.5), "routes.0.keepratio is not a key; did you mean keep_ratio?"),
    (with_key("routes.0.start", 0), "routes.0.scorer: cls_attention reads what block start - 1 did"),
    (with_key("routes.0.end", 6), "routes.0.end: a token restored after the last block influences nothing"),
    (with_key("routes.0.end", 7), "routes.0.end: 7 is outside"),
    (with_key("routes.0.keep_ratio", 0), "routes.0.keep_ratio: 0.0 is outside (0, 1]"),
    (with_key("routes.0.scorer", "attention"), "routes.0.scorer: 'attention' is not one of cls_attention, "),
    (with_key("routes", [{"start": 1, "end": 4}, {"start": 3, "end": 5}]), "routes.1.start: block 3 overlaps"),
    (with_key("routes", [{"end": 4}]), "routes.0.start is missing"),
    (with_key("routes", "cls"), "routes: "),
    (with_key("model.depth", 10**9), "model.depth: input should be a whole number from 1 to 1000, or a list"),
    (with_key("model.image_size", 2**31), "model.image_size: input should be less than or equal to 10000"),
    (with_key("phases.0.image_size", 2**31), "phases.0.image_size: input should be less than or equal to 10000"),
    (with_key("model.num_classes", 10**15), "model.num_classes: input should be less than or equal to 10000000"),
    (with_key("model.patch", 5), "model.patch: 5 does not divide image_size 32"),
    (with_key("model.heads", 5), "model.heads: 5 does not divide the width 192"),
    (with_key("model.name", "vit_smal_patch16_224"), "is not a model; did you mean vit_small_patch16_224?"),
    (with_key("model.image_size", 64), "data.kind: shapes are 32 x 32"),
    (with_key("optim.lr", "fast"), "optim.lr: "),
    (with_key("optim.lr", float("nan")), "optim.lr: "),
    (with_key("optim.lr", -1), "optim.lr: input should be greater than 0, got -1"),
    (with_key("optim.warmup_epochs", 9), "optim.warmup_epochs: 9.0 is more than optim.epochs 8"),
    (with_key("optim.min_lr", 1), "optim.min_lr: 1.0 is larger than optim.lr"),
    (with_key("phases.0.epochs", 8), "phases: 8 epochs of the others leave none of optim.epochs 8 for phases.1"),
    (with_key("phases.0.epochs", "110%"), "phases.0.epochs: input should be a whole number of epochs, or a share"),
    (with_key("phases.0.epochs", -1), "phases.0.epochs: input should be a whole number of epochs, or a share"),
    (with_key("phases.0.epochs", 1.5), "phases.0.epochs: input should be a whole number of epochs, or a share"),
    (with_key("phases", [{"epochs": 3}, {"epochs": 4}]), "phases: 7 epochs together, optim.epochs is 8"),
    (with_key("phases", [{"epochs": 1}] * 5000), "phases: list should have at most 1000 items"),
    (with_key("phases", [{}, {}]), "phases.1.epochs: only one phase may leave its epochs open, phases.0 does"),
    (with_key("phases", [{"image_size": 30}]), "phases.0.model.patch: 4 does not divide image_size 30"),
    (with_key("phases", [{"augment": {"hflipp": 1}}]), "phases.0.augment.hflipp is not a key; did you mean hflip?"),
    (with_key("phases", [{"routes": [{"start": 0}]}]), "phases.0.routes.0.scorer: cls_attention reads what block"),
    (with_key("phases.0.epoch", 1), "phases.0.epoch is not a key; did you mean epochs?"),
    (with_key("eval", {"main": "routed"}) | {"routes": []}, "eval.main: there is no routed forward without routes"),
    (with_key("eval", {"main": "phase3"}), "eval.main: phase3 is not a forward of this run; there are dense, routed"),
    (with_key("eval", {"forwards": ["dens"]}), "eval.forwards: dens is not a forward of this run"),
    (with_key("imports", ["nowhere.py"]), "nowhere.py is not a Python file"),
    (with_key("data.kind", "image_folder"), "data.path: image_folder needs the folder"),
    (with_key("data", {"kind": "cifar100", "path": "x"}), "model.num_classes: cifar100 has 100 classes, not 10"),
    (with_key("checkpoint.best", "dense_ema"), "checkpoint.best: there are no averaged weights with ema.decay 0"),
    (
        with_key("routes", []) | {"checkpoint": {"best": "routed"}},
        "checkpoint.best: there is no routed forward without routes",
    ),
    (with_key("optim.layer_decay", 0), "optim.layer_decay: input should be greater than 0, got 0"),
    (with_key("optim.layer_decay", 1.5), "optim.layer_decay: input should be less than or equal to 1, got 1.5"),
    (with_key("optim.train", "none"), "optim.train: input should be 'all' or 'head', got 'none'"),
    (with_key("optim.train", "head"), "optim.train: head leaves nothing but a head on random blocks to train"),
    (with_key("init.weight", "x"), "init.weight is not a key; did you mean weights?"),
    (with_key("augment.rand_augment", 11), "augment.rand_augment: input should be less than or equal to 10"),
    (with_key("amp.dtype", "bfloat16"), "amp.dtype: input should be 'auto', 'float32' or 'float16'"),
    (with_key("name", "../up"), "name: "),
    (with_key("name", ".."), "name: "),
    (with_key("name", "."), "name: "),
    (with_key("name", ".index"), "name: "),  # what a folder of runs has besides them begins with a dot
    (with_key("phases.0.epochs", "9" * 5000), "phases.0.epochs: input should be a whole number of epochs, or a share"),
    (with_key("k" * 5000, 1), "kkk...kkk"),
    (with_key("data.path", "p" * 5000) | {"seed": "x" * 5000}, "seed: "),
    (with_key("seed", None), "seed: "),
    ("a: [", "not valid YAML"),
    ("- 1", "a config is a mapping"),
    ("1: 2", "a config is a mapping"),
    ("name: 2024-13-45", "line 1, column 7: not valid YAML"),
    ("[" * 20_000, "nested deeper than 40 lists and mappings"),
]


@pytest.mark.parametrize(
    ("values", "message"), REFUSED, ids=lambda value: str(value)[:40] if isinstance(value, str) else ""
)
def test_wrong_configuration_is_refused_in_one_line(tmp_path, values, message):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, values)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value) and "run.yaml" in str(refused.value) and len(str(refused.value)) < 600


def test_only_regular_text_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_000_000)
    reasons = {"pipe": "not a regular file", "zero": "not a regular file", "loop": "symbolic links"}
    for name, reason in (reasons | {"latin": "not UTF-8", "large": "longer than 100,000 characters"}).items():
        with pytest.raises(UsageError, match=f"{name}.yaml: .*{reason}"):
            load_config(tmp_path / f"{name}.yaml")
    with pytest.raises(UsageError, match="not a possible name of a file"):
        load_config("a\0b.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], "--optim.lrr is not an option; did you mean --optim.lr?"),
        (["--optim.lr", "fast"], "optim.lr: "),
        (["--optim.lr"], "--optim.lr"),
        (["extra"], "extra"),
        (["--model", "small"], "a group such as --model takes no value of its own"),
        (["--routes", "[{start: 1"], "routes: line 1, column 11: not valid YAML"),
        (["--routes", "[" * 20_000], "routes: nested deeper than 40 lists and mappings; e.g. [{start: 4, end: 11}]"),
        (["--routes", "a: &a [*a]"], "routes: more than 100,000 values once its aliases are written out"),
        (["--routes", "[{start: 1, end: 3, fuze: true}]"], "routes.0.fuze is not a key; did you mean fuse?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["--config", "folder/vit_smal_imagenet.yml"], "vit_smal_imagenet.yml: no such config file; did you mean vit_"),
        (["--config", "skipvit_smal_imagenet.yaml"], "no such config file; did you mean skipvit_small_imagenet.yaml?"),
    ],
)
def test_wrong_command_line_is_refused_in_one_line(tmp_path, words, message):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, GOOD, words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("path", [path for path in CONFIGS if "GMACs" in path.read_text()], ids=lambda path: path.stem)
def test_the_costs_in_a_recipes_header_are_those_of_its_network(path):
    header, config = path.read_text().split("\nname:")[0], load_config(path)
    macs = {name: forward_macs(config.model.spec(), config.program(name)) / 1e9 for name in config.forwards()}
    assert f"{macs['dense']:.2f} GMACs an image" in header
    if config.routes:
        ratio = macs["dense"] / macs["routed"]
        assert f"{macs['routed']:.2f} after ({ratio:.2f} x fewer" in header
        cost = sum(phase.epochs * macs[phase.forward] for phase in config.resolved_phases())
        if "over the whole run" in header:
            assert f"{config.optim.epochs * macs['dense'] / cost:.2f} x over the whole run" in header


@pytest.mark.parametrize(
    "batch, images, devices, expected",
    [
        (16, 32, 1, (16, 2)),
        (16, 32, 2, (16, 1)),
        (16, 32, 4, (8, 1)),
        (128, 1024, 4, (128, 2)),
        (128, 1024, 16, (64, 1)),
        (100, 1024, 1, (64, 16)),
        (7, 48, 3, (4, 4)),
        (8, 8, 8, (1, 1)),
    ],
)
def test_other_devices_share_the_images_of_an_update(batch, images, devices, expected):
    config = Config(**SMALL, data={"batch_size": batch}).divided(images, devices)
    assert (config.data.batch_size, config.optim.accumulate) == expected
    assert config.update_images(devices) == images
    assert config.peak_lr(devices) == Config(**SMALL, data={"batch_size": images}).peak_lr(1)


def test_devices_that_cannot_share_an_update_are_refused_with_those_that_can():
    with pytest.raises(
        UsageError,
        match="run: its updates take 1024 images, .* 6 devices .*; numbers of devices that can: 1, 2, 4, 8, 16$",
    ):
        Config(**SMALL).divided(1024, 6)
    with pytest.raises(
        UsageError, match="would make 1031 batches of 2 of them; use a data.batch_size that divides 2062"
    ):
        Config(**SMALL, data={"batch_size": 1000}).divided(2062, 1)


def test_machines_with_other_paths_have_the_same_fingerprint_and_with_other_rates_not():
    same = [
        Config(**SMALL, data={"path": path, "workers": workers}, init={"weights": path}).fingerprint()
        for path, workers in (("/a", 1), ("/b", 8))
    ]
    assert same[0] == same[1] != Config(**SMALL, optim={"lr": 1.0}).fingerprint()
