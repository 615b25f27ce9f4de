"""`skipvit audit` on a small network: what passes, what is flagged, and that it is the real step that is read."""

import json
from collections import Counter
from math import prod, sqrt
from pathlib import Path

import pytest
import yaml

from skipvit.ascend.audit import as_dict, as_text, audit, steps, wrong
from skipvit.ascend.operators import Operator, Value, judge
from skipvit.cli import run
from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.models.arithmetic import forward_macs

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 16,
        "depth": 3,
        "heads": 2,
        "patch": 8,
        "image_size": 32,
        "num_classes": 10,
    },
    "routes": [{"start": 1, "end": 2, "keep_ratio": 0.5}],
    "data": {"batch_size": 4},
    "augment": {"mixup": 0.8, "cutmix": 1.0},
    "optim": {"epochs": 2, "warmup_epochs": 1, "accumulate": 2},
    "ema": {"decay": 0.99},
}
ADVICE = "the findings name them"
SCATTERED = {"TopK", "TensorScatterUpdate"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "run.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def graphs(file):
    return audit(load_config(file), world_size=8)


@pytest.fixture(scope="module")
def gathered(file):
    return audit(load_config(file, {"routing": "gather"}), world_size=1)


def found_wrong(graphs) -> list[str]:
    return [f"{o.name}: {v.why}" for audited in graphs.values() for o, v in audited if v.wrong]


def names(audited) -> Counter:
    return Counter(operator.name for operator, _ in audited)


def test_the_matmul_formulation_passes(graphs):
    assert not found_wrong(graphs)


def test_the_gather_formulation_is_flagged(gathered):
    assert SCATTERED <= {o.name for o, v in gathered["train routed"] if v.wrong}
    assert not SCATTERED & {o.name for o, v in gathered["evaluate dense"] if v.wrong}


def test_each_phase_has_its_graphs(graphs, file):
    assert list(graphs) == ["train routed", "evaluate dense", "evaluate routed"]
    warm = load_config(file, {"phases": [{"epochs": 1, "routes": []}, {}]})
    assert list(steps(warm)) == ["train dense", "train routed", "evaluate dense", "evaluate routed"]
    assert list(steps(load_config(file, {"routes": []}))) == ["train dense", "evaluate dense"]


def test_it_is_the_step_of_an_ascend_device(graphs, gathered):
    step = names(graphs["train routed"])
    weights = step["Adam"]
    assert weights == step["BiasAddGrad"] * 2 + 2 * 7 + 2  # weight and bias a layer, of 7 norms too, [CLS], positions
    assert step["LayerNormGrad"] == 7 and step["GeLUGrad"] == 3  # packaged kernels
    assert step["NPUGetFloatStatusV2"] == step["NPUClearFloatStatusV2"] == 1  # the overflow register
    assert (
        step["AllReduce"] == weights + 2 and not names(gathered["train routed"])["AllReduce"]
    )  # gradients, loss, finite
    assert {d for o, _ in graphs["train routed"] if o.name == "MatMul" for d, _ in o.tensors()} == {"float16"}


def test_every_kernel_has_a_known_result(graphs):
    """Nothing can hide behind a node whose tensors were not read."""
    nodes = [o for audited in graphs.values() for o, v in audited if v.unit != "no_kernel"]
    assert all(o.taken() and o.output.tensors for o in nodes)


def test_products_cost_what_the_network_costs(graphs, file):
    """An independent count: the MACs of the products that were read are those of the formula."""
    config = load_config(file)
    macs = 0
    for operator, _ in graphs["evaluate dense"]:
        if operator.name in ("MatMul", "BatchMatMul"):
            (_, a), (_, b) = operator.taken()[:2]
            c = operator.output.tensors[0][1]
            macs += sqrt(prod(a) * prod(b) * prod(c) / prod(c[:-2]))  # (B M K)(B K N)(B M N) = B (B M K N)^2
    assert macs == config.data.batch_size * forward_macs(config.model.spec(), config.program("dense"))


def test_text_and_json_say_the_same(gathered):
    text, result = as_text(gathered), as_dict(gathered)
    for graph, audited in gathered.items():
        assert sum(line["count"] for line in result["graphs"][graph]) == len(audited)
        assert f"{graph}: " in text
    assert len(result["findings"]) == len(found_wrong(gathered)) == wrong(gathered)
    for finding in result["findings"]:
        assert f"  {finding['operator']} ({finding['unit']}): {finding['why']}" in text and finding["source"]


def test_unknown_units_are_listed_apart():
    odd = Operator("Odd", "somewhere", (), Value((("float32", (2, 3)),)))
    text = as_text({"train dense": [(odd, judge(odd, {"Odd": {"unit": "unknown", "source": "nothing found"}}))]})
    assert "unknown:\n  Odd (unknown)" in text and "0 not for the AI cores" in text


def test_command(file, graphs, gathered, monkeypatch, capsys):
    words = ["--config", str(file), "--devices", "8"]
    monkeypatch.setattr("skipvit.ascend.audit.audit", lambda config, world_size: graphs)
    assert run("audit", [*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == as_dict(graphs)
    monkeypatch.setattr("skipvit.ascend.audit.audit", lambda config, world_size: gathered)
    assert run("audit", words) == 1
    printed = capsys.readouterr()
    assert printed.out == as_text(gathered) + "\n"
    assert printed.err == f"error: {wrong(gathered)} operators are not for the AI cores of an Ascend 910A; {ADVICE}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--devices", "0"], "--devices: 0"), (["--optim.speed", "1"], "--optim.speed is not an option")],
)
def test_what_cannot_be_is_refused_in_one_line(file, capsys, words, said):
    assert run("audit", ["--config", str(file), *words]) == 2
    assert said in capsys.readouterr().err


def shipped(name: str, **changes) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", changes)


@pytest.mark.parametrize("size", ["small_imagenet", "base_imagenet", "large_imagenet", "small_imagenet384"])
def test_the_dense_graphs_of_twins_are_the_same(size):
    """So that the audit of one stands for the other."""
    allowed = {"name", "routes", "phases"}
    assert set(shipped(f"vit_{size}").changed_since(shipped(f"skipvit_{size}"))) <= allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["small_imagenet", "base_imagenet", pytest.param("large_imagenet", marks=pytest.mark.long), "small_imagenet384"],
)
def test_shipped_networks_pass(name):
    assert not found_wrong(audit(shipped(f"skipvit_{name}"), world_size=8))


@pytest.mark.slow
def test_shipped_conservative_network_passes():
    """Its dense graphs are those of skipvit_small_imagenet."""
    config = shipped("skipvit_conservative_small_imagenet", phases=[])
    assert not found_wrong(audit(config, world_size=8))
