"""`skipvit launch`: wrong launches are refused in one line before anything starts; what is handed to the ranks."""

import json
import os
import socket
import sys
import time

import pytest

from skipvit.ascend import launch
from skipvit.ascend.launch import Cluster
from skipvit.ascend.rank_table import Device, devices_of
from skipvit.ascend.ranks import End
from skipvit.cli import run
from skipvit.engine import devices
from skipvit.util.cores import ascend_devices
from skipvit.util.errors import UsageError

CONFIG = """
name: run
model: {name: vit_tiny_patch16_224, width: 16, depth: 2, heads: 2, patch: 8, image_size: 32, num_classes: 10}
data: {kind: shapes, batch_size: 8, train_size: 80, val_size: 10}
optim: {epochs: 1, warmup_epochs: 0}
"""


def table(*servers):
    """A rank table of servers that are lists of (device, rank)."""
    devices = [
        [{"device_id": str(d), "device_ip": "192.168.100.101", "rank_id": str(r)} for d, r in server]
        for server in servers
    ]
    found = [
        {"server_id": f"10.0.0.{i}", "device": device, "host_nic_ip": "reserve"} for i, device in enumerate(devices)
    ]
    return json.dumps({"version": "1.0", "server_count": str(len(found)), "server_list": found, "status": "completed"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "cores", lambda: 8)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "images/train/cat").mkdir(parents=True)
    (tmp_path / "images/val/cat").mkdir(parents=True)
    (tmp_path / "notes.json").write_text('{"server_list": [{"device": 3}]}')
    (tmp_path / "text.json").write_text("rank 0: device 0")
    (tmp_path / "two.json").write_text(table([(0, 0), (1, 1)]))
    (tmp_path / "twice.json").write_text(table([(0, 0), (1, 0)]))
    (tmp_path / "device.json").write_text(table([(0, 0), (0, 1)]))
    (tmp_path / "seven.json").write_text(table([(0, 0), (7, 1)]))
    (tmp_path / "deep.json").write_text("[" * 20_000)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "huge.json").write_text('{"server_list": [{"device": [{"device_id": 0, "rank_id": 1e999}]}]}')
    return tmp_path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def refused(words, capsys):
    """The one line with which a launch is refused."""
    begun = time.monotonic()
    assert run("launch", words if "--master_addr" in words else ["--master_port", free_port(), *words]) == 2
    assert time.monotonic() - begun < 20
    lines = capsys.readouterr().err.splitlines()
    # How many cores this process may use is the machine's affair, and that of pytest's processes.
    (line,) = [line for line in lines if "cores will be slow" not in line and "1 core will be slow" not in line]
    return line


@pytest.mark.parametrize(
    "words, expected",
    [
        (["many"], "error: DEVICES: the number of devices on this machine, got 'many'"),
        (["0"], "error: DEVICES: the number of devices on this machine, got '0'"),
        (["9" * 20], "error: DEVICES: the number of devices on this machine, got '99999999999999999999'"),
        (["--nnodes", "9" * 20, "1"], "error: --node_rank: 0 is not one of --nnodes 99999999999999999999 machines"),
        ([], "error: the following arguments are required: DEVICES"),
        (
            ["--config", "run.yaml", "2"],
            "error: --config is not an option (see --help); options of train.py come after DEVICES",
        ),
        (["2", "--eval", "runs/run"], "error: --eval: the launcher's options come before DEVICES"),
        (["2", "--log_dir=logs"], "error: --log_dir=logs: the launcher's options come before DEVICES"),
        (["--nodes", "2", "2"], "error: --nodes is not an option; did you mean --nnodes?"),
        (["--nnodes", "2", "--node_rank", "2", "2"], "error: --node_rank: 2 is not one of --nnodes 2 machines"),
        (["--master_port", "70000", "2"], "error: --master_port: 70000 is not a port"),
        (["--master_addr", "nowhere.invalid", "2", "--config", "run.yaml"], "error: --master_addr nowhere.invalid"),
        (
            ["--master_addr", "192.0.2.1", "2", "--config", "run.yaml"],
            "error: --master_addr 192.0.2.1 --master_port 8118: cannot be used",
        ),
        (["--log_dir", "run.yaml/logs", "2", "--config", "run.yaml"], "error: run.yaml/logs: the folder of the logs"),
        (
            ["--rank_table", "two.json", "2", "--config", "run.yaml"],
            "error: --rank_table: rank tables are for Ascend devices",
        ),
        (["2", "--config", "nowhere.yaml"], "error: nowhere.yaml: no such config file"),
        (["2", "--config", "run.yaml", "--optim.lr", "fast"], "error: run.yaml: optim.lr: "),
        (
            ["2", "--config", "run.yaml", "--device", "ascend"],
            "error: device: ascend asked for, but MindSpore finds no Ascend device",
        ),
        (
            ["2", "--config", "run.yaml", "--data.kind", "image_folder", "--data.path", "nowhere"],
            "error: data.path: nowhere/train is not a folder",
        ),
        (
            ["2", "--config", "run.yaml", "--runs", "run.yaml/runs"],
            "error: run.yaml/runs/run: the run folder cannot be made in ",
        ),
        (["--eval", "2", "runs/run"], "error: runs/run: not a run folder"),
        (["--eval", "2", "--config", "run.yaml", "--weights", "none.ckpt"], "error: none.ckpt: no such checkpoint"),
    ],
)
def test_a_wrong_launch_is_one_line(folder, words, expected, capsys):
    assert refused(words, capsys).startswith(expected)
    assert not (folder / "logs").exists()


def test_a_port_that_is_taken_is_named(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused(["--master_port", port, "2", "--config", "run.yaml"], capsys)
    assert line.startswith(
        f"error: --master_addr 127.0.0.1 --master_port {port}: cannot be used (Address already in use"
    )


@pytest.fixture
def two_devices(folder, monkeypatch):
    """A machine with two Ascend devices, as far as the launcher looks."""
    (folder / "dev").mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (folder / "dev" / name).touch()
    monkeypatch.setattr(devices, "choose", lambda device: "ascend")
    monkeypatch.setattr(launch, "ascend_devices", lambda: ascend_devices(folder / "dev"))
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)


def test_more_ranks_than_devices(two_devices, capsys):
    assert refused(["3", "--config", "run.yaml"], capsys).startswith(
        "error: DEVICES: 3 asked for, this machine has 2 that may be used"
    )


def test_devices_that_may_not_be_used_do_not_count(two_devices, monkeypatch):
    assert launch.ascend_devices() == [0, 1]
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    assert launch.ascend_devices() == [1]


@pytest.mark.parametrize(
    "name, count, expected",
    [
        ("nowhere.json", 2, "nowhere.json: the rank table cannot be read (No such file or directory)"),
        ("text.json", 2, "text.json: the rank table is not JSON"),
        ("notes.json", 2, "notes.json: not a rank table of version 1.0"),
        ("two.json", 1, "two.json: server 0 of the rank table has 2 devices, the run 1 on each server"),
        ("device.json", 2, "device.json: server 0 of the rank table has the same device_id twice"),
        ("seven.json", 2, "seven.json: the rank table has device_id 7, this machine has 0, 1"),
        ("deep.json", 2, "deep.json: the rank table is not JSON"),
        ("pipe.json", 2, "pipe.json: the rank table cannot be read (not a regular file)"),
        ("huge.json", 2, "huge.json: not a rank table of version 1.0 (OverflowError"),
        ("twice.json", 2, "twice.json: the ranks of the rank table are not 0 to 1, each once"),
    ],
)
def test_a_bad_rank_table_is_one_line(two_devices, name, count, expected, capsys):
    assert refused(["--rank_table", name, str(count), "--config", "run.yaml"], capsys).startswith(f"error: {expected}")


def test_a_rank_table_gives_each_server_its_devices_by_rank(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(table([(1, 3), (0, 2)], [(4, 0), (5, 1)]))
    assert devices_of(path, 0, 2, 2) == [Device(0, 2), Device(1, 3)]
    assert devices_of(path, 1, 2, 2) == [Device(4, 0), Device(5, 1)]
    with pytest.raises(UsageError, match="has 2 servers, the run 1; set --nnodes 2"):
        devices_of(path, 0, 1, 2)


SHOW = """
import json, os, sys
from skipvit.util.processes import settle
settle()
print(json.dumps([[os.environ.get(name) for name in sys.argv[1].split()], sorted(os.sched_getaffinity(0))]))
"""
VARIABLES = "MS_ROLE RANK_ID RANK_SIZE DEVICE_ID MS_NODE_ID MS_WORKER_NUM MS_SCHED_HOST MS_SCHED_PORT RANK_TABLE_FILE"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A function that starts ranks which print their variables and cores; returns what each log has."""
    monkeypatch.setattr(launch.processes, "command", lambda *words: [sys.executable, "-c", SHOW, VARIABLES])

    def start(cluster):
        logs = tmp_path / f"logs_of_machine_{cluster.node}"
        assert launch.launch([], cluster, logs, show=lambda _: None) == End(0)
        return {path.stem: json.loads(path.read_text()) for path in logs.glob("*.log")}

    return start


def test_a_start_by_rank_table_sets_what_mindspore_reads(tmp_path, started):
    (tmp_path / "table.json").write_text(table([(0, 0), (1, 1)], [(4, 2), (5, 3)]))
    found = started(Cluster(2, nodes=2, node=1, rank_table=tmp_path / "table.json"))
    place = str(tmp_path / "table.json")
    assert sorted(found) == ["worker_2", "worker_3"]
    assert found["worker_3"][0] == [None, "3", "4", "5", None, None, None, None, place]


def test_ranks_and_scheduler_find_each_other_by_what_mindspore_documents(started, monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "77")
    monkeypatch.setenv("RANK_TABLE_FILE", "of_another_job.json")
    found = started(Cluster(2, nodes=2, address="localhost", port=8200))
    joins = ["4", "127.0.0.1", "8200", None]
    assert {name: row[0] for name, row in found.items()} == {
        "scheduler": ["MS_SCHED", "0", "4", None, None, *joins],
        "worker_0": ["MS_WORKER", "0", "4", "0", "0", *joins],
        "worker_1": ["MS_WORKER", "1", "4", "1", "1", *joins],
    }


def test_the_second_machine_has_no_scheduler_and_one_process_needs_none(started):
    assert started(Cluster(1, nodes=2, node=1)).keys() == {"worker_1"}
    (row,) = started(Cluster(1, bind_core=True)).values()
    assert row[1] == sorted(os.sched_getaffinity(0))
    assert row[0] == [None, "0", "1", "0", None, None, None, None, None]


def test_the_exit_code_of_a_rank_is_the_launchers(folder, capsys):
    assert (
        run(
            "launch",
            ["1", "--config", "run.yaml", "--optim.lr", "1e30", "--optim.clip_norm", "0", "--amp.max_overflows", "1"],
        )
        == 1
    )
    out, err = capsys.readouterr()
    assert out.startswith("1 process, output in logs/run\nrun: ") and err.startswith("error: rank 0: ")
    assert not (folder / "logs/run/scheduler.log").exists()


def test_two_launchers_do_not_share_their_logs_and_those_of_a_crash_stay(tmp_path):
    log = tmp_path / "worker_0.log"
    for text in ("first", "second", "third", "fourth", "fifth"):
        with launch.own_logs(tmp_path, 0, [0, 1]):
            assert not log.exists()
            log.write_text(text)
            with pytest.raises(UsageError, match="another launcher"), launch.own_logs(tmp_path, 0, [0, 1]):
                pass
            with launch.own_logs(tmp_path, 1, [2, 3]):  # another machine's part
                assert log.read_text() == text
    assert [(tmp_path / f"worker_0.log{end}").read_text() for end in ("", ".1", ".2", ".3")] == [
        "fifth",
        "fourth",
        "third",
        "second",
    ]
    assert not (tmp_path / "worker_0.log.4").exists()


def test_shares_of_cores_are_neighbours(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(4, 12), 20})
    assert [launch.share_of_cores(i, 4) for i in range(4)] == [{4, 5}, {6, 7}, {8, 9}, {10, 11}]
    assert launch.share_of_cores(0, 99) is None


def test_several_machines_with_a_loopback_address_are_warned():
    (warning,) = launch.check(Cluster(1, nodes=2, node=1), "cpu")
    assert warning.startswith("--master_addr 127.0.0.1 --master_port 8118 is this machine alone")


def test_more_processes_than_cores_are_warned():
    assert any("will be slow" in warning for warning in launch.check(Cluster(999, nodes=2, node=1), "cpu"))


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        run("launch", ["--help"])
    text = capsys.readouterr().out
    for word in (
        "--eval",
        "--nnodes",
        "--node_rank",
        "--master_addr",
        "--master_port",
        "--rank_table",
        "--bind_core",
        "--log_dir",
    ):
        assert word in text
