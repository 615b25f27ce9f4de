"""`skipvit export`: what is written runs and agrees with the network or is not kept, and the card tells the truth."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image
from safetensors.numpy import load_file

import skipvit
from skipvit.cli import run
from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.data.sources.shapes import generate
from skipvit.models.vit_timm import from_timm
from skipvit.routing.spec import Route
from skipvit.runs.run import Run
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.weights import agreement, card, export, onnx
from support.reference import forward
from support.weights import random_weights

onnxruntime = pytest.importorskip("onnxruntime")
# A folder of images of ImageNet, if there is one; without it the built-in images are enlarged.
SAMPLE = Path(os.environ.get("SKIPVIT_IMAGENET_SAMPLE", "nowhere"))
ROUTE = Route(start=1, end=3, keep_ratio=0.5)


@pytest.fixture(scope="module")
def tiny(make_run, tmp_path_factory):
    """A run's folder and its averaged weights."""
    return make_run(tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A folder with the routed ONNX file for two batch sizes, and what was said."""
    out, lines = tmp_path_factory.mktemp("out") / "new" / "folder", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.log, "info", lines.append)
        rows = skipvit.export(tiny[0], out=out, batch_sizes=(1, 3), licence="mine")
    assert [row["file"] for row in rows] == ["tiny_routed_b1.onnx", "tiny_routed_b3.onnx"]
    return out, lines


def error_line(capsys):
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_onnx_files_answer_as_the_reference(tiny, exported):
    """In ONNX Runtime: uint8 images in, probabilities out, of the averaged weights along the route."""
    images = generate(3, seed=0, split="val").images
    logits = forward(tiny[1], images, np.zeros((3, 8), np.float32), depth=4, heads=2, patch=8, routes=[ROUTE]).logits
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    three = onnxruntime.InferenceSession(str(exported[0] / "tiny_routed_b3.onnx")).run(None, {"images": images})[0]
    one = onnxruntime.InferenceSession(str(exported[0] / "tiny_routed_b1.onnx")).run(None, {"images": images[:1]})[0]
    np.testing.assert_allclose(three, expected, atol=1e-5)
    np.testing.assert_allclose(one, expected[:1], atol=1e-5)


def test_largest_difference_is_printed_and_nothing_else_is_there(exported):
    out, lines = exported
    assert sorted(path.name for path in out.iterdir()) == [
        "tiny_routed.onnx.json",
        "tiny_routed.onnx.md",
        "tiny_routed_b1.onnx",
        "tiny_routed_b3.onnx",
    ]
    assert sum("largest difference from the network on 64 images: " in line for line in lines) == 2
    assert "averaged weights, routed forward (trained last)" in lines[0] and "model card: " in lines[-1]


def test_the_card_tells_what_was_exported(tiny, exported):
    out, _ = exported
    about = json.loads((out / "tiny_routed.onnx.json").read_text())
    for row, size in zip(about["files"], (1, 3)):
        assert row["file"] == f"tiny_routed_b{size}.onnx" and row["batch_size"] == size
        assert row["sha256"] == hashlib.sha256((out / row["file"]).read_bytes()).hexdigest()
        assert row["images"] == 64 and row["near_ties"] == 0 and 0 <= row["largest_difference"] <= 1e-4
    (route,) = about["routes"]
    assert (route["start"], route["end"], route["keep_ratio"], route["scorer"]) == (1, 3, 0.5, "cls_attention")
    assert [block["mlp"] for block in about["tokens_of_blocks"]] == [17, 9, 9, 17]  # 16 patches, 8 of them kept
    assert about["parameters"] == sum(value.size for value in tiny[1].values())
    assert about["classes"] == [f"kind {i}" for i in range(10)] and about["licence"] == "mine"
    assert (about["input"]["dtype"], about["input"]["layout"], about["input"]["normalisation"]) == (
        "uint8",
        "NHWC",
        "inside",
    )
    assert about["metrics"]["exported"] == "routed_ema" and about["metrics"]["validation"]["routed_ema"]["top1"] == 12.5
    assert about["versions"]["export"]["mindspore"] == ms.__version__ and about["config"]["model"]["width"] == 16
    text = (out / "tiny_routed.onnx.md").read_text()
    assert "routed_ema       12.50    50.00  2.000  this export\n" in text and "17, 9, 9, 17" in text


def test_the_card_says_nothing_of_the_machine(tiny):
    config = load_config(tiny[0] / "config.yaml").model_dump()
    config["data"]["path"], config["init"]["weights"] = "/home/somebody/images", "/home/somebody/deit.safetensors"
    shared = card.shareable(Config(**config))
    assert (shared["data"]["path"], shared["init"]["weights"]) == ("images", "deit.safetensors")
    assert "somebody" not in json.dumps(shared)


def test_a_log_of_another_shape_is_no_evaluation(make_run, tmp_path):
    folder, _ = make_run(tmp_path / "run")
    trained = Run(folder).trained()
    assert card._metrics(trained)["epoch"] == 2
    for val in ("x", ["x"], {"dense": 3}, {"dense": {"top1": "x", "top5": 1, "loss": 1}}, None):
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 2, "val": val}) + "\n")
        assert card._metrics(trained) == {"note": "these weights have not been evaluated by the run"}, val


def test_names_of_classes_do_no_harm_to_a_card(exported):
    """Not UTF-8, a fence's end, an escape of a terminal, HTML: as text between fences."""
    about = json.loads((exported[0] / "tiny_routed.onnx.json").read_text())
    about["classes"] = ["\udcff", "```\n# title", "\x1b[31m", "<script>", "猫"]
    text = card.as_markdown(about)
    assert text.encode().count(b"```") == 8 and text.replace("\n", "").isprintable()
    assert "猫" in text and r"\udcff" in text and "\n# title" not in text


def test_the_program_on_the_card_runs(exported, monkeypatch):
    monkeypatch.chdir(exported[0])
    text = (exported[0] / "tiny_routed.onnx.md").read_text()
    names = {"images": generate(1, seed=0, split="val").images}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["probabilities"].shape == (1, 10)


def test_nothing_is_overwritten(tiny, exported, capsys):
    before = {path: path.stat().st_mtime_ns for path in exported[0].iterdir()}
    assert run("export", [str(tiny[0]), "--to", "onnx", "--batch_sizes", "3,5", "--out", str(exported[0])]) == 2
    assert "exists and is not overwritten" in error_line(capsys)
    assert before == {path: path.stat().st_mtime_ns for path in exported[0].iterdir()}


def test_mindir_in_parts_dense_and_of_normalised_images(tiny, tmp_path, monkeypatch, capsys):
    """MindSpore writes weights above 1 GiB beside the graph; here from the first byte on."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    words = ["--to", "mindir", "--dense", "--last", "--input", "float32", "--check", "5", "--out", str(tmp_path)]
    assert run("export", [str(tiny[0]), *words]) == 0
    stem = "tiny_dense_float32"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}_b1_graph.mindir",
        f"{stem}_b1_variables",
        f"{stem}.mindir.json",
        f"{stem}.mindir.md",
    }
    assert "last weights, dense forward\n" in capsys.readouterr().out
    images = generate(1, seed=0, split="val").images
    cell = nn.GraphCell(ms.load(str(tmp_path / f"{stem}_b1_graph.mindir")))
    found = cell(Tensor(agreement.normalised(images))).asnumpy()
    last = random_weights(16, 4, 8, 4, 10, seed=18)
    logits = forward(last, images, np.zeros((1, 8), np.float32), depth=4, heads=2, patch=8).logits
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)
    about = json.loads((tmp_path / f"{stem}.mindir.json").read_text())
    assert about["files"][0]["bytes"] > 4 * about["parameters"] and about["metrics"]["exported"] == "dense"


def test_weights_with_timms_names(tiny, tmp_path, capsys):
    assert run("export", [str(tiny[0]), "--to", "safetensors", "--out", str(tmp_path)]) == 0
    assert "bit by bit" in capsys.readouterr().out
    theirs = load_file(tmp_path / "tiny.safetensors")
    assert theirs["blocks.0.attn.qkv.weight"].shape == (48, 16)
    assert theirs["patch_embed.proj.weight"].shape == (16, 3, 8, 8)
    ours = from_timm(theirs)
    assert set(ours) == set(tiny[1]) and all(np.array_equal(ours[name], value) for name, value in tiny[1].items())
    about = json.loads((tmp_path / "tiny.safetensors.json").read_text())
    assert about["input"]["layout"] == "NCHW" and about["output"]["what"] == "logits"


@pytest.mark.parametrize("fault", ["wrong", "does not run", "is not written"])
def test_what_does_not_agree_is_not_kept(tiny, tmp_path, monkeypatch, capsys, fault):
    expected = np.full((4, 10), 0.1, np.float32)
    monkeypatch.setattr(export, "real_images", lambda *_: generate(4, seed=0, split="val").images)
    monkeypatch.setattr(Trained, "predict", lambda *_: expected)  # spares the compilation
    if fault == "does not run":
        monkeypatch.setattr(onnx, "OPSET", 5)
    if fault == "is not written":
        monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert run("export", [str(tiny[0]), "--to", "onnx", "--dense", "--out", str(tmp_path / "out")]) == 1
    line = error_line(capsys)
    messages = {"wrong": "does not agree with the network: a probability of image", "is not written": "No space left"}
    assert messages.get(fault, "cannot be written and run") in line and "nothing is kept" in line
    assert not (tmp_path / "out").exists()


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_near_ties_are_told_apart_and_only_a_few_are_let_pass(monkeypatch):
    expected = np.full((20, 2), 0.5, np.float32)
    found = expected.copy()
    found[3] += 0.01
    margins = np.full(20, 0.1)
    monkeypatch.setattr(agreement, "margins", lambda *_: margins)

    with pytest.raises(RunError, match="image 3 differs by 0.01, 0.0001 is allowed, on 1 of 20"):
        agreement.compare(None, "name", found, expected, None, 1e-4)
    margins[3] = 1e-7
    row = agreement.compare(None, "name", found, expected, None, 1e-4)
    assert row["near_ties"] == 1 and row["largest_difference"] == 0 and "but for 1 where two tokens" in row["verified"]
    found[3] = np.nan
    with pytest.raises(RunError, match="image 3"):
        agreement.compare(None, "name", found, expected, None, 1e-4)
    found[3:8] = 0.6
    margins[3:8] = 0
    with pytest.raises(RunError, match="on 5 of 20"):
        agreement.compare(None, "name", found, expected, None, 1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{run}", "--to", "tflite"], 2, "invalid choice"),
        (["{run}"], 2, "--to"),
        (["nowhere", "--to", "onnx"], 2, "nowhere: not a run folder"),
        (["{run}", "--to", "onnx", "--batch_sizes", "0"], 2, "is not a list of batch sizes"),
        (["{run}", "--to", "onnx", "--check", "0"], 2, "check: 0 images"),
        (["{run}", "--to", "onnx", "--tolerance", "2"], 2, "tolerance: 2.0 is outside"),
        (["{run}", "--to", "safetensors", "--input", "float32"], 2, "safetensors: weights alone"),
        (["{run}", "--to", "onnx", "--images", "nowhere.jpg"], 2, "nowhere.jpg: No such file"),
        (
            ["{run}", "--to", "onnx", "--data.kind", "image_folder", "--data.path", "nowhere"],
            2,
            "or give images to compare on with --images",
        ),
        (["{run}", "--to", "onnx", "--out", "{run}/config.yaml"], 2, "not a folder"),
        (["{run}", "--to", "onnx", "--model.width", "32"], 1, "a checkpoint of another model"),
    ],
)
def test_wrong_words_are_refused(tiny, capsys, words, code, message):
    assert run("export", [word.format(run=tiny[0]) for word in words]) == code
    assert message in error_line(capsys)
    assert not (tiny[0] / "export").exists()


def test_plain_values_that_cannot_be_are_refused(tiny, tmp_path):
    for values, said in (
        ({"to": "tflite"}, "to: 'tflite' is not one of mindir, onnx, safetensors"),
        ({"batch_sizes": ()}, "are not numbers of images"),
        ({"forward": "phase9"}, "forward 'phase9' is not one of this run's: dense, routed"),
    ):
        with pytest.raises(UsageError, match=said):
            skipvit.export(tiny[0], out=tmp_path / "out", **values)
    with pytest.raises(UsageError, match="not a run folder"):
        skipvit.export(tmp_path)


def test_without_the_libraries_it_says_what_to_install(tiny, monkeypatch, capsys):
    monkeypatch.setattr(onnx, "onnx", None)
    assert run("export", [str(tiny[0]), "--to", "onnx"]) == 2
    assert "needs `pip install 'skipvit[onnx]'`" in error_line(capsys)


@pytest.fixture(scope="module")
def sixty_four(tmp_path_factory):
    """sixty_four(size): paths of 64 images."""

    def get(size):
        sample = sorted(map(str, SAMPLE.rglob("*.JPEG")))[:64]
        if size == 224 and len(sample) == 64:
            return sample
        folder = tmp_path_factory.mktemp(f"images{size}")
        for i, image in enumerate(generate(64, seed=0, split="val").images):
            Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
        return [str(folder)]

    return get


GONE = {"fuse": True, "restore": False}
NETWORKS = {
    32: {"width": 32, "depth": 6, "heads": 2, "patch": 4, "image_size": 32},
    224: {"width": 64, "depth": 6, "heads": 2, "patch": 16, "image_size": 224},
}
ROUTES = {
    "dense": [],
    "one": [{"start": 2, "end": 5, "keep_ratio": 0.45}],
    "three": [{"start": start, "end": end, "keep_ratio": 0.7} | GONE for start, end in ((2, 3), (3, 4), (4, 6))],
}


@pytest.mark.slow
@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("size", NETWORKS)
def test_exports_agree_with_the_network_on_64_images(make_run, sixty_four, tmp_path, size, routes):
    """Random weights: probabilities are far from sure, selections are of all kinds; scores that tie are told apart."""
    data = {"kind": "image_folder", "path": "nowhere"} if size == 224 else {}
    folder, _ = make_run(tmp_path / "run", routes=ROUTES[routes], model=NETWORKS[size], data=data)
    for kind in ("onnx", "mindir"):
        assert run("export", [str(folder), "--to", kind, "--batch_sizes", "16", "--images", *sixty_four(size)]) == 0
        forward = "dense" if routes == "dense" else "routed"
        (row,) = json.loads((folder / "export" / f"tiny_{forward}.{kind}.json").read_text())["files"]
        print(f"{size} pixels, {routes}, {kind}: {row['verified']}")
        assert row["images"] == 64 and row["largest_difference"] <= 1e-4 and row["near_ties"] <= 1


READ_ALONE = """
import sys, numpy as np, mindspore as ms
assert "skipvit" not in sys.modules
ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")
cell = ms.nn.GraphCell(ms.load("tiny_routed_b4.mindir"))
np.save("found.npy", cell(ms.Tensor(np.load("images.npy"))).asnumpy())
"""


@pytest.mark.slow
def test_mindir_runs_in_a_process_that_has_never_heard_of_skipvit(tiny, tmp_path):
    assert run("export", [str(tiny[0]), "--to", "mindir", "--batch_sizes", "4", "--out", str(tmp_path)]) == 0
    images = generate(4, seed=0, split="val").images
    np.save(tmp_path / "images.npy", images)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", READ_ALONE], cwd=tmp_path, env=environment, check=True, timeout=120)
    logits = forward(tiny[1], images, np.zeros((4, 8), np.float32), depth=4, heads=2, patch=8, routes=[ROUTE]).logits
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)
