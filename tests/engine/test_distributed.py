"""Several processes on CPU through the launcher script, against one process with as large an update."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skipvit.engine.checkpoint import read, saved
from skipvit.engine.state import REPORT
from support.processes import processes_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "run_distributed.sh"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
CONFIG = """
name: {name}
model: {{width: 16, depth: 3, heads: 2, patch: 8, image_size: 32, num_classes: 10, drop_path: 0.1}}
routes: [{{start: 1, end: 2, keep_ratio: 0.5, scorer: {scorer}}}]
phases: [{{epochs: {dense}, routes: []}}, {{}}]
data: {{kind: shapes, batch_size: {batch}, train_size: {images}, val_size: 31}}
optim: {{epochs: {epochs}, warmup_epochs: 1, epsilon: {epsilon}}}
ema: {{decay: 0.9}}
checkpoint: {{keep: 10}}
"""


def write(folder, name, batch=16, images=320, epochs=2, dense=1, scorer="cls_attention", epsilon=1e-8):
    text = CONFIG.format(**{key: value for key, value in locals().items() if key != "folder"})
    (folder / f"{name}.yaml").write_text(text)
    return ["--config", f"{name}.yaml"]


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def shell(folder, *words):
    return subprocess.run(
        list(map(str, words)), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=550
    )


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """A test that fails leaves no processes to the next."""
    yield
    for process in processes_in(tmp_path):
        process.kill()


def launch(folder, *words):
    return shell(folder, LAUNCHER, "--master_port", port(), *words)


def begin(folder, *words):
    """Start the launcher and leave it running; its output is in log.txt."""
    with open(folder / "log.txt", "w") as log:
        words = [LAUNCHER, "--master_port", port(), *words]
        return subprocess.Popen(list(map(str, words)), cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)


def wait_for(text, path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, (
            path.read_text() if path.exists() else "no output"
        )
        time.sleep(0.05)


def records(folder, name):
    return [json.loads(line) for line in (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def last_weights(folder, name):
    return read(saved(folder / f"runs/{name}/checkpoints")[-1])


def rank(folder, number):
    (process,) = [
        p
        for p in processes_in(folder)
        if p.environ().get("RANK_ID") == str(number) and p.environ().get("MS_ROLE") == "MS_WORKER"
    ]
    return process


def test_two_ranks_train_like_one_with_twice_the_batch(tmp_path):
    # Ten dense updates, ten routed. A large epsilon: Adam would blow rounding noise up to whole steps.
    two = launch(tmp_path, 2, *write(tmp_path, "two", batch=16, epsilon=1.0e-2))
    assert two.returncode == 0, two.stdout + two.stderr
    one = shell(tmp_path, sys.executable, ROOT / "train.py", *write(tmp_path, "one", batch=32, epsilon=1.0e-2))
    assert one.returncode == 0, one.stderr
    for a, b in zip(records(tmp_path, "one"), records(tmp_path, "two"), strict=True):
        assert np.isclose(a["train_loss"], b["train_loss"], atol=1e-5)
        assert a["val"]["routed"]["images"] == b["val"]["routed"]["images"] == 31
    for epoch in (1, 2):  # after the dense and after the routed updates
        path = f"checkpoints/epoch_{epoch:04d}_step_000010.ckpt"
        weights = {name: read(tmp_path / f"runs/{name}" / path) for name in ("one", "two")}
        assert weights["one"]["optimizer.step"] == 10 * epoch
        for name, value in weights["one"].items():
            if not name.startswith(("optimizer.", "trainer.")):
                assert np.abs(value - weights["two"][name]).max() < 1e-5, name
        assert any(name.startswith("ema.") for name in weights["one"])


@pytest.mark.long
def test_four_ranks_finish_and_evaluations_on_one_two_and_three_count_alike(tmp_path):
    result = launch(tmp_path, 4, *write(tmp_path, "four", batch=8, scorer="random"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cpu x 4" in result.stdout and len(records(tmp_path, "four")) == 2
    alone = shell(tmp_path, sys.executable, ROOT / "eval.py", "runs/four", "--json")
    alone = json.loads(alone.stdout)
    for count in (2, 3):  # 31 images: neither divides them
        several = launch(tmp_path, "--eval", count, "runs/four", "--json")
        assert several.returncode == 0, several.stdout + several.stderr
        several = json.loads(several.stdout.splitlines()[-1])
        for forward in ("dense", "routed"):
            for measure in ("images", "top1", "top5"):
                assert several[forward][measure] == alone[forward][measure]
            assert np.isclose(several[forward]["loss"], alone[forward]["loss"], atol=1e-5)
    assert alone["dense"]["images"] == 31


def test_two_nodes_train_together(tmp_path):
    config, address = write(tmp_path, "nodes", epochs=2), port()
    nodes = []
    for number in range(2):
        log = tmp_path / f"node_{number}.txt"
        words = [LAUNCHER, "--nnodes", 2, "--node_rank", number, "--master_port", address, 1, *config]
        with open(log, "w") as file:
            nodes.append(
                subprocess.Popen(list(map(str, words)), cwd=tmp_path, env=ENVIRONMENT, stdout=file, stderr=file)
            )
    for number, node in enumerate(nodes):
        assert node.wait(500) == 0, (tmp_path / f"node_{number}.txt").read_text()
    assert "cpu x 2" in (tmp_path / "node_0.txt").read_text()
    assert records(tmp_path, "nodes")[-1]["val"]["routed"]["images"] == 31
    assert (tmp_path / "logs/nodes/worker_1.log").exists() and not processes_in(tmp_path)


@pytest.mark.long
def test_a_killed_rank_is_named_nothing_is_left_and_the_run_goes_on_with_two_ranks_and_with_one(tmp_path):
    for name in ("whole", "killed", "alone"):
        (tmp_path / name).mkdir()
        config = write(tmp_path / name, "run", batch=8, images=1600, epochs=3, dense=2)
    assert launch(tmp_path / "whole", 2, *config).returncode == 0
    folder = tmp_path / "killed"
    process = begin(folder, 2, *config)
    wait_for("epoch 1/3", folder / "log.txt", process)
    time.sleep(1)
    rank(folder, 1).send_signal(signal.SIGKILL)
    begun = time.monotonic()
    assert process.wait(120) == 128 + signal.SIGKILL
    print(f"ended {time.monotonic() - begun:.1f} s after the kill")
    assert "error: rank 1 was ended by SIGKILL" in (folder / "log.txt").read_text() and not processes_in(folder)
    (folder / "runs").rename(folder / "broken")
    for name, count in (("killed", 2), ("alone", 1)):
        shell(tmp_path, "cp", "-r", folder / "broken", tmp_path / name / "runs")
        again = launch(tmp_path / name, count, *config, "--resume", "auto")
        assert again.returncode == 0 and "going on from" in again.stdout, again.stdout + again.stderr
        if count == 1:
            assert (
                "updates of 16 images as before, now on a world of 1: data.batch_size 8, optim.accumulate 2"
                in again.stdout
            )
    ends = [last_weights(tmp_path / name, "run") for name in ("whole", "killed")]
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])
    top1 = {name: records(tmp_path / name, "run")[-1]["val"]["routed"]["top1"] for name in ("whole", "killed", "alone")}
    assert top1["whole"] == top1["killed"] and abs(top1["alone"] - top1["whole"]) <= 100 * 2 / 31, top1


def left(folder, within_s=60):
    """What is left of a run after so many seconds."""
    deadline = time.monotonic() + within_s
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    return processes_in(folder)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_nothing_is_left_of_a_launcher_that_is_killed_while_ranks_start(tmp_path, processes):
    """Before, between and after the starts of the scheduler and two ranks."""
    process = begin(tmp_path, 2, *write(tmp_path, "run"))
    while len(processes_in(tmp_path)) < processes and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not left(tmp_path)


def test_ranks_whose_launcher_is_killed_are_asked_to_save_and_end(tmp_path):
    process = begin(tmp_path, 2, *write(tmp_path, "run", batch=8, images=480, epochs=99))
    wait_for("epoch 1/99", tmp_path / "log.txt", process)
    process.kill()
    process.wait()
    assert not left(tmp_path)
    for number in range(2):
        assert "SIGTERM: finishing the step, then saving" in (tmp_path / f"logs/run/worker_{number}.log").read_text()


def test_a_rank_whose_peer_and_launcher_are_killed_does_not_wait_for_ever(tmp_path):
    process = begin(tmp_path, 2, *write(tmp_path, "run", batch=8, images=480, epochs=99))
    wait_for("epoch 1/99", tmp_path / "log.txt", process)
    peer = rank(tmp_path, 1)
    process.kill()
    peer.kill()
    process.wait()
    assert not left(tmp_path)


def test_an_overflow_on_one_rank_skips_the_update_on_both(tmp_path):
    def train(name, at):
        (tmp_path / name).mkdir()
        msrun = [
            sys.executable,
            "-m",
            "mindspore.parallel.cluster.run",
            "--worker_num=2",
            "--local_worker_num=2",
            "--join=True",
        ]
        script = [ROOT / "tests/support/overflow_worker.py", tmp_path / name, 4, at]
        result = shell(tmp_path, *msrun, f"--master_port={port()}", f"--log_dir={name}", *script)
        assert result.returncode == 0, "".join(
            log.read_text()[-2000:] for log in (tmp_path / name).glob("worker_*.log")
        )
        return [np.load(tmp_path / name / f"rank_{r}.npz") for r in range(2)]

    first, second = train("overflow", 2)
    for name in first.files:
        assert np.array_equal(first[name], second[name], equal_nan=True), name  # the norm of the skipped one is none
    skipped = first["reports"][:, REPORT.index("overflows")]
    assert skipped.tolist() == [0, 0, 1, 1] and first["optimizer.step"] == 3
    assert first["reports"][:, REPORT.index("loss_scale")].tolist() == [1024, 1024, 512, 512]
    undisturbed, _ = train("undisturbed", 99)
    assert undisturbed["optimizer.step"] == 4 and not np.array_equal(undisturbed["cls_token"], first["cls_token"])


def test_a_failing_process_is_one_line_and_an_exit_code(tmp_path):
    result = launch(
        tmp_path, 2, *write(tmp_path, "two"), "--optim.lr", "1e30", "--optim.clip_norm", "0", "--amp.max_overflows", "2"
    )
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("warning: 2 processes on")]
    assert result.returncode == 1 and line.startswith("error: rank ")


STOPPED = """
name: run
model: {width: 16, depth: 2, heads: 2, patch: 8, image_size: 32, num_classes: 10, drop_path: 0.1}
data: {kind: shapes, batch_size: 8, train_size: 640, val_size: 30}
optim: {epochs: 4, warmup_epochs: 1, accumulate: 2}
ema: {decay: 0.9}
"""


def test_sigterm_reaches_all_ranks_one_checkpoint_results_and_resuming_ends_the_same(tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(STOPPED)
    command = [2, "--config", "run.yaml", "--resume", "auto"]
    whole = launch(tmp_path / "whole", *command)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder = tmp_path / "stopped"
    process = begin(folder, *command)
    wait_for("epoch 1/4", folder / "log.txt", process)
    process.terminate()
    assert process.wait(120) == 3 and not processes_in(folder)
    assert "stopped after" in (folder / "log.txt").read_text()
    names = [path.name for path in saved(folder / "runs/run/checkpoints")]
    assert len(names) == 2 and names[0] == "epoch_0001_step_000020.ckpt", (
        names
    )  # of the first epoch's end, and of the stop
    again = launch(folder, *command)
    assert again.returncode == 0 and "going on from" in again.stdout
    ends = [last_weights(tmp_path / name, "run") for name in ("whole", "stopped")]
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])


def test_two_ranks_start_from_the_same_weights_and_train_their_head_like_one(tmp_path):
    """Of an earlier run; a large epsilon, see above. Then they go on without it."""
    assert (
        shell(tmp_path, sys.executable, ROOT / "train.py", *write(tmp_path, "first", epochs=2, dense=1)).returncode == 0
    )
    words = ["--init.weights", "runs/first", "--init.head", "new", "--optim.train", "head"]
    two = launch(tmp_path, 2, *write(tmp_path, "two", batch=16, epsilon=1.0e-2), *words)
    assert two.returncode == 0, two.stdout + two.stderr
    assert (
        two.stdout.count("starting from runs/first/checkpoints/best.ckpt: 54 arrays loaded, averaged weights, head new")
        == 1
    )
    assert (
        shell(
            tmp_path, sys.executable, ROOT / "train.py", *write(tmp_path, "one", batch=32, epsilon=1.0e-2), *words
        ).returncode
        == 0
    )
    start, one, end = (
        read(tmp_path / "runs/first/checkpoints/best.ckpt"),
        last_weights(tmp_path, "one"),
        last_weights(tmp_path, "two"),
    )
    frozen = [
        name.removeprefix("ema.") for name in start if name.startswith("ema.") and not name.startswith("ema.head")
    ]
    assert len(frozen) == 54 and all(np.array_equal(end[name], start[f"ema.{name}"]) for name in frozen)
    assert np.abs(end["head.weight"]).max() > 0 and np.allclose(one["head.weight"], end["head.weight"], atol=1e-5)
    (tmp_path / "runs/first").rename(tmp_path / "gone")
    again = launch(tmp_path, 2, *write(tmp_path, "two", batch=16, epsilon=1.0e-2), *words, "--resume", "auto")
    assert again.returncode == 0 and "going on from" in again.stdout, again.stdout + again.stderr
