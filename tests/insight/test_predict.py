"""`skipvit predict`: answers against the NumPy reference, hostile inputs, the sheet, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipvit.cli import run
from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.data.broken import Bad
from skipvit.data.open import batches_of, open_source, prepared
from skipvit.data.sources.files import Files, find_images
from skipvit.data.sources.shapes import generate
from skipvit.insight.figures import attention_heat, dim_bypassed, drawable, kept_figure
from skipvit.insight.predict import attention_of_cls, predict
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from skipvit.runs.run import Run
from skipvit.runs.trained import Trained
from skipvit.util.log import log
from support.hostile import encoded, flipped, reason_to_fail, scene, unusual
from support.reference import forward

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's


@pytest.fixture(scope="module")
def tiny(make_run, tmp_path_factory):
    """A run's folder and its averaged weights."""
    return make_run(tmp_path_factory.mktemp("predict") / "tiny")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Paths of ten built-in validation images, and the images."""
    folder, images = tmp_path_factory.mktemp("shapes"), generate(10, seed=0, split="val").images
    paths = [str(folder / f"{i}.png") for i in range(10)]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    return paths, images


def error_line(capsys):
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.fixture(scope="module")
def answers(tiny, shapes):
    """{batch size: {path: [(class, probability), ...]}} of the averaged weights, routed."""
    network = Run(tiny[0]).trained()
    assert network.averaged and network.forward == "routed"
    return {size: {p.path: p.top for p in predict(network, shapes[0], 10, size)} for size in (1, 4)}


def test_answers_are_those_of_the_reference_with_the_averaged_weights(tiny, shapes, answers):
    noise = np.zeros((10, 8), np.float32)
    routes = [Route(start=1, end=3, keep_ratio=0.5)]
    logits = forward(tiny[1], shapes[1], noise, depth=4, heads=2, patch=8, routes=routes).logits
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    for path, row in zip(shapes[0], expected):
        classes, probabilities = zip(*answers[4][path])
        assert classes == tuple(np.argsort(-row, kind="stable"))
        np.testing.assert_allclose(probabilities, row[list(classes)], atol=1e-5)


def test_batch_one_and_batch_four_give_the_same_answers(answers):
    assert list(answers[1]) == list(answers[4])  # ten do not fill three batches of four
    for path, top in answers[1].items():
        assert [c for c, _ in top] == [c for c, _ in answers[4][path]]
        np.testing.assert_allclose([p for _, p in top], [p for _, p in answers[4][path]], atol=1e-6)


def test_the_command_finds_good_ones_among_fifty_odd_inputs(tiny, tmp_path, capfd):
    """Files of all kinds, folders, missing ones: each is predicted or named, and the exit code tells."""
    rng, inputs = np.random.default_rng(2), {}
    inputs |= unusual(rng)
    inputs |= {
        f"cut_{i}.{end}": encoded(scene(rng), kind)[:700]
        for i, (kind, end) in enumerate((("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")))
    }
    inputs |= {f"flipped_{i}.png": flipped(encoded(scene(rng), "PNG"), rng) for i in range(3)}
    inputs |= {
        "text.jpg": b"<html>",
        "empty.png": b"",
        "random.gif": rng.bytes(3000),
        "no_ending": encoded(scene(rng), "JPEG"),
    }
    inputs |= {"wide.png": encoded(scene(rng)[:1].repeat(3, 0), "PNG"), "lies.jpg": encoded(scene(rng), "PNG")}
    inputs["ten_thousand.png"] = encoded(np.tile(scene(rng, 20, 30)[:8, :10], (1, 1000, 1)), "PNG")
    inputs["tab\tand\nline.png"] = encoded(scene(rng), "PNG")
    inputs |= {f"good_{i}.jpg": encoded(scene(rng), "JPEG") for i in range(14)}
    paths = []
    for name, content in inputs.items():
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "more" / "deeper").mkdir(parents=True)
    for i, place in enumerate(("more", "more", "more/deeper", "more/.hidden")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{i}.jpg").write_bytes(encoded(scene(rng), "JPEG"))
    (tmp_path / "more" / "notes.txt").write_text("not an image, and nobody asked for it")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    folders = [str(tmp_path / "nothing"), str(tmp_path / "more")]
    missing = [
        str(tmp_path / "missing.jpg"),
        str(tmp_path / "link.jpg"),
        str(tmp_path / "missing" / "too.jpg"),
        "/dev/zero",
        "a" * 5000,
    ]
    given = [*paths, *folders, *missing]
    assert len(given) == 50
    broken = {path for path in paths if reason_to_fail(Path(path))}
    assert 5 < len(broken) < 15

    assert run("predict", [str(tiny[0]), *given, "--json", "--top", "3"]) == 1
    out, err = capfd.readouterr()
    answer = json.loads(out)
    more = [str(tmp_path / "more" / name) for name in ("0.jpg", "1.jpg", "deeper/2.jpg")]
    assert [p["path"] for p in answer["predictions"]] == [path for path in paths if path not in broken] + more
    assert {b["path"] for b in answer["bad"]} == broken | {folders[0], *missing}
    assert all(b["reason"].strip() and "object at" not in b["reason"] for b in answer["bad"])
    for prediction in answer["predictions"]:
        probabilities = [c["probability"] for c in prediction["top"]]
        assert (
            len(probabilities) == 3
            and probabilities == sorted(probabilities, reverse=True)
            and 0 < sum(probabilities) <= 1.00001
        )
        assert all(c["class"] == f"kind {c['index']}" for c in prediction["top"])
    left_out, *named, last = [line for line in err.splitlines() if line]
    assert "more: 1 file left out: 1 .txt; images end in" in left_out
    assert len(named) == len(answer["bad"]) and all(": " in line for line in named)
    assert (
        last == f"error: {len(named)} of the inputs could not be read, see above; "
        f"{len(answer['predictions'])} images were predicted"
    )
    assert (answer["weights"], answer["forward"]) == ("averaged", "routed")


def test_lines_a_sheet_and_exit_code_zero(tiny, shapes, tmp_path, capsys):
    assert (
        run(
            "predict",
            [str(tiny[0]), *shapes[0], "--dense", "--last", "--top", "2", "--show", str(tmp_path / "sheet.png")],
        )
        == 0
    )
    first, *lines, drawn = capsys.readouterr().out.splitlines()
    assert "last weights, dense forward" in first and "trained last" not in first and "10 of them are drawn" in drawn
    assert [line.split(": ")[0] for line in lines] == shapes[0]
    assert all(line.count(" %") == 2 and line.count("kind ") == 2 for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 5


def test_images_are_prepared_as_for_validation(tiny, shapes):
    """Saved as files, validation images are pixel by pixel what validation sees, whole for the built-in ones."""
    config = load_config(tiny[0] / "config.yaml")
    ((expected, *_),) = list(batches_of(config, open_source(config, "val"), 1, False, batch_size=70))
    ((good, found),) = list(prepared(config, Files(shapes[0]), 10, Bad({})))
    assert good == list(range(10)) and np.array_equal(found, expected[:10])


def test_large_images_are_cropped_as_for_validation(tiny, tmp_path):
    values = load_config(tiny[0] / "config.yaml").model_dump()
    values["data"] |= {"kind": "image_folder", "path": str(tmp_path)}
    config = Config(**values)
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.fromarray(scene(np.random.default_rng(0), 100)).save(tmp_path / "val" / "a" / "0.png")
    source = open_source(config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 1})}), "val")
    ((expected, *_),) = list(batches_of(config, source, 1, False, batch_size=1))
    ((_, found),) = list(prepared(config, Files([str(tmp_path / "val" / "a" / "0.png")]), 1, Bad({})))
    assert np.array_equal(found, expected)


def test_class_names_of_the_run_else_of_its_data_else_numbers(tiny, caplog):
    run, config = Run(tiny[0]), load_config(tiny[0] / "config.yaml")
    assert run.trained().classes[:2] == ("kind 0", "kind 1")
    nowhere = tiny[0] / "elsewhere.ckpt"
    assert "hourglass" in Trained(config, nowhere).classes
    elsewhere = config.model_copy(
        update={"data": config.data.model_copy(update={"kind": "image_folder", "path": "nowhere"})}
    )
    assert Trained(elsewhere, nowhere).classes[:2] == ("class 0", "class 1")
    assert "classes are numbered" in caplog.text


def test_damaged_class_names_are_named(tiny, shapes, tmp_path, capsys):
    for name in ("config.yaml", "checkpoints"):
        (tmp_path / name).symlink_to(tiny[0] / name)
    (tmp_path / "classes.json").write_text('["a"]')
    assert run("predict", [str(tmp_path), shapes[0][0]]) == 1
    assert "classes.json: not a list of 10 class names" in error_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}"], "no images to predict"),
        (["nowhere", "a.jpg"], "nowhere: not a run folder"),
        (["{run}", "a.jpg", "--top", "0"], "top: 0 is not possible"),
        (["{run}", "a.jpg", "--batch_size", "-1"], "batch_size: -1 is not possible"),
        (["{run}", "a.jpg", "--show", "sheet.txt"], "does not end in"),
        (["{run}", "a.jpg", "--show", "nowhere/sheet.png"], "nowhere is not a folder"),
        (["{run}", "{images}", "--show", "{images}/0.png"], "0.png is among the images and would be overwritten"),
        (["{run}", "a.jpg", "--dense", "--routed"], "not allowed with"),
        (["{run}", "a.jpg", "--forward", "phase7"], "forward 'phase7' is not one of this run's: dense, routed"),
        (["{run}", "a.jpg", "--routed", "--routes", "[]"], "forward 'routed' is not one of this run's: dense"),
        (["--config", "{run}/config.yaml", "a.jpg"], "--config needs --weights"),
        (["{run}", "a.jpg", "--shwo"], "did you mean --show?"),
    ],
)
def test_wrong_words_are_refused(tiny, tmp_path, capsys, words, message):
    (tmp_path / "0.png").write_bytes(b"somebody's")
    assert run("predict", [word.format(run=tiny[0], images=tmp_path) for word in words]) == 2
    assert (tmp_path / "0.png").read_bytes() == b"somebody's"
    assert message in error_line(capsys)


def test_a_folder_that_cannot_be_listed_and_an_empty_one_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    paths, bad = find_images([str(tmp_path / "empty"), "file.jpg"])
    assert paths == ["file.jpg"] and bad == {str(tmp_path / "empty"): "no images in this folder"}


def test_what_is_left_out_of_a_folder_is_said_and_links_are_followed(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    folder, other = tmp_path / "images", tmp_path / "other"
    (folder / "below").mkdir(parents=True)
    other.mkdir()
    for path in (folder / "a.jpg", folder / "b.HEIC", folder / "below/c", folder / ".d.png", folder / "Thumbs.db"):
        path.touch()
    (other / "e.png").touch()
    (folder / "link").symlink_to(other)
    (other / "back").symlink_to(folder)
    paths, bad = find_images([str(folder)])
    assert [path.removeprefix(str(folder)) for path in paths] == ["/a.jpg", "/link/e.png"] and not bad
    assert f"{folder}: 2 files left out: 1 .heic, 1 without an ending; images end in .jpg, " in caplog.text


def looked_at(*routes, prefix=1):
    """Of four patches in three blocks."""
    return attention_of_cls(compile_program(ViTSpec(4, 3, 1, 1, 2, 2, prefix=prefix), routes))


def test_attention_is_of_the_first_route_or_of_the_last_block():
    rng = np.random.default_rng(0)
    seen = {f"blocks.{b}.cls_attention": rng.random((2, 4)) for b in range(3)}
    assert looked_at(prefix=0) is None
    for at, block in (("block", 0), ("mlp", 1)):
        of_route = looked_at(Route(start=1, end=2, keep_ratio=0.5, at=at))
        assert of_route.where == f"block {block}, by which patches are kept"
        assert of_route.placed(seen) is seen[f"blocks.{block}.cls_attention"]
    for routes in ([], [Route(start=0, end=2, keep_ratio=0.5, scorer="random")]):  # those that bypassed it are back
        assert looked_at(*routes).where == "block 2, the last"
        assert looked_at(*routes).placed(seen) is seen["blocks.2.cls_attention"]
    # Two of four are left after a `grid` route; the third place is of the fused token, which the others have become.
    seen = {"blocks.2.cls_attention": rng.random((2, 2)), "routes.0.slots": np.array([[1, 3, 2, 3], [-1, 1, -1, 2]])}
    left = looked_at(Route(start=1, end=3, keep_ratio=0.5, scorer="grid", restore=False, fuse=True)).placed(seen)
    a = seen["blocks.2.cls_attention"]
    assert np.array_equal(left, [[a[0, 0], 0, a[0, 1], 0], [0, a[1, 0], 0, a[1, 1]]])


def test_heat_and_kept_patches_line_up_with_the_image():
    """The heat's brightest patch is where attention is largest, and the sheet shows all views of the same image."""
    images = np.full((3, 32, 32, 3), 100, np.uint8)
    attention = np.random.default_rng(0).permuted(np.tile(np.linspace(0, 1, 16), (3, 1)), axis=1)
    kept = [np.argsort(-attention, axis=1)[:, :5]]
    for image, of_image in zip(images, attention):
        cells = attention_heat(image, of_image, 4).astype(int).sum(-1).reshape(4, 8, 4, 8)
        assert (cells == cells[:, :1, :, :1]).all()  # whole patches
        assert np.array_equal(np.argsort(cells[:, 0, :, 0].ravel()), np.argsort(of_image))
    figure = kept_figure(images, kept, ["above"] * 3, 4, attention, ["below"] * 3, "title")
    panels = [[axis.get_images()[0].get_array() for axis in panel.axes] for panel in figure.subfigs]
    for i, (one_image, dimmed, heat) in enumerate(panels):
        assert np.array_equal(one_image, images[i])
        assert np.array_equal(dimmed, dim_bypassed(images[i], kept[0][i], 4))
        assert np.array_equal(heat, attention_heat(images[i], attention[i], 4))


def test_attention_that_is_the_same_everywhere_has_no_brightest_patch():
    heat = attention_heat(np.full((8, 8, 3), 100, np.uint8), np.full(4, 0.25), 2)
    assert (heat == heat[0, 0]).all()


@pytest.mark.filterwarnings("error")
def test_names_of_all_kinds_are_drawn(tmp_path):
    """No formulas, not UTF-8, controls, letters that the font has not: no warning, no failure, nothing lost."""
    assert drawable("a$b$ é → 中\udcff\x1b[0m\nc") == r"a\$b\$ é → \u4e2d\udcff\x1b[0m" + "\nc"
    images = np.zeros((2, 32, 32, 3), np.uint8)
    kept_figure(images, [], [r"$\frac{ 中文 \udcff", "a $ b"], 4).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
