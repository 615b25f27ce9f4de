"""The examples of the docs: a plan, a method and a scorer of one's own, as they stand there."""

import importlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mindspore import Tensor

from skipvit.lab import plan as plans
from skipvit.lab.methods import read_method
from skipvit.models.sizes import Size
from skipvit.models.vit import Activations, ViT
from skipvit.routing import scorers
from skipvit.routing.routing import Route

ROOT = Path(__file__).parents[1]


def example(page, holds):
    """The only piece of YAML or Python in a page of the docs that holds a text."""
    pieces = re.findall(r"```(?:yaml|python)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    (found,) = (piece for piece in pieces if holds in piece)
    return found


def test_the_plan_and_the_method_of_the_lab_page(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    plan = tmp_path / "configs/studies/own.yaml"
    plan.write_text(example("lab.md", "base: base_shapes.yaml"))
    runs = plans.read(plan).runs
    assert len(runs) == 5 * 2 * (1 + 1 + 3)  # seeds x sizes x (dense, skipvit, mine with three keep ratios)
    assert {run.config.routes[0].keep_ratio for run in runs if run.method == "mine"} == {0.3, 0.45, 0.7}
    (tmp_path / "mine.yaml").write_text(example("lab.md", "keep_ratio: 0.6, scorer: random"))
    assert [(route["start"], route["end"]) for route in read_method(tmp_path / "mine.yaml", 12)["routes"]] == [
        (2, 6),
        (6, 11),
    ]


def test_the_method_of_the_routes_page(tmp_path):
    (tmp_path / "two_spans.yaml").write_text(example("routes.md", "Two short spans"))
    assert [(route["start"], route["end"]) for route in read_method(tmp_path / "two_spans.yaml", 12)["routes"]] == [
        (3, 6),
        (7, 11),
    ]


def test_the_scorer_of_the_routes_page_keeps_what_it_says(tmp_path, monkeypatch):
    """The function by itself against NumPy, then its line: a route of a compiled network."""
    function = example("routes.md", "def unusual_keys")
    path = tmp_path / "own_scorer.py"
    imports = "import mindspore as ms\nfrom mindspore import ops\n\nfrom skipvit.routing.scorers import of_patches, value_norm\n\n\n"
    path.write_text(imports + function)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("own_scorer")

    k = np.random.default_rng(0).normal(size=(3, 2, 9, 4)).astype(np.float32)
    ranking, weights = module.unusual_keys(SimpleNamespace(tokens=8), None, Tensor(k), None, None)
    expected = np.linalg.norm(k - k.mean(2, keepdims=True), axis=-1).mean(1)[:, 1:]
    np.testing.assert_allclose(ranking.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(weights.asnumpy(), ranking.asnumpy())

    line = "{" + example("routes.md", '"unusual_keys": Scorer') + "}"
    for name, scorer in eval(line, {"Scorer": scorers.Scorer, "unusual_keys": module.unusual_keys}).items():
        monkeypatch.setitem(scorers.SCORERS, name, scorer)
    network = ViT(Size(16, 3, 2), 16, 4, 5, [Route(1, 2, 0.5, "unusual_keys")]).set_train(False)
    images = Tensor(np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8))
    kept = Activations(network, ["routes.0.kept"]).by_name(
        images, Tensor(np.zeros((2, network.noise_width), np.float32))
    )["routes.0.kept"]
    assert kept.shape == (2, 8) and all(len(set(row)) == 8 for row in kept)
