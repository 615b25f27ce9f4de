"""`skipvit bench`: what is said about hand-made times, turns and deaths of processes, and the command as a whole."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import mindspore as ms
import numpy as np
import psutil
import pytest
import yaml

import skipvit
from skipvit.cli import run
from skipvit.config.reading import load_config
from skipvit.measure.bench import variants as side_by_side
from skipvit.measure.bench.parts import RouteAlone, Routing, routing_inputs
from skipvit.measure.bench.result import BenchResult, compared, parts_of
from skipvit.measure.bench.turns import Worker
from skipvit.measure.bench.variants import Variant, bench, measure, steps_of_a_turn, variants_of
from skipvit.models.create import create_model
from skipvit.util.errors import RunError, UsageError

SOURCES = str(Path(skipvit.__file__).parents[1])
TINY = {
    "name": "tiny",
    "model": {"name": "vit_tiny_patch16_224", "width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}
    | {"num_classes": 10},
    "routes": [{"start": 1, "end": 2, "keep_ratio": 0.5, "restore": False}],
    "data": {"batch_size": 4, "train_size": 40, "workers": 2},
    "optim": {"epochs": 2, "warmup_epochs": 1},
    "ema": {"decay": 0.9},
}
# Like bench/worker.py, but its steps take no time of MindSpore's. A thread works all the time, as one that reads ahead
# would.
SUBJECT = """
import os, sys, threading, time
from skipvit.util.errors import UsageError
from skipvit.measure.bench.timed import serve

class Subject:
    def build(self, config, forward, training, data):
        self.forward = forward
        threading.Thread(target=self.work, daemon=True).start()
        return "cpu"
    def work(self):
        while True:
            pass
    def prepare(self, job):
        return 1.0, 0.5, 2**20
    def turn(self, job, steps):
        begun = time.time()
        time.sleep(0.02)
        with open("turns", "a") as file:
            file.write(f"{self.forward} {begun} {time.time()} {time.process_time()}\\n")
        return time.time() - begun
    def skipped(self):
        return 0
    def refuse(self):
        raise UsageError("data.path: nothing there")
    def die(self, signal):
        os.kill(os.getpid(), signal)
    def leave(self):
        print("no space left", flush=True)
        os._exit(7)

serve(Subject(), sys.argv[1:])
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A script that stands for bench/worker.py."""
    path = tmp_path / "subject.py"
    path.write_text(SUBJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "Worker", lambda name, words, python: Worker(name, [str(path)], python))
    return path


def timed(file, kind, **turns):
    """A variant with seconds of its turns, of two steps each."""
    result = Variant(f"tiny {kind}", load_config(file), kind, jobs=tuple(turns), device="cpu", peak=2**20)
    for job, seconds in turns.items():
        order = list(range(len(seconds)))
        result.raw[job] = {"first_s": 1.0, "steps_of_a_turn": 2, "turn_s": list(seconds), "order": order}
    return result


def described(variants, widest, alone=()):
    batches = [compared(variants, list(alone), widest)]
    how = {"mode": "training", "rounds": 6, "widest": widest, "cores": 2, "load_before": 0.0}
    return BenchResult(how | {"batches": batches})


def test_a_speedup_with_its_ideal(file):
    load = np.array([1, 5, 1, 4, 2, 3.0])
    result = described([timed(file, "dense", step=1.5 * load), timed(file, "routed", step=1.2 * load)], 0.05)
    dense, routed = result.as_dict()["batches"][0]["variants"]
    assert routed["step"]["median_s"] == pytest.approx(1.2 * 2.5 / 2)  # a turn is two steps
    assert routed["step"]["images_per_s"] == pytest.approx(4 / 1.5)
    assert routed["step"]["speedup"] == pytest.approx(1.25)
    assert routed["ideal_speedup"] == dense["macs"] / routed["macs"] > 1.2
    assert routed["step"]["efficiency"] == pytest.approx(0.25 / (routed["ideal_speedup"] - 1))
    twice = described([timed(file, "dense", step=1.5 * load), timed(file, "dense", step=1.2 * load)], 0.05)
    assert twice.as_dict()["batches"][0]["variants"][1]["step"]["efficiency"] is None  # there is no gain to have
    assert "1.25 x (1.25 to 1.25)" in result.table() and not result.uncertain()


def test_a_speedup_that_is_too_uncertain_is_not_told(file):
    ratios = np.array([1.41, 1.45, 1.5, 1.52, 1.55, 1.58])
    variants = [timed(file, "dense", step=2 * ratios), timed(file, "routed", step=2 + 0 * ratios)]
    result = described(variants, 0.05)
    step = result.as_dict()["batches"][0]["variants"][1]["step"]
    assert step["speedup"] is step["efficiency"] is None and step["speedup_interval"] == pytest.approx([1.41, 1.58])
    assert "too noisy to say (1.41 to 1.58)" in result.table() and "1.51 x" not in result.table()
    assert result.uncertain() == 1
    assert described(variants, 0.12).uncertain() == 0


def test_the_parts_are_the_step(file):
    rng = np.random.default_rng(0)
    forward = rng.uniform(1, 2, 6)
    variant = timed(
        file, "routed", step=4 * forward, forward=forward, forward_backward=3 * forward, routing=0.2 * forward
    )
    found = parts_of(variant)
    assert np.allclose(found["forward"] + found["backward"] + found["update"], variant.step_s("step"))
    row = described([variant], 0.05, [variant]).as_dict()["batches"][0]["variants"][0]
    shares = {name: part["share"] for name, part in row["parts"].items()}
    assert shares == pytest.approx({"forward": 0.25, "backward": 0.5, "update": 0.25, "routing": 0.05})


def test_which_forwards_are_compared(file):
    dense = load_config(file, {"routes": [], "name": "plain"})
    routed = load_config(file)
    found = variants_of([routed, dense])
    assert [v.name for v in found] == ["tiny dense", "tiny routed", "plain dense"]
    assert [v.place for v in found] == [0, 0, 1]
    assert [v.name for v in variants_of([dense, routed])] == ["plain dense", "tiny routed"]
    assert [v.name for v in variants_of([dense, dense])] == ["plain 1 dense", "plain 2 dense"]
    small = load_config(file, {"phases": [{"epochs": 1, "image_size": 16}, {"epochs": 1, "routes": []}]})
    assert [v.name for v in variants_of([small])] == ["tiny dense", "tiny routed", "tiny routed@16"]


def test_a_turn_has_whole_updates_and_a_batch_of_each_thread(file, monkeypatch):
    monkeypatch.setattr(side_by_side, "TURN_S", 0.3)
    config = load_config(file)
    data, optim = config.data.model_copy(update={"workers": 9}), config.optim.model_copy(update={"accumulate": 4})
    config = config.model_copy(update={"data": data, "optim": optim})
    assert steps_of_a_turn("step", 0.06, config, training=True) == 8
    assert steps_of_a_turn("with_data", 0.06, config, training=True) == 12
    assert steps_of_a_turn("step", 9.0, config, training=False) == 1


def test_processes_take_turns_and_rest_between_them(file, subject):
    variants = measure(variants_of([load_config(file)]), rounds=8)
    lines = [line.split() for line in (subject.parent / "turns").read_text().splitlines()]
    begun, ended = (np.array([float(line[i]) for line in lines]) for i in (1, 2))
    assert (begun[1:] >= ended[:-1]).all()  # never two at once
    by_round = [(lines[i][0], lines[i + 1][0]) for i in range(0, 16, 2)]
    assert set(by_round) == {("dense", "routed"), ("routed", "dense")}  # both in each round, in changing order
    assert sorted(variants[0].raw["step"]["order"] + variants[1].raw["step"]["order"]) == list(range(16))
    for forward in ("dense", "routed"):  # the thread of the other one has not worked meanwhile
        own = [(float(e) - float(b), float(cpu)) for name, b, e, cpu in lines if name == forward]
        assert own[-1][1] - own[0][1] < 1.5 * sum(seconds for seconds, _ in own)
    assert not psutil.Process().children()


def test_a_process_that_dies_is_named_and_none_is_left(file, subject):
    with ExitStack() as stack:
        workers = [Worker(name, [str(subject)]) for name in ("a", "b", "c", "d")]
        for worker in workers:
            stack.callback(worker.end)
            worker.ready()
        with pytest.raises(UsageError, match="^a: data.path: nothing there$"):
            workers[0].ask("refuse")
        with pytest.raises(RunError, match="^b: its process was killed, most likely for want of memory"):
            workers[1].ask("die", signal.SIGKILL)
        with pytest.raises(RunError, match="^c: its process ended with exit code 7; it printed last: no space left$"):
            workers[2].ask("leave")
        workers[3].process.kill()  # while it rests
        with pytest.raises(RunError, match="^d: its process was killed"):
            workers[3].ask("skipped")
        with pytest.raises(RunError, match="^a: .*has no attribute 'unknown'"):
            workers[0].ask("unknown")
    assert not psutil.Process().children()


def test_processes_end_with_a_parent_that_is_killed(tmp_path, subject):
    parent = f"""
from skipvit.measure.bench.turns import Worker
workers = [Worker(name, [{str(subject)!r}]) for name in "ab"]
for worker in workers:
    worker.ready()
print(*(worker.process.pid for worker in workers), flush=True)
workers[0].connection.recv()
"""
    paths = os.environ | {"PYTHONPATH": SOURCES}
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=paths)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    process.kill()
    process.communicate()
    assert gone(pids)


def gone(pids, within_s=10):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and any(map(running, pids)):
        time.sleep(0.05)
    return not any(map(running, pids))


def running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_all(file):
    words = [sys.executable, "-m", "skipvit", "bench", str(file)]
    paths = os.environ | {"PYTHONPATH": SOURCES}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=paths)
    children = []
    while len(children) < 2 and process.poll() is None:
        children = psutil.Process(process.pid).children()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped\n")
    assert gone([child.pid for child in children])


@pytest.mark.parametrize("formulation", ["gather", "matmul"])
def test_routing_alone_changes_nothing_where_no_block_does(formulation):
    """Tokens that leave and come back are the same tokens: so are their gradients."""
    fused = {"start": 2, "end": 3, "keep_ratio": 0.4, "scorer": "random", "fuse": True}
    routes = [{"start": 1, "end": 2, "keep_ratio": 0.5}, fused]
    sizes = {"width": 16, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}
    forward = create_model("vit_tiny_patch16_224", routes, 10, formulation, **sizes)
    inputs = routing_inputs(forward, 3, ms.float32)
    gradients = Routing(forward)(*inputs)
    for r in range(2):
        q, k, v, x, sensitivity = inputs[1 + 5 * r : 6 + 5 * r]
        assert np.array_equal(RouteAlone(forward, r)(q, k, v, x, inputs[0]).asnumpy(), x.asnumpy())
        assert np.allclose(gradients[r].asnumpy(), sensitivity.asnumpy(), atol=1e-6)


def test_the_training_command(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "TURN_S", 0.001)
    words = [str(file), "--with_data", "--rounds", "6", "--widest", "1000", "--json", "--out", str(tmp_path / "a.png")]
    assert run("bench", words) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["mode"], len(result["batches"]), err) == ("training", 1, "")
    dense, routed = result["batches"][0]["variants"]
    assert (dense["name"], routed["name"]) == ("tiny dense", "tiny routed")
    assert all(row["raw"]["with_data"]["steps_of_a_turn"] >= 2 for row in (dense, routed))  # it has two threads
    for job in ("step", "with_data"):
        turns = [np.array(row["raw"][job]["turn_s"]) for row in (dense, routed)]
        assert all(len(seconds) == 6 and seconds.min() > 0 for seconds in turns)
        seconds = [turns[i] / row["raw"][job]["steps_of_a_turn"] for i, row in enumerate((dense, routed))]
        assert routed[job]["speedup"] == pytest.approx(np.median(seconds[0] / seconds[1]))
    assert dense["peak_memory_bytes"] > 2**20 and routed["memory_ratio"] > 0 and "speedup" not in dense["step"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not psutil.Process().children()


def test_the_parts_of_a_real_step(file, monkeypatch):
    monkeypatch.setattr(side_by_side, "TURN_S", 0.001)
    routed = variants_of([load_config(file)])[1]
    [alone] = measure([routed.again(batch_size=3, parts=True)], rounds=6)
    jobs = {"step", "forward", "forward_backward", "routing", "average"}
    assert alone.config.data.batch_size == 3 and set(alone.raw) == jobs
    assert all(len(raw["turn_s"]) == 6 and min(raw["turn_s"]) > 0 for raw in alone.raw.values())
    found = parts_of(alone)
    assert np.allclose(found["forward"] + found["backward"] + found["update"], alone.step_s("step"))


def test_the_inference_command_refuses_what_it_cannot_tell(file, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "TURN_S", 0.001)
    words = [str(file), "--mode", "inference", "--batch_sizes", "3", "--rounds", "6", "--widest", "1e-6"]
    assert run("bench", words) == 1
    out, err = capsys.readouterr()
    assert out.startswith("inference on cpu, medians of 6 rounds, against tiny dense\n")
    assert out.count("too noisy to say") == 1 and re.search(r"^tiny routed +3 ", out, re.M)
    assert err.startswith("error: too noisy to say for 1 of the figures") and "--rounds" in err


def test_each_batch_size_has_processes_of_its_own(file, subject):
    result = bench([load_config(file)], 6, "inference", batch_sizes=[1, 3], widest=9)
    sizes = [[row["batch_size"] for row in batch["variants"]] for batch in result.as_dict()["batches"]]
    assert sizes == [[1, 1], [3, 3]] and result.table().count("inference on cpu") == 2
    assert len((subject.parent / "turns").read_text().splitlines()) == 2 * 2 * 6


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rounds": 5}, "rounds: 5 rounds have no 95 % interval"),
        ({"widest": 0}, "widest: 0 is not"),
        ({"mode": "inference", "parts": True}, "parts: only training"),
    ],
)
def test_what_cannot_be_measured_is_refused(file, asked, said):
    with pytest.raises(UsageError, match=said):
        bench([load_config(file)], **asked)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "there/is/none.png"], "--out: there/is/none.png"),
        (["--batch_sizes", "4,0"], "argument --batch_sizes: '4,0' is not a list of batch sizes"),
    ],
)
def test_what_the_command_refuses_at_once(file, words, said, capsys):
    assert run("bench", [str(file), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_run_without_its_images_is_refused_by_name(file, tmp_path, capsys):
    assert (
        run("bench", [str(file), "--with_data", "--data.kind", "image_folder", "--data.path", str(tmp_path / "none")])
        == 2
    )
    assert capsys.readouterr().err.startswith(f"error: tiny dense: data.path: {tmp_path / 'none'}")
