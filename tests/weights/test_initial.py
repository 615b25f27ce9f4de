"""Weights to start from: what is loaded, resized, left new or refused. No graph is compiled here, see test_finetune."""

import json
import struct

import numpy as np
import pytest
from mindspore import Parameter, Tensor
from PIL import Image
from safetensors.numpy import save_file

from skipvit import training
from skipvit.cli import run
from skipvit.config.config import Config, to_yaml
from skipvit.config.groups import DataConfig, EmaConfig
from skipvit.engine import checkpoint
from skipvit.engine.build import build_network, build_optimizer, build_state
from skipvit.engine.checkpoint import Position
from skipvit.engine.checkpoint_file import write_checkpoint
from skipvit.models.registry import model_spec
from skipvit.models.vit_timm import from_timm
from skipvit.util.errors import RunError, UsageError
from skipvit.weights.files import read_weights, write_weights
from skipvit.weights.initial import read_initial
from support.reference import timm_shapes

WIDTH, DEPTH, HEADS, PATCH = 8, 2, 2, 4
MODEL = {
    "name": "vit_tiny_patch16_224",
    "width": WIDTH,
    "depth": DEPTH,
    "heads": HEADS,
    "patch": PATCH,
    "image_size": 32,
    "num_classes": 10,
}


def timm_weights(image_size=32, classes=10, patch=PATCH):
    rng = np.random.default_rng(0)
    shapes = timm_shapes(WIDTH, DEPTH, patch, image_size // patch, classes)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def config(path, init=None, optim=None, **model):
    data = {"kind": "image_folder", "path": "nowhere"}
    return Config(model=MODEL | model, init={"weights": str(path)} | (init or {}), optim=optim or {}, data=data)


@pytest.fixture
def saved(tmp_path):
    save_file(timm_weights(), tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors"


@pytest.fixture
def run_of(tmp_path):
    """Makes a run's folder with two checkpoints; in the first, weights are 0 and averages -1, in the second 1 and 2."""

    def make(best=True, average=True, **model):
        folder = tmp_path / "run"
        for epoch, (value, mean) in enumerate(((0.0, -1.0), (1.0, 2.0))):
            names = from_timm(timm_weights())
            parameters = [Parameter(Tensor(np.full_like(v, value)), name=n) for n, v in names.items()]
            parameters += [
                Parameter(Tensor(np.full_like(v, mean)), name=f"ema.{n}") for n, v in names.items() if average
            ]
            parameters += [Parameter(Tensor(np.float32(3)), name="trainer.loss_scale")]
            path = checkpoint.save(folder / "checkpoints", Position(epoch, 1, 1), parameters, keep=3)
            if best and epoch == 0:
                checkpoint.keep_best(path)
        (folder / "config.yaml").write_text(to_yaml(Config(model=MODEL | model)))
        return folder

    return make


def value_of(initial):
    """The one number that all weights are."""
    (value,) = {float(v) for array in initial.weights.values() for v in np.unique(array)}
    return value


def test_a_run_gives_its_best_checkpoint_else_its_newest_and_averaged_weights_if_it_has_them(run_of):
    folder = run_of()
    assert value_of(read_initial(config(folder))) == -1
    assert value_of(read_initial(config(folder, {"averaged": False}))) == 0
    assert value_of(read_initial(config(folder / "checkpoints/epoch_0002_step_000001.ckpt"))) == 2
    (folder / "checkpoints/best.ckpt").unlink()
    initial = read_initial(config(folder))
    newest = folder / "checkpoints/epoch_0002_step_000001.ckpt"
    assert value_of(initial) == 2 and initial.warnings == ()
    assert initial.line == f"starting from {newest}: 40 arrays loaded, averaged weights"


def test_a_run_without_averages_gives_its_weights(run_of):
    initial = read_initial(config(run_of(average=False)))
    assert value_of(initial) == 0 and "averaged" not in initial.line


def test_timm_weights_come_as_convert_translates_them(saved):
    initial = read_initial(config(saved))
    expected = from_timm(timm_weights())
    assert set(initial.weights) == set(expected)
    assert all(np.array_equal(initial.weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("there", "here", "patch"), [(224, 384, 16), (32, 48, 4), (48, 32, 4)])
def test_other_images_resize_the_positions_and_nothing_else(tmp_path, there, here, patch):
    original = timm_weights(there, patch=patch)
    save_file(original, tmp_path / "a.safetensors")
    initial = read_initial(config(tmp_path / "a.safetensors", image_size=here, patch=patch))
    old, new = there // patch, here // patch
    image = Image.fromarray(original["pos_embed"][0, 1:, 3].reshape(old, old)).resize(
        (new, new), Image.Resampling.BICUBIC
    )
    resized = initial.weights["pos_embed"]
    assert resized.shape == (1, 1 + new * new, WIDTH) and np.array_equal(resized[0, 0], original["pos_embed"][0, 0])
    assert np.allclose(resized[0, 1:, 3], np.asarray(image).ravel(), atol=2e-6)
    others = {name: value for name, value in from_timm(original).items() if name != "pos_embed"}
    assert all(np.array_equal(initial.weights[name], value) for name, value in others.items())
    assert f"position embedding resized from {old} x {old} to {new} x {new} (bicubic)" in initial.line


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("head")}


@pytest.mark.parametrize(
    ("weights", "init", "said"),
    [
        (lambda: timm_weights(classes=1000), {}, "head new (10 classes; there: 1000 classes)"),
        (lambda: without_head(timm_weights()), {}, "head new (10 classes; there: none)"),
        (timm_weights, {"head": "new"}, "head new (10 classes; there: 10 classes)"),
    ],
)
def test_a_head_for_other_classes_is_new_and_drawn_from_the_seed(tmp_path, weights, init, said):
    save_file(weights(), tmp_path / "a.safetensors")
    chosen = config(tmp_path / "a.safetensors", init)
    initial = read_initial(chosen)
    assert said in initial.line and "38 arrays loaded" in initial.line
    network, untouched = build_network(chosen, "cpu"), build_network(chosen, "cpu")
    initial.load(network)
    for name, parameter in network.parameters_dict().items():
        expected = untouched.parameters_dict()[name].asnumpy() if name.startswith("head") else initial.weights[name]
        assert np.array_equal(parameter.asnumpy(), expected), name


def test_rows_go_by_the_names_of_the_classes_where_they_are_known(run_of):
    folder, mine = run_of(), tuple("abcdefghij")
    start = folder / "checkpoints" / "best.ckpt"
    head = np.arange(10 * WIDTH, dtype=np.float32).reshape(10, WIDTH)
    arrays = from_timm(timm_weights()) | {"head.weight": head, "head.bias": head[:, 0]}
    write_checkpoint(start, arrays)
    assert "head" not in read_initial(config(folder), mine).line  # not known
    (folder / "classes.json").write_text(json.dumps(mine))
    assert "head" not in read_initial(config(folder), mine).line
    digits = tuple(map(str, range(10)))  # names of classes that have none
    assert np.array_equal(read_initial(config(folder), digits).weights["head.weight"], head)
    others = read_initial(config(folder), tuple("ghijklmnop"))
    assert "head.bias" not in others.weights and "head new (10 classes; there: 10 other classes)" in others.line
    turned = read_initial(config(folder), mine[::-1])
    assert "head's rows by name (10 of 10 classes)" in turned.line
    assert np.array_equal(turned.weights["head.weight"], head[::-1])
    some = read_initial(config(folder, num_classes=3), ("j", "a", "d"))
    assert "head's rows by name (3 of 10 classes)" in some.line
    assert np.array_equal(some.weights["head.weight"], head[[9, 0, 3]])
    assert np.array_equal(some.weights["head.bias"], head[[9, 0, 3], 0])
    (folder / "classes.json").write_text("{")
    assert "classes.json: not a list of 10 class names" in refused(config(folder), RunError, mine)


def test_exported_weights_have_the_names_of_their_card(saved):
    chosen, card, mine = config(saved), saved.with_name("timm.safetensors.json"), tuple("abcdefghij")
    for text in (
        "{",
        "[]",
        '{"classes": 3}',
        '{"classes": ["a"]}',
        json.dumps({"classes": [f"class {i}" for i in range(10)]}),
    ):
        card.write_text(text)
        assert "head" not in read_initial(chosen, mine).line, text
    card.write_text(json.dumps({"classes": mine[::-1]}))
    turned, whole = read_initial(chosen, mine), read_initial(chosen, mine[::-1])
    assert "head's rows by name" in turned.line and "head" not in whole.line
    assert np.array_equal(turned.weights["head.bias"], whole.weights["head.bias"][::-1])
    assert "10 other classes" in read_initial(chosen, tuple("qrstuvwxyz")).line


def test_moments_and_averages_begin_with_what_was_loaded(saved):
    chosen = config(saved).model_copy(update={"ema": EmaConfig(decay=0.9)})
    network = build_network(chosen, "cpu")
    initial = read_initial(chosen)
    initial.load(network)
    optimizer = build_optimizer(chosen, network, 10)
    for average in build_state(chosen, optimizer, "cpu").ema:
        assert np.array_equal(average.asnumpy(), initial.weights[average.name.removeprefix("ema.")])


def test_frozen_parameters_have_no_moments_and_no_average(saved):
    chosen = config(saved, optim={"train": "head"}).model_copy(update={"ema": EmaConfig(decay=0.9)})
    optimizer = build_optimizer(chosen, build_network(chosen, "cpu"), 10)
    state = build_state(chosen, optimizer, "cpu")
    owned = {
        p.name
        for cell in (optimizer, state)
        for p in cell.get_parameters()
        if "." in p.name and "trainer." not in p.name
    }
    copies = ("", "optimizer.moment1.", "optimizer.moment2.", "ema.", "spare.")
    assert owned == {f"{copy}head.{kind}" for copy in copies for kind in ("weight", "bias")} | {"optimizer.step"}
    assert read_initial(chosen).line.endswith("all but the head frozen")


def test_the_disk_that_a_run_asks_for_has_no_moments_of_frozen_weights(saved):
    """Weights, and of those that are trained two moments and the average, of four bytes each."""
    weights = timm_weights()
    every, head = sum(w.size for w in weights.values()), weights["head.weight"].size + weights["head.bias"].size
    for train, trained in (("all", every), ("head", head)):
        chosen = config(saved, optim={"train": train})
        assert training.checkpoint_bytes(chosen) == 4 * (every + 2 * trained)
        averaged = chosen.model_copy(update={"ema": EmaConfig(decay=0.9)})
        assert training.checkpoint_bytes(averaged) == 4 * (every + 3 * trained)


def refused(chosen, error=UsageError, classes=None):
    with pytest.raises(error) as caught:
        read_initial(chosen, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_shape_is_refused_with_key_and_both_values(saved, run_of):
    said = refused(config(saved, patch=8))
    assert "its patches are 4 pixels wide, model.patch is 8: the patch projection has a weight for every pixel" in said
    assert "width 8 there, model.width 16 here; set model.name or --model.width 8" in refused(config(saved, width=16))
    assert "depth 2 there, model.depth 3 here; set model.name or --model.depth 2" in refused(config(saved, depth=3))
    assert "heads 2 there, model.heads 4 here; set model.name or --model.heads 2" in refused(config(run_of(), heads=4))


def test_paths_that_lead_nowhere_are_refused(tmp_path, saved):
    (tmp_path / "a.pth").write_bytes(b"PK")
    for name, said in (
        ("none.ckpt", "none.ckpt: no such checkpoint"),
        ("none.safetensors", "none.safetensors: no such file"),
        ("none", "none: weights end in .ckpt or .safetensors"),
        ("a.pth", "a.pth: weights end in .ckpt or .safetensors; save others as .safetensors first"),
        ("", "not a run folder, it has no config.yaml"),
    ):
        assert said in refused(config(tmp_path / name))


def test_half_a_head_is_refused(tmp_path):
    """What else is no network's, or damaged: tests/weights/test_convert.py, read by the same function."""
    save_file(
        {name: value for name, value in timm_weights().items() if name != "head.bias"}, tmp_path / "a.safetensors"
    )
    assert "missing head.bias" in refused(config(tmp_path / "a.safetensors"), RunError)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    weights = timm_weights()
    weights["blocks.1.mlp.fc1.bias"][3] = np.nan
    save_file(weights, tmp_path / "a.safetensors")
    assert "blocks.1.mlp.fc1.bias holds numbers that are not finite" in refused(
        config(tmp_path / "a.safetensors"), RunError
    )


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_widened_and_said(tmp_path, kind):
    eighths = {name: np.round(value * 8) / 8 for name, value in timm_weights().items()}  # exact in both
    header, data = {}, b""
    for name, value in eighths.items():
        half = value.astype(np.float16) if kind == "F16" else (value.view(np.uint32) >> 16).astype(np.uint16)
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [len(data), len(data) + half.nbytes]}
        data += half.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    initial = read_initial(config(tmp_path / "a.safetensors"))
    assert "widened to float32: 32 arrays of 16 bits" in initial.line
    for name, value in from_timm(eighths).items():
        assert initial.weights[name].dtype == np.float32 and np.array_equal(initial.weights[name], value)


def test_what_weights_do_not_tell_is_doubted_in_a_line(saved, run_of):
    gelu, heads = read_initial(config(saved)).warnings
    assert "trained with the erf GELU, this run has tanh; use --model.gelu erf" in gelu
    assert "does not tell its number of heads; timm's and DeiT's are 64 wide, model.heads 2 makes them 4 wide" in heads
    assert len(read_initial(config(saved, gelu="erf")).warnings) == 1
    (said,) = read_initial(config(run_of(gelu="erf"))).warnings
    assert "was trained with model.gelu erf, this run has tanh" in said
    assert read_initial(config(run_of(gelu="erf"), gelu="erf")).warnings == ()


def test_nothing_is_made_where_the_weights_are_missing(tmp_path, capsys):
    few = {"batch_size": 16, "train_size": 16, "val_size": 16}
    (tmp_path / "run.yaml").write_text(
        to_yaml(config(tmp_path / "none.ckpt").model_copy(update={"data": DataConfig(**few)}))
    )
    for words in ([], ["--check"], ["--resume", "auto"]):
        assert run("train", ["--config", str(tmp_path / "run.yaml"), "--runs", str(tmp_path / "runs"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "init.weights: " in line and "none.ckpt: no such" in line and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name, there", [("swin_tiny_patch4_window7_224", "a Swin"), ("pvt_tiny", "a PVT"), ("pvt_v2_b0", "a PVT v2")]
)
def test_weights_of_another_family_are_refused_in_one_line(tmp_path, name, there):
    spec = model_spec(name)
    write_weights({key: np.zeros(shape, np.float32) for key, shape in spec.shapes().items()}, tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt").spec.family == there
    for other in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b2_li"):
        if model_spec(other).family != there:
            with pytest.raises(RunError, match=f"weights of {there}, and this network is .*; set model.name"):
                read_weights(tmp_path / "a.ckpt", model_spec(other))
