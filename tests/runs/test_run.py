"""The object that reads a run: what is whole, what was lost or damaged on the way, and the network in it."""

import json
import shutil

import numpy as np
import pytest

from skipvit.engine import checkpoint
from skipvit.engine.checkpoint_file import write_checkpoint
from skipvit.runs.run import Run, read_records, run_of
from skipvit.util.errors import RunError, UsageError
from support.reference import forward

DEPTH = 4


@pytest.fixture(scope="module")
def made(make_run, tmp_path_factory):
    """A run's folder that no test changes, and its averaged weights."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "tiny")
    return Run(tmp_path / "tiny")


def test_a_folder_without_a_configuration_is_not_a_run(tmp_path):
    with pytest.raises(UsageError, match="not a run folder, it has no config.yaml"):
        Run(tmp_path)


# Classes


def test_classes_in_the_order_of_the_outputs(made):
    assert Run(made[0]).classes == tuple(f"kind {i}" for i in range(10))


@pytest.mark.parametrize(
    "text", ["", "{", "17", '{"a": 1}', '["a", "b"]', json.dumps([*"abcdefghi", 10]), "[" * 50_000]
)
def test_classes_that_cannot_be_are_refused_in_a_line(copied, text):
    (copied.path / "classes.json").write_text(text)
    with pytest.raises(RunError, match="classes.json: not a list of 10 class names; mend it, or remove it"):
        copied.classes  # noqa: B018


def test_classes_that_were_not_noted_are_not_known(copied):
    (copied.path / "classes.json").unlink()
    assert copied.classes is None


# Records


def line(epoch, **values):
    return json.dumps({"epoch": epoch, "train_loss": 1.0} | values) + "\n"


def test_records_are_epochs_in_order_without_torn_lines_and_later_values_win_that_are_known(copied):
    path = copied.path / "metrics.jsonl"
    first = line(2, images_per_s=310.0, overflows=2, val={"dense": {"top1": 1.0}})
    again = line(2, train_loss=0.5, images_per_s=None, val={"dense": {"top1": 2.0}})
    torn = '{"epoch": 3, "tra'
    path.write_text(line(3, lr=0.1) + '{"step": 5, "loss": 1}\n' + line(1) + first + torn + "\n" + again + torn)
    records = copied.records()
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[1] == {
        "epoch": 2, "train_loss": 0.5, "images_per_s": 310.0, "overflows": 2, "val": {"dense": {"top1": 2.0}},
    }  # fmt: skip
    assert records[2] == {"epoch": 3, "train_loss": 1.0, "lr": 0.1}


def test_values_of_the_wrong_type_are_not_known(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": true}\n{"epoch": 1e400}\n{"epoch": "2"}\n{"epoch": 1, "val": [1]}\n'
        '{"epoch": 3, "trained": 5, "phase": "a", "images_per_s": "x", "lr": NaN, "steps": 4, "best_top1": {},'
        ' "val": {"dense": {"top1": 1.5, "loss": "x", "top5": null}, "routed": 7}}\n'
    )
    third = {"epoch": 3, "phase": "a", "steps": 4, "val": {"dense": {"top1": 1.5, "top5": None}}}
    assert read_records(tmp_path) == [{"epoch": 1}, third]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff\xfe\n17\n[]\n{}\n", b'{"epoch": "x"}\n{"epoch": null}', b"[" * 100_000]
)
def test_a_log_of_garbage_has_no_records(copied, content):
    (copied.path / "metrics.jsonl").write_bytes(content)
    assert copied.records() == []


def test_no_log_has_no_records(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_records(tmp_path) == read_records(tmp_path / "nowhere") == []


# Finished


def test_a_run_is_finished_by_the_last_epoch_that_it_has_summed_up(copied):
    """Not by how many lines its log has."""
    summary = copied.path / "summary.json"
    assert not copied.finished and copied.summary() is None
    for epochs, finished in ((1, False), (2, True)):
        summary.write_text(json.dumps({"epochs": epochs, "forwards": {}}))
        assert copied.finished == finished
    (copied.path / "metrics.jsonl").unlink()
    assert copied.finished
    for text in ("", "[]", "17", "{}", '{"epochs": 2}', '{"epochs": 2, "forwards": 1}', "[" * 100_000):
        summary.write_text(text)
        assert not copied.finished, text


# Checkpoints


@pytest.fixture
def several(copied):
    """A run with a best checkpoint and, after it, two others."""
    (first,) = copied.checkpoints()
    for name in ("epoch_0001_step_000010.ckpt", "best.ckpt"):
        shutil.copy(first, first.parent / name)
    return copied


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checkpoints_by_name_the_newest_and_the_best(several):
    folder = several.path / "checkpoints"
    oldest, newest = folder / "epoch_0001_step_000010.ckpt", folder / "epoch_0002_step_000010.ckpt"
    assert several.checkpoints() == [oldest, newest]
    assert several.checkpoint() == several.checkpoint("last") == newest
    assert several.checkpoint("best") == folder / "best.ckpt"
    assert several.checkpoint(oldest) == several.checkpoint(str(oldest)) == oldest


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(several, caplog):
    folder = several.path / "checkpoints"
    oldest, newest = several.checkpoints()
    damage(newest)
    caplog.clear()
    with caplog.at_level("WARNING", "skipvit"):
        assert several.checkpoint("last") == oldest
    assert [str(newest) in text for text in caplog.messages] == [True]
    damage(folder / "best.ckpt")
    assert several.checkpoint("best") == oldest
    oldest.unlink()
    oldest.mkdir()
    (folder / "best.ckpt").unlink()
    (folder / "best.ckpt").symlink_to("best.ckpt")
    with pytest.raises(RunError, match="no checkpoint in it is whole"):
        several.checkpoint("last")


@pytest.mark.parametrize("wrong", ["nothing", "a name", "a shape", "a type"])
def test_a_whole_checkpoint_that_is_not_the_runs_stands_aside_and_is_refused_where_it_is_named(several, wrong):
    oldest, newest = several.checkpoints()
    entries = checkpoint.read(newest)
    bias = entries.pop("head.bias")
    changed = {
        "nothing": {},
        "a name": entries | {"head.bias": bias, "head.biases": bias},
        "a shape": entries | {"head.bias": bias[:-1], "ema.head.bias": bias[:-1]},
        "a type": entries | {"head.bias": bias.astype(np.int32), "ema.head.bias": bias.astype(np.int32)},
    }[wrong]
    write_checkpoint(newest, changed)
    assert several.checkpoint("last") == oldest
    with pytest.raises(RunError, match="a checkpoint of another model: [^\n]{,100}$"):
        _ = several.trained(newest).network


def test_without_a_best_one_the_last_is_the_best(copied):
    assert copied.checkpoint("best") == copied.checkpoint("last")
    shutil.rmtree(copied.path / "checkpoints")
    with pytest.raises(UsageError, match="no checkpoint in it yet"):
        copied.checkpoint("best")


def test_the_run_of_a_checkpoint_is_found_by_its_place(copied, tmp_path):
    (path,) = copied.checkpoints()
    assert run_of(path).path.resolve() == copied.path.resolve()
    assert run_of(shutil.copy(path, tmp_path / "elsewhere.ckpt")) is None


# Network


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def logits_of(run, weights, images, name):
    noise = np.zeros((len(images), run.config.noise_width()))
    routes = run.config.forwards()[name].routes
    trace = forward(weights, images, noise, depth=DEPTH, heads=2, patch=8, routes=routes)
    assert all(margin.min() > 1e-5 for margin in trace.margins)
    return trace.logits


def test_predictions_are_the_softmax_of_the_logits_of_the_forward_that_counts(made, images):
    """In batches of 2, of which the last is not full; with the averaged weights, as evaluation has them."""
    run, (_, averaged) = Run(made[0]), made
    exp = np.exp(logits_of(run, averaged, images, "routed"))
    found = run.predict(images, batch_size=2)
    assert found.dtype == np.float32 and found.shape == (5, 10)
    assert np.allclose(found, exp / exp.sum(1, keepdims=True), atol=1e-5)
    # Compiled once: asked again, it is the same network.
    assert np.array_equal(run.predict(images[:2], batch_size=2), found[:2])


def test_a_network_by_the_name_of_a_forward_with_the_averaged_and_the_last_weights(made, images):
    from mindspore import Tensor

    run, (_, averaged) = Run(made[0]), made
    last = checkpoint.weights_of(checkpoint.read(run.checkpoint("last")), averaged=False)
    network = run.network("dense")
    assert not network.training
    assert np.allclose(network(Tensor(images)).asnumpy(), logits_of(run, averaged, images, "dense"), atol=1e-4)
    trained = run.network("dense", averaged=False).network
    assert {p.name for p in trained.get_parameters()} == set(last)
    assert all(np.array_equal(p.asnumpy(), last[p.name]) for p in trained.get_parameters())
    with pytest.raises(UsageError, match="forward 'sparse' is not one of this run's: dense, routed"):
        run.network("sparse")
