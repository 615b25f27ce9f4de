"""`skipvit cost`: its counts against the products of the exported training graphs, memory against a count by hand."""

import json
from math import prod, sqrt
from pathlib import Path

import pytest

from skipvit.ascend.audit import audit, export, steps
from skipvit.ascend.operators import operators
from skipvit.cli import run
from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.measure.cost import as_text, cost_of, tokens_figure
from skipvit.measure.macs import Sequence, forward_macs, training_macs
from skipvit.measure.memory import block_activations, state
from skipvit.models.sizes import Size

MODEL = {"size": "tiny", "width": 16, "depth": 5, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}
ROUTES = [
    {"start": 1, "end": 2, "keep_ratio": 0.5, "fuse": True},
    {"start": 2, "end": 4, "keep_ratio": 0.25, "scorer": "cls_attention_value"},
]
TINY = {
    "model": MODEL,
    "routes": ROUTES,
    "phases": {"dense_warmup_epochs": 2},
    "data": {"batch_size": 4},
    "optim": {"epochs": 10},
}


def products(audited) -> int:
    """Multiply-accumulates of all matrix products of a graph: (B M K)(B K N)(B M N) = B (B M K N)^2."""
    total = 0
    for operator, _ in audited:
        if operator.name in ("MatMul", "BatchMatMul"):
            (_, a), (_, b) = operator.taken()[:2]
            c = operator.output.tensors[0][1]
            total += round(sqrt(prod(a) * prod(b) * prod(c) / prod(c[:-2])))
    return total


def test_a_frozen_network_has_no_backward():
    """But for the gradient of the head's weight: one product."""
    optim = {"epochs": 10, "train": "head"}
    config = Config(
        **TINY | {"optim": optim, "init": {"weights": "any.ckpt"}, "phases": {"dense_warmup_epochs": 0}},
        routing="gather",
    )
    cost = cost_of(config)
    routed = cost.forwards["routed"]
    graph = operators(export(*steps(config, devices=1)["train routed"]()))
    assert products([(operator, None) for operator in graph]) == 4 * routed.training_macs == 4 * (routed.macs + 16 * 10)
    assert cost.state == {"weights": 4 * cost.parameters, "gradients": 4 * 170, "moments": 8 * 170}
    assert routed.activations == 0 and "no activations kept" in as_text(config, cost)


@pytest.mark.parametrize("formulation", [pytest.param("gather", marks=pytest.mark.slow), "matmul"])
def test_counts_are_those_of_the_exported_graphs(formulation):
    # The dense training step is the same in both formulations: one has a dense phase.
    phases = {"dense_warmup_epochs": 2 if formulation == "gather" else 0}
    config = Config(**TINY | {"phases": phases}, routing=formulation)
    audited, forwards = audit(config, devices=1), cost_of(config).forwards
    for graph, found in audited.items():
        step, name = graph.split()
        forward = forwards[name]
        assert products(found) == 4 * (forward.training_macs if step == "train" else forward.macs), graph
    assert len(audited) == 4 - (formulation == "matmul")


@pytest.mark.slow
def test_counts_of_vit_small_are_those_of_the_exported_graphs():
    config = configuration.read(Path(configuration.recipe("skipvit_small_imagenet.yaml")))
    audited = audit(config, devices=1)
    for name, forward in cost_of(config).forwards.items():
        assert abs(products(audited[f"train {name}"]) / config.data.batch_size / forward.training_macs - 1) < 0.005
        assert abs(products(audited[f"evaluate {name}"]) / config.data.batch_size / forward.macs - 1) < 0.005


# Spans of ViT-S/16 and ideal gains by hand: 4.671 % of the dense forward a bypassed block.
@pytest.mark.parametrize(("start", "end", "gain"), [(4, 7, 1.163), (4, 9, 1.305), (4, 11, 1.486), (2, 11, 1.725)])
def test_ideal_gains(start, end, gain):
    config = Config(routes=[{"start": start, "end": end, "keep_ratio": 0.45}], routing="gather")
    cost = cost_of(config)
    assert abs(cost.forwards["dense"].macs / cost.forwards["routed"].macs - gain) < 0.001
    assert abs(cost.gain - gain) < 0.006  # with the backward: the patch embedding's is a part smaller


def test_warm_up_counts_in_the_gain_of_the_run():
    config = Config(routes=[{"start": 4, "end": 11}], phases={"dense_warmup_epochs": 15}, optim={"epochs": 100})
    cost = cost_of(config)
    assert cost.run_gain == pytest.approx(100 / (15 + 85 / cost.gain))
    assert cost_of(Config()).gain == cost_of(Config()).run_gain == 1


def test_memory_is_that_of_a_count_by_hand():
    """Korthikanti et al. (arXiv 2205.05198): a float16 layer keeps 34 N d + 5 h N^2 bytes with dropout and float16
    norms; without its dropout masks (2 N d + h N^2) and dropped maps (2 h N^2) 32 N d + 2 h N^2."""
    size, n = Size(384, 12, 6), 197
    ours = block_activations(Sequence(n, n), size, compute=2)
    norms, maps = 2 * 2 * n * 384, 4 * 6 * n**2  # float32 instead of float16: norms' inputs, softmax
    assert ours == 32 * n * 384 + 2 * 6 * n**2 + norms + maps
    assert state(1000, 1000, ema=True, accumulate=True) == {
        "weights": 4000,
        "gradients": 4000,
        "moments": 8000,
        "averaged weights": 8000,
        "accumulated gradients": 4000,
    }


def test_training_is_three_forwards_but_for_the_images_gradient():
    size = Size(384, 12, 6)
    assert training_macs(size, 16, 196, 1000) == 3 * forward_macs(size, 16, 196, 1000) - 196 * 768 * 384


def test_text_json_and_image(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(configuration.to_yaml(Config(**TINY)))
    assert run("cost", ["--config", str(path), "--json", "--out", str(tmp_path / "images/tokens.png")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["forwards"]["routed"]["tokens"] == [17, 10, 5, 5, 17]
        and (tmp_path / "images/tokens.png").stat().st_size > 0
    )
    cost = cost_of(Config(**TINY))
    text = as_text(Config(**TINY), cost)
    assert "0 " in text and f"{cost.run_gain:.3f} x over the whole run" in text and "routed                  8" in text
    bars = tokens_figure(Config(**TINY), cost).axes[0].patches
    assert [bar.get_height() for bar in bars] == [17] * 5 + [17, 10, 5, 5, 17]


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
