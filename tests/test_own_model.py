"""A backbone without [CLS] and a scorer with a parameter, both in a file of their own (support/own.py): trained,
costed, exported and audited by the ordinary commands, without a change anywhere else."""

import json
from pathlib import Path

import numpy as np
import pytest

from skipvit.cli import run

OWN = Path(__file__).parent / "support" / "own.py"
CONFIG = f"""
name: own
imports: [{OWN}]
model: {{name: mean_vit, num_classes: 10}}
routes: [{{start: 1, end: 3, keep_ratio: 0.5, scorer: keys_norm, power: 2}}]
phases: [{{epochs: 1, routes: []}}, {{}}]
data: {{kind: shapes, batch_size: 20, train_size: 120, val_size: 50}}
optim: {{epochs: 2, lr: 1.0e-3, warmup_epochs: 1}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(CONFIG)
    assert run("train", ["--config", str(folder / "own.yaml"), "--runs", str(folder / "runs")]) == 0
    return folder


def test_it_trains_and_its_kept_patches_are_those_of_the_largest_keys(trained):
    from skipvit.config.reading import load_config
    from skipvit.data.open import open_source
    from skipvit.runs.run import Run

    own = Run(trained / "runs" / "own")
    assert own.finished and [record["trained"] for record in own.records()] == ["dense", "routed"]
    images = np.stack([open_source(load_config(trained / "own.yaml"), "val").read(i) for i in range(8)])
    outputs = ("embed", "blocks.0", "routes.0.ranking", "routes.0.slots", "blocks.1", "logits")
    seen = own.network("routed", outputs=outputs).by_name(images)
    assert seen["embed"].shape == (8, 16, 32) and seen["blocks.1"].shape == (8, 8, 32)  # no [CLS]; half stay
    weights = {p.name: p.asnumpy() for p in own.network("routed").network.get_parameters()}
    assert "cls_token" not in weights
    x = seen["embed"].astype(np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normed = normed * weights["blocks.0.norm1.weight"] + weights["blocks.0.norm1.bias"]
    keys = normed @ weights["blocks.0.attn.k.weight"].T + weights["blocks.0.attn.k.bias"]
    norms = np.linalg.norm(keys.reshape(8, 16, 2, 16), axis=-1).mean(-1)
    np.testing.assert_allclose(seen["routes.0.ranking"], norms**2, rtol=1e-4)
    kept = np.argsort(-norms, axis=1, kind="stable")[:, :8]
    assert all(set(np.flatnonzero(row >= 0)) == set(best) for row, best in zip(seen["routes.0.slots"], kept))


def test_it_is_costed_by_its_own_layout(trained, capsys):
    assert run("cost", ["--config", str(trained / "own.yaml"), "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    d, block = 32, lambda n: 12 * n * 32**2 + 2 * n**2 * 32
    dense = 16 * 3 * 8**2 * d + 4 * block(16) + d * 10
    assert cost["forwards"]["dense"]["macs"] == dense
    moves = 2 * 8 * 16 * d  # into the route and out of it, as on Ascend by 0/1 matrices
    assert cost["forwards"]["routed"]["macs"] == dense - 2 * (block(16) - block(8)) + moves


def test_it_is_exported_and_agrees(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    words = [str(trained / "runs" / "own"), "--to", "onnx", "--out", str(tmp_path / "out"), "--check", "16"]
    assert run("export", words) == 0
    assert list((tmp_path / "out").glob("*.onnx"))


@pytest.mark.slow
def test_it_is_audited(trained, capsys):
    code = run("audit", ["--config", str(trained / "own.yaml"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and {"train dense", "train routed"} <= set(found["graphs"]) and found["findings"] == []


def test_what_does_not_fit_is_one_line(trained, capsys):
    routes = "[{start: 1, end: 3, scorer: cls_attention}]"
    assert (
        run("train", ["--config", str(trained / "own.yaml"), "--runs", str(trained / "other"), "--routes", routes]) == 2
    )
    assert "reads the attention of [CLS], which this network has none of" in capsys.readouterr().err
    routes = "[{start: 1, end: 3, scorer: keys_norm, power: 9}]"
    assert (
        run("train", ["--config", str(trained / "own.yaml"), "--runs", str(trained / "other"), "--routes", routes]) == 2
    )
    assert "routes.0.power: 9 is outside 0 to 8" in capsys.readouterr().err
    assert (
        run(
            "train",
            ["--config", str(trained / "own.yaml"), "--runs", str(trained / "other"), "--imports", "nowhere.py"],
        )
        == 2
    )
    assert "nowhere.py is not a Python file" in capsys.readouterr().err
