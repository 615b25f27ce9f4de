"""`skipvit cost`: its counts against the products of the exported training graphs, memory against a count by hand."""

import json
import tempfile
from pathlib import Path

import mindspore as ms
import pytest

from skipvit.cli import run
from skipvit.config.config import Config
from skipvit.config.reading import list_recipes, load_config
from skipvit.engine.build import build_forward, build_network
from skipvit.engine.metrics import Accuracy
from skipvit.engine.synthetic import random_batch, training_step
from skipvit.measure.cost import cost, state
from skipvit.models.registry import model_spec
from skipvit.routing.layout import Layout
from skipvit.routing.program import Attend, Feed
from skipvit.util import compat
from support.graphs import product_macs

SIZES = {"width": 16, "depth": 5, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}
ROUTES = [
    {"start": 1, "end": 2, "keep_ratio": 0.5, "fuse": True},
    {"start": 2, "end": 4, "keep_ratio": 0.25, "scorer": "cls_attention_value"},
    {"start": 4, "end": None, "keep_ratio": 0.5, "scorer": "attention_received", "restore": False},
]
TINY = {
    "model": {"name": "vit_tiny_patch16_224"} | SIZES,
    "routes": ROUTES,
    "phases": [{"epochs": 2, "routes": []}, {}],
    "data": {"batch_size": 4},
    "optim": {"epochs": 10},
}


def products(cell, *batch) -> int:
    """Multiply-accumulates of all matrix products of a cell's graph, compiled for Ascend, with its gradients."""
    model = compat.mind_ir().ModelProto()
    with tempfile.TemporaryDirectory() as folder, compat.compiled_as_for_910a():
        file = str(Path(folder) / "graph")
        ms.export(cell, *batch, file_name=file, file_format="MINDIR", custom_func=model.CopyFrom)
    return product_macs(model)


def trained(config, name) -> float:
    """Of an image's training step, by its graph."""
    batch = random_batch(config, name)
    step = training_step(config, "ascend", build_network(config, "ascend"), name)
    return products(step, *batch) / config.data.batch_size


def evaluated(config, name) -> float:
    """Of an image's evaluation step, by its graph."""
    forward = build_forward(config, "ascend", build_network(config, "ascend"), name)
    return products(Accuracy(forward).set_train(False), *random_batch(config, name)[:3]) / config.data.batch_size


def test_a_frozen_network_has_no_backward():
    """But for the gradient of the head's weight: one product."""
    head = {"optim": {"epochs": 10, "train": "head"}, "init": {"weights": "any.ckpt"}, "phases": []}
    config = Config(**TINY | head, routing="gather")
    found = cost(config)
    routed = found.forwards["routed"]
    assert trained(config, "routed") == routed.training_macs == routed.macs + 16 * 10
    assert found.state == {"weights": 4 * found.parameters, "gradients": 4 * 170, "moments": 8 * 170}
    assert routed.activations == 0 and "no activations kept" in found.table()


@pytest.mark.parametrize("formulation", ["gather", "matmul"])
def test_counts_are_those_of_the_exported_graphs(formulation):
    config = Config(**TINY, routing=formulation)
    forwards = cost(config).forwards
    assert trained(config, "routed") == forwards["routed"].training_macs
    if formulation == "gather":  # the dense one is the same in both
        assert trained(config, "dense") == forwards["dense"].training_macs
    else:
        assert evaluated(config, "routed") == forwards["routed"].macs


@pytest.mark.slow
def test_counts_of_vit_small_are_those_of_the_exported_graphs():
    config = load_config("skipvit_small_imagenet.yaml", {"data.batch_size": 8})
    for name, forward in cost(config).forwards.items():
        assert abs(trained(config, name) / forward.training_macs - 1) < 0.005
        assert abs(evaluated(config, name) / forward.macs - 1) < 0.005


def small(**overrides):
    return load_config("skipvit_small_imagenet.yaml", {"phases": [], "optim.epochs": 100} | overrides)


# Spans of ViT-S/16 and ideal gains by hand: 4.671 % of the dense forward a bypassed block.
@pytest.mark.parametrize(("start", "end", "gain"), [(4, 7, 1.163), (4, 9, 1.305), (4, 11, 1.486), (2, 11, 1.725)])
def test_ideal_gains(start, end, gain):
    found = cost(small(routes=[{"start": start, "end": end, "keep_ratio": 0.45}], routing="gather"))
    assert abs(found.forwards["dense"].macs / found.forwards["routed"].macs - gain) < 0.001
    assert abs(found.gain - gain) < 0.006  # with the backward: the patch embedding's is a part smaller


def test_phases_count_in_the_gain_of_the_run():
    warm = cost(small(phases=[{"epochs": 15, "routes": []}, {}]))
    assert warm.run_gain == pytest.approx(100 / (15 + 85 / warm.gain))
    dense = cost(small(routes=[]))
    assert dense.gain == dense.run_gain == 1 and dense.focus == "dense"
    sized = cost(small(phases=[{"epochs": 40, "image_size": 112}, {"epochs": 10, "routes": []}, {}]))
    gains = {name: forward.gain for name, forward in sized.forwards.items()}
    assert [phase.forward for phase in sized.phases] == ["routed@112", "dense", "routed"] and sized.focus == "routed"
    assert gains["routed@112"] > 4 * gains["routed"]  # a quarter of the tokens
    assert sized.run_gain == pytest.approx(100 / (40 / gains["routed@112"] + 10 + 50 / gains["routed"]))


def test_memory_is_that_of_a_count_by_hand():
    """Korthikanti et al. (arXiv 2205.05198): a float16 layer keeps 34 N d + 5 h N^2 bytes with dropout and float16
    norms; without its dropout masks (2 N d + h N^2) and dropped maps (2 h N^2) 32 N d + 2 h N^2."""
    spec, layout = model_spec("vit_small_patch16_224"), Layout(1, 196)
    ours, n = sum(spec.activations(step, 2) for step in (Attend(layout, layout), Feed(layout, layout))), layout.length
    norms, maps = 2 * 2 * n * 384, 4 * 6 * n**2  # float32 instead of float16: norms' inputs, softmax
    assert ours == 32 * n * 384 + 2 * 6 * n**2 + norms + maps
    assert state(1000, 1000, ema=True, accumulate=True) == {
        "weights": 4000,
        "gradients": 4000,
        "moments": 8000,
        "averaged weights": 8000,
        "accumulated gradients": 4000,
    }


def test_text_json_and_image(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(TINY))  # which is YAML
    assert run("cost", ["--config", str(path), "--json", "--out", str(tmp_path / "images/tokens.png")]) == 0
    result, found = json.loads(capsys.readouterr().out), cost(Config(**TINY))
    assert result == json.loads(json.dumps(found.as_dict()))
    assert result["forwards"]["routed"]["tokens"] == [17, 10, 5, 5, 9]
    assert (tmp_path / "images/tokens.png").read_bytes().startswith(b"\x89PNG")
    text = found.table()
    assert "2 to 3, each       5" in text and f"{found.run_gain:.3f} x over the whole run" in text
    drawn = {patch.get_label().split(",")[0]: list(patch.get_data().values) for patch in found.figure().axes[0].patches}
    assert drawn == {"dense": [17] * 5, "routed": [17, 10, 5, 5, 9]}


def test_the_model_zoo_has_the_costs_of_the_recipes():
    """Every recipe with routes has a line, with its parameters, resolution and ideal gain."""
    page = (Path(__file__).parents[2] / "docs/model_zoo.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.count("|") == 15]
    head, _, *rows = rows
    rows = {row[head.index("recipe")].strip("`"): row for row in rows}
    recipes = {Path(name).stem: load_config(name) for name in list_recipes()}
    assert set(rows) == {name for name, config in recipes.items() if config.routes}
    for name, row in rows.items():
        found = cost(recipes[name])
        said = dict(zip(head, row))
        assert said["params, M"] == f"{found.parameters / 1e6:.2f}", name
        assert said["resolution"] == str(found.forwards["dense"].image_size), name
        assert said["ideal gain"] == f"{found.gain:.2f} ×", name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "tokens.text"], "--out: tokens.text is not an image file"),
        (["--model.patch", "15"], "model.patch: 15 does not divide"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, capsys):
    assert run("cost", words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
