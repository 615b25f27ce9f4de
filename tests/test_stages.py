"""Swin and PVT in the ordinary commands: trained along a route, resumed, costed, exported, looked at, audited."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run
from skipvit.runs.run import Run

pytestmark = pytest.mark.slow

CONFIG = """
name: run
model: {{{model}, image_size: 32, num_classes: 10}}
routes: [{{start: 1, end: 3, keep_ratio: 0.45, scorer: attention_received}}]
phases: [{{epochs: 1, routes: []}}, {{}}]
data: {{kind: shapes, batch_size: 20, train_size: 120, val_size: 50}}
optim: {{epochs: 2, lr: 1.0e-3, warmup_epochs: 1}}
checkpoint: {{keep: 5}}
"""
PVT = "width: [8, 16, 16], depth: [1, 3, 1], heads: [1, 2, 2], reduction: [4, 2, 1], mlp_ratio: [2, 2, 2], patch: 2"
MODELS = {
    "swin": "name: swin_tiny_patch4_window7_224, width: 8, depth: [1, 3, 1], heads: [1, 2, 2], patch: 2, window: 4",
    "pvt_v2": f"name: pvt_v2_b0, {PVT}",
    "pvt": f"name: pvt_tiny, {PVT}",
}
KEPT = {"swin": 28, "pvt_v2": 28, "pvt": 28}  # 7 of each window's 16; 7 of 16 squares of 4


@pytest.fixture(scope="module", params=["swin", "pvt_v2", pytest.param("pvt", marks=pytest.mark.long)])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "run.yaml").write_text(CONFIG.format(model=MODELS[request.param]))
    assert run("train", ["--config", str(folder / "run.yaml"), "--runs", str(folder / "runs")]) == 0
    return request.param, folder


def test_it_trains_along_its_route_and_its_kept_patches_are_drawn(trained, tmp_path):
    kind, folder = trained
    own = Run(folder / "runs" / "run")
    assert own.finished and [record["trained"] for record in own.records()] == ["dense", "routed"]
    (select,) = own.config.program("routed").selections
    assert select.after.patches == KEPT[kind] and select.before.patches == 64
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    assert run("predict", [str(own.path), str(tmp_path / "a.png"), "--show", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_it_is_exported_and_agrees(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    words = [str(trained[1] / "runs" / "run"), "--to", "onnx", "--out", str(tmp_path / "out"), "--check", "16"]
    assert run("export", words) == 0


def test_it_resumes_bit_by_bit(trained, tmp_path):
    whole, again = trained[1] / "runs", tmp_path / "runs"
    shutil.copytree(whole, again)
    for path in (again / "run" / "checkpoints").iterdir():
        if path.name != "epoch_0001.ckpt":
            path.unlink()
    words = ["--config", str(trained[1] / "run.yaml"), "--runs", str(again), "--resume", "auto"]
    assert run("train", words) == 0
    last = Run(whole / "run").checkpoints()[-1].name
    assert (whole / "run/checkpoints" / last).read_bytes() == (again / "run/checkpoints" / last).read_bytes()


def test_its_timm_weights_start_another_run_and_evaluate_alike(trained, tmp_path, capsys):
    words = [str(trained[1] / "runs" / "run"), "--to", "safetensors", "--out", str(tmp_path / "out")]
    assert run("export", words) == 0
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    words = ["--config", str(trained[1] / "run.yaml"), "--runs", str(tmp_path / "runs"), "--init.weights", str(weights)]
    assert run("train", [*words, "--optim.lr", "1e-9", "--optim.min_lr", "1e-10"]) == 0
    first = Run(trained[1] / "runs" / "run").records()[-1]["val"]["routed"]["loss"]
    assert Run(tmp_path / "runs" / "run").records()[0]["val"]["routed"]["loss"] == pytest.approx(first, abs=0.2)


def test_it_goes_to_mindir_and_half_precision_is_audited(trained, tmp_path, capsys):
    run_folder = str(trained[1] / "runs" / "run")
    assert run("export", [run_folder, "--to", "mindir", "--out", str(tmp_path / "out"), "--check", "8"]) == 0
    capsys.readouterr()
    code = run("audit", ["--config", str(trained[1] / "run.yaml"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and {"train dense", "train routed"} <= set(found["graphs"]) and found["findings"] == []


def test_what_its_route_keeps_is_measured(trained, tmp_path):
    words = [str(trained[1] / "runs" / "run"), "--out", str(tmp_path / "out"), "--images", "20"]
    assert run("importance", words) == 0
    found = json.loads((tmp_path / "out" / "importance.json").read_text())
    assert found["tokens"] == 64 and found["kept"] == KEPT[trained[0]]
    assert {"attention_received", "grid", "random"} <= set(found["scorers"])
