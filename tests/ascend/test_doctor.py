"""`skipvit doctor`: its readers on what real machines print, faked machines with one fault each, the command on this one."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipvit.ascend import checks, doctor, probe
from skipvit.ascend import machine as facts
from skipvit.ascend.checks import Row, Visit
from skipvit.ascend.doctor import look, main
from skipvit.ascend.machine import Device, Machine
from skipvit.config import config as configuration
from skipvit.util.errors import RunError, UsageError

ROOT = Path(__file__).parents[2]


def table(version: str, devices: list[tuple[str, str, str]]) -> str:
    """`npu-smi info` of drivers 21 to 25: devices of name, health, high-bandwidth memory."""
    bar = "+===========================+===============+====================================================+"
    lines = [
        "+------------------------------------------------------------------------------------------------+",
        f"| npu-smi {version:24} Version: {version:45}|",
        "+---------------------------+---------------+----------------------------------------------------+",
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        bar,
    ]
    for i, (name, health, memory) in enumerate(devices):
        lines += [
            f"| {i}     {name:20}| {health:14}| 70.0        34                0    / 0             |",
            f"| 0                         | 0000:{0xC1 - 0x40 * (i % 4):02X}:00.0  | 0           1197 / 13553      {memory:21}|",
            bar,
        ]
    return "\n".join(lines) + "\n"


# Two devices of driver 20.2, whose table has no huge pages.
OLD = """
+------------------------------------------------------------------------------------+
| npu-smi 1.8.21                   Version: 20.2.2.spc001                            |
+----------------------+---------------+---------------------------------------------+
| NPU   Name           | Health        | Power(W)   Temp(C)                          |
| Chip                 | Bus-Id        | AICore(%)  Memory-Usage(MB)  HBM-Usage(MB)  |
+======================+===============+=============================================+
| 0     910A           | OK            | 68.6       36                               |
| 0                    | 0000:C1:00.0  | 0          591  / 14795      0    / 32768   |
+======================+===============+=============================================+
| 1     910A           | OK            | 63.7       31                               |
| 0                    | 0000:81:00.0  | 0          303  / 15177      0    / 32768   |
+======================+===============+=============================================+
"""
PROCESSES = """+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 55115         | python                   | 30784                   |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""
# A newer server: two chips a device, the second line has one number more.
NEWER = """
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.1                   Version: 25.2.1                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 166.5       38                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3131 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           37                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2886 / 65536         |
+===========================+===============+====================================================+
"""
EIGHT = [("910B", "OK", f"{i + 3:<5}/ 32768") for i in range(8)]


def test_the_tables_of_npu_smi():
    devices = facts.parse_npu_smi(table("24.1.0", EIGHT) + PROCESSES)
    assert [(c.number, c.name, c.health, c.hbm_used_mb, c.hbm_mb) for c in devices] == [
        (i, "910B", "OK", i + 3, 32768) for i in range(8)
    ]
    assert facts.npu_smi_version(table("23.0.rc1.b070", EIGHT)) == "23.0.rc1.b070"
    assert facts.parse_npu_smi(OLD) == [Device(0, "910A", "OK", 0, 32768), Device(1, "910A", "OK", 0, 32768)]
    assert facts.parse_npu_smi(NEWER) == [
        Device(0, "Ascend910", "OK", 3131, 65536),
        Device(0, "Ascend910", "OK", 2886, 65536),
    ]
    full = facts.parse_npu_smi(
        table("23.0.rc1", [("910ProB", "Warning", "30711/ 32768"), ("910ProB", "Critical", "5 / 32768")])
    )
    assert [(c.name, c.health, c.hbm_used_mb) for c in full] == [
        ("910ProB", "Warning", 30711),
        ("910ProB", "Critical", 5),
    ]


FIRST = [("910A", 32768), ("910B", 32768), ("910ProB", 32768), ("Ascend910PremiumA", 32768), ("910", None)]
OTHERS = [("910B1", 65536), ("910B4", 32768), ("Ascend910", 65536), ("910B", 65536), ("310P3", None)]


def test_generations_of_chips():
    """910B is a first-generation chip, 910B1 to 910B4 are the second generation."""
    assert all(Device(0, name, "OK", 0, hbm).first_generation for name, hbm in FIRST)
    assert not any(Device(0, name, "OK", 0, hbm).first_generation for name, hbm in OTHERS)


HOSTILE = [
    "",
    "\x00\xff",
    "|||\n| 0 | 1 |\n",
    "| 0     910A | OK |",
    "dcmi module initialize failed. ret is -8005\n",
    "| 0 910A " * 50_000,
    "| 9999999999     910A | OK | x |\n| 0 | 0000: | 1/2 |",
    table("24.1.0", EIGHT)[:333],
    "a=\n=b\n=\n" * 9,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nonsense_is_nothing(text):
    assert facts.parse_npu_smi(text) == []
    assert facts.parse_hccn(text) == {} and facts.npu_smi_version(text.replace("npu-smi", "")) is None
    assert facts.version_of(text) is None and probe.results(text) == {}


VERSIONS = [
    (
        "package_name=Ascend-cann-toolkit\nversion=8.1.RC1\ninnerversion=V100R001C21SPC001B238\narch=aarch64\n",
        "8.1.RC1",
    ),
    (
        "# version: 1.0\nruntime_running_version=[7.6.0.1.220:8.0.0]\ncompiler_running_version=[7.6.0.1.220:8.0.0]\n",
        "8.0.0",
    ),
    ("Version=7.6.0.1.220\nversion_dir=8.0.0\n", "8.0.0"),
    ("Version=24.1.rc1\nascendhal_version=7.35.19\nInnerversion=V100R001C15SPC006B220\n", "24.1.rc1"),
    ("Version=7.1.0.11.220\nfirmware_version=1.0\npackage_version=23.0.7\n", "7.1.0.11.220"),
    ("version=\nversion=8.5.0", None),
]


@pytest.mark.parametrize("text, version", VERSIONS)
def test_version_files(text, version):
    assert facts.version_of(text) == version


def test_addresses_of_the_devices():
    text = "".join(
        f"address_{i}=192.168.{10 + 10 * (i % 4)}.{21 + i // 4}\nnetmask_{i}=255.255.255.0\n" for i in range(8)
    )
    found = facts.parse_hccn(text + "IPv6address_8=121::101\naddress_x=1.2.3.4\n")
    assert found[0] == "192.168.10.21" and found[7] == "192.168.40.22" and found[8] == "121::101" and len(found) == 9


def test_bounds_are_those_of_pip():
    specifiers = pytest.importorskip("packaging.specifiers")
    for bounds in (">=2.8,<2.11", "<2", ">=10", ">=3.10,<3.12", "==2.8.0", "!=1.5", ""):
        for version in ("1.26.4", "2.0", "2.8", "2.8.0", "2.10.0", "2.11", "3.9.18", "3.11.7", "10.0.1", "13"):
            assert facts.satisfies(version, bounds) == specifiers.SpecifierSet(bounds).contains(version), (
                version,
                bounds,
            )


def test_the_pinned_version_is_that_of_the_requirements():
    assert f"mindspore=={facts.PINNED} " in (ROOT / "requirements.txt").read_text()
    assert set(facts.CANN_OF_PINNED) <= set(facts.accepted_cann())
    assert not facts.satisfies("3.9.18", facts.requirements("skipvit")[0].removeprefix("python"))


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


FOUND = [
    {"stage": "mindspore", "version": "2.8.0", "devices": 8, "reason": "", "seconds": 2.0},
    {"stage": "dataset", "images": 64, "seconds": 0.5},
    {
        "stage": "step",
        "device": "ascend",
        "losses": [2.3, 1.5, 0.9],
        "skipped": 1.0,
        "first_s": 60.0,
        "later_s": 0.01,
        "peak_mib": 900,
    },
]


def answers(stages: list[dict]) -> str:
    """A Python that answers as `tools.probe` would."""
    lines = [f"a line of the driver {probe.MARK}{json.dumps(stage)}" for stage in stages]
    return "\n".join(f"echo '{line}'" for line in lines)


@pytest.fixture
def server(tmp_path):
    """A faked server with eight devices on which everything is well; tests break it."""
    home = "/usr/local/Ascend/ascend-toolkit/latest"
    files = {
        "/usr/local/Ascend/driver/version.info": "Version=25.2.0\n",
        "/usr/local/Ascend/firmware/version.info": "Version=7.7.0.6.236\n",
        f"{home}/aarch64-linux/ascend_toolkit_install.info": "package_name=Ascend-cann-toolkit\nversion=8.2.RC1\n",
        "/usr/local/Ascend/ascend-toolkit/set_env.sh": "",
        f"{home}/opp/built-in/op_impl/ai_core/tbe/kernel/ascend910/add.json": "{}",
        f"{home}/python/site-packages/te/__init__.py": "",
        f"{home}/python/site-packages/hccl/__init__.py": "",
        "/etc/hccn.conf": "".join(f"address_{i}=192.168.10{i % 4}.10{i // 4}\n" for i in range(8)),
        "/proc/meminfo": "MemTotal:       790000000 kB\nMemAvailable:   700000000 kB\n",
        "/dev/shm/.keep": "",
    } | {
        f"/dev/{name}": "" for name in [*(f"davinci{i}" for i in range(8)), "davinci_manager", "devmm_svm", "hisi_hdc"]
    }
    for name, text in files.items():
        path = tmp_path / "root" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "smi.txt").write_text(table("25.2.0", EIGHT))
    bin_folder = tmp_path / "bin"
    script(bin_folder / "npu-smi", f"/bin/cat {tmp_path / 'smi.txt'}")
    script(bin_folder / "msrun", "")
    script(bin_folder / "python", f"echo {sys.prefix}")
    script(tmp_path / "probed", answers(FOUND))
    environment = {
        "PATH": str(bin_folder),
        "HOME": "/root",
        "ASCEND_HOME_PATH": home,
        "ASCEND_OPP_PATH": f"{home}/opp",
        "PYTHONPATH": f"{home}/python/site-packages:{home}/opp/built-in/op_impl/ai_core/tbe",
        "LD_LIBRARY_PATH": f"{home}/lib64",
    }
    return Visit(
        Machine(tmp_path / "root", environment, str(tmp_path / "probed"), patience=10.0), "ascend", tmp_path / "runs"
    )


def rows_of(visit: Visit) -> dict[str, Row]:
    """The rows by name; of two with one name the worse. Each that is not ok says what to do."""
    found: dict[str, Row] = {}
    for row in look(visit):
        assert row.found and "\n" not in row.found + row.do and (row.state == "ok") == (row.do == ""), row
        if row.name not in found or row.state != "ok":
            found[row.name] = row
    return found


PRIVATE = ("mindspore", "numpy", "cores")  # rows that are about the real machine


def test_a_good_server(server, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(96), raising=False)
    found = rows_of(server)
    assert [row for name, row in found.items() if row.state != "ok" and name not in PRIVATE] == []
    assert found["devices"].found == "8 x 910B, first generation (910A), npu-smi 25.2.0"
    assert found["driver"].found == "25.2.0, firmware 7.7.0.6.236" and found["CANN"].found.startswith(
        "8.2.RC1 in /usr/local"
    )
    assert found["device addresses"].found.startswith("8 in /etc/hccn.conf: 192.168.100.100")
    assert found["training step"].found.startswith("ascend: compiled in 60.0 s")
    main(["--device", "ascend", "--runs", str(server.runs)], server.machine)
    printed = capsys.readouterr().out
    assert all(pair.mindspore in printed and pair.source in printed for pair in facts.PAIRS)


def change(name: str, text: str | None):
    """Writes another file on the faked server, or takes it away."""

    def done(visit: Visit) -> None:
        path = visit.machine.path(name)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)

    return done


def smi(text: str):
    return lambda visit: (visit.machine.root.parent / "smi.txt").write_text(text)


def variable(name: str, value: str):
    return lambda visit: visit.machine.environment.update({name: value})


def no_file_but_a_folder(visit: Visit) -> None:
    change("/usr/local/Ascend/driver/version.info", None)(visit)
    visit.machine.path("/usr/local/Ascend/driver/version.info").mkdir()


TOOLKIT = "/usr/local/Ascend/ascend-toolkit/latest"
BROKEN = {
    "no driver": (change("/usr/local/Ascend/driver/version.info", None), "driver", "fails", "no readable"),
    "a folder": (no_file_but_a_folder, "driver", "fails", "no readable"),
    "old driver": (change("/usr/local/Ascend/driver/version.info", "Version=23.0.3"), "driver", "warning", "23.0.3"),
    "other devices": (smi(NEWER), "devices", "warning", "2 x Ascend910: not the first"),
    "driver not loaded": (smi("dcmi module initialize failed. ret is -8005"), "devices", "fails", "-8005"),
    "devices taken": (
        smi("dcmi model initialized failed, because the device is used. ret is -8020"),
        "devices",
        "fails",
        "device is used",
    ),
    "nothing printed": (smi(""), "devices", "fails", "printed: nothing"),
    "nonsense": (smi("\x00\xfe|||+=+"), "devices", "fails", "printed"),
    "a warning": (
        smi(table("23.0", [("910A", "Warning", "3 / 32768")])),
        "device health",
        "warning",
        "device 0: Warning",
    ),
    "a sick device": (
        smi(table("23.0", [("910A", "Critical", "3 / 32768")])),
        "device health",
        "fails",
        "device 0: Critical",
    ),
    "a busy device": (
        smi(table("23.0", [("910A", "OK", "30750/ 32768")])),
        "device memory",
        "warning",
        "30750 of 32768",
    ),
    "half the files": (change("/dev/davinci7", None), "device files", "warning", "7 of 8"),
    "no manager": (change("/dev/davinci_manager", None), "device files", "fails", "no /dev/davinci_manager"),
    "old CANN": (
        change(f"{TOOLKIT}/aarch64-linux/ascend_toolkit_install.info", "version=7.0.0"),
        "CANN",
        "warning",
        "7.0.0",
    ),
    "CANN unknown": (
        change(f"{TOOLKIT}/aarch64-linux/ascend_toolkit_install.info", "\x00"),
        "CANN",
        "fails",
        "without a readable version",
    ),
    "no set_env.sh": (variable("LD_LIBRARY_PATH", ""), "CANN variables", "warning", "LD_LIBRARY_PATH"),
    "no te": (variable("PYTHONPATH", "/opp/built-in/op_impl/ai_core/tbe"), "CANN packages", "fails", "no te or hccl"),
    "no hccn.conf": (change("/etc/hccn.conf", None), "device addresses", "warning", "no readable"),
    "seven addresses": (
        change("/etc/hccn.conf", "address_0=10.0.0.1\n"),
        "device addresses",
        "warning",
        "1 for 8 devices",
    ),
    "one address twice": (
        change("/etc/hccn.conf", "".join(f"address_{i}=10.0.0.1\n" for i in range(8))),
        "device addresses",
        "warning",
        "twice",
    ),
    "little memory": (change("/proc/meminfo", "MemAvailable: 1000000 kB"), "memory", "warning", "976 MiB free"),
    "unknown memory": (change("/proc/meminfo", "?"), "memory", "warning", "unknown"),
    "a job's variables": (variable("MS_WORKER_NUM", "8"), "variables", "warning", "another distributed job"),
    "CANN was moved": (variable("ASCEND_HOME_PATH", "/opt/cann"), "variables", "warning", "no such folder"),
    "no rank table": (variable("RANK_TABLE_FILE", "/etc/hccn.conf"), "rank table", "warning", "is no rank table"),
    "another python": (
        lambda v: script(v.machine.root.parent / "bin" / "python", "echo /usr"),
        "launcher",
        "warning",
        "would start",
    ),
    "no msrun": (lambda v: (v.machine.root.parent / "bin" / "msrun").unlink(), "launcher", "warning", "no msrun"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_is_wrong(server, name):
    wrong, row, state, said = BROKEN[name]
    wrong(server)
    found = rows_of(server)[row]
    assert found.state == state and said in found.found


def test_operators_for_another_chip(server):
    kernel = server.machine.path(f"{TOOLKIT}/opp/built-in/op_impl/ai_core/tbe/kernel")
    (kernel / "ascend910").rename(kernel / "ascend910b")
    assert "compiled for ascend910b, not for 910A" in rows_of(server)["CANN operators"].found


def test_device_files_of_another_group(server, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "davinci" not in str(path))
    row = rows_of(server)["device files"]
    assert row.state == "fails" and "HwHiAiUser" in row.do


STUBBORN = {
    "hangs": ("exec /bin/sleep 60", "no answer in 0.5 s"),
    "hangs and ignores": ("trap '' TERM INT; while :; do /bin/sleep 1; done", "no answer in 0.5 s"),
    "prints for ever": ("exec /usr/bin/yes '| 0 | 910A'", "printed: "),
    "fails": ("echo no device; exit 3", "exit code 3, it printed: no device"),
    "dies": ("kill -SEGV $$", "killed by SIGSEGV"),
}


@pytest.mark.parametrize("name", STUBBORN)
def test_an_npu_smi_that_misbehaves(server, name):
    text, said = STUBBORN[name]
    script(server.machine.root.parent / "bin" / "npu-smi", text)
    visit = Visit(Machine(server.machine.root, server.machine.environment, patience=0.5), "ascend")
    begun = time.monotonic()
    (row,) = checks.devices(visit)
    assert time.monotonic() - begun < 5
    assert row.state == "fails" and said in row.found


PROBES = {
    "no MindSpore": (
        answers([{"stage": "mindspore", "error": "No module named 'mindspore'"}]),
        "import MindSpore",
        "No module named",
    ),
    "it dies at once": ("kill -SEGV $$", "import MindSpore", "killed by SIGSEGV"),
    "it dies later": (answers(FOUND[:1]) + "\nkill -ABRT $$", "data engine", "killed by SIGABRT"),
    "it prints nonsense": (f"echo '{probe.MARK}[1]'; echo '{probe.MARK}{{'", "import MindSpore", "ended early"),
    "it hangs": (answers(FOUND[:2]) + "\n/bin/sleep 60", "training step", "no answer in"),
    "the loss stays": (
        answers([*FOUND[:2], FOUND[2] | {"losses": [2.3, 2.3]}]),
        "training step",
        "loss 2.300 to 2.300",
    ),
    "the loss is no number": (answers([*FOUND[:2], FOUND[2] | {"losses": [2.3, "nan"]}]), "training step", "to nan"),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_mindspore_that_misbehaves(server, name):
    text, row, said = PROBES[name]
    script(Path(server.machine.python), text)
    patience = 1.0 if name == "it hangs" else 10.0
    machine = Machine(server.machine.root, server.machine.environment, server.machine.python, probe_patience=patience)
    visit = Visit(machine, "ascend")
    found = list(doctor.mindspore(visit))
    assert next(r.name for r in found if r.state == "fails") == row and any(said in r.found for r in found)


def test_devices_that_mindspore_does_not_see(server):
    """Training would go to the CPU without a word."""
    stages = [
        FOUND[0] | {"devices": 0, "reason": "libge_runner.so: cannot open"},
        FOUND[1],
        FOUND[2] | {"device": "cpu"},
    ]
    script(Path(server.machine.python), answers(stages))
    server.device = "auto"
    found = rows_of(server)
    assert found["training step"].state == found["devices in MindSpore"].state == "warning"
    assert "libge_runner" in found["devices in MindSpore"].found


def test_a_check_that_goes_wrong_is_a_row(server, monkeypatch):
    def explode(*_):
        raise RuntimeError("of all things\nand more")

    monkeypatch.setattr(facts, "parse_npu_smi", explode)
    found = rows_of(server)
    assert found["devices"].found == "could not be checked (RuntimeError: of all things)" and "training step" in found


@pytest.mark.parametrize("device, state", [("auto", "ok"), ("ascend", "fails"), ("cpu", None)])
def test_an_empty_machine(tmp_path, device, state):
    """No file, no command, no MindSpore: still a table, and a missing device is only bad if it is asked for."""
    visit = Visit(Machine(tmp_path, {}, "/no/python"), device, tmp_path / "runs")
    found = rows_of(visit)
    ascend = [found.get(name) for name in ("driver", "devices", "device files", "CANN")]
    assert [row and row.state for row in ascend] == [state] * 4
    assert all(row.found == "none (CPU only)" for row in ascend if state == "ok")
    assert found["import MindSpore"].state == "fails" and "cannot be started" in found["import MindSpore"].found


def test_exit_codes_and_wrong_words(tmp_path, capsys):
    with pytest.raises(RunError, match="will not do: import MindSpore"):
        main(["--json", "--device", "cpu", "--runs", str(tmp_path)], Machine(tmp_path, {}, "/no/python"))
    assert json.loads(capsys.readouterr().out)["ok"] is False
    for words in (["--devise", "cpu"], ["--device", "gpu"], ["--data.path", "x"]):
        with pytest.raises(UsageError):
            main(words)


def test_the_number_of_parameters_is_the_networks():
    from skipvit.engine.build import build_network

    small = {"size": "tiny", "width": 48, "depth": 3, "heads": 3, "patch": 4, "image_size": 32, "num_classes": 7}
    config = configuration.Config(model=small, data={"kind": "shapes"})
    assert probe.parameters(config) == sum(p.size for p in build_network(config, "cpu").get_parameters())
    config = configuration.read(ROOT / "configs" / "skipvit_small_imagenet.yaml")
    assert 336 < probe.checkpoint_bytes(config) / 2**20 < 337  # docs/training.md measured a file of 337


@pytest.fixture
def images(tmp_path):
    for i in range(8):
        path = tmp_path / "data" / ("train", "val")[i // 4] / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    (tmp_path / "run.yaml").write_text(
        "model: {size: tiny, width: 16, depth: 2, heads: 2, patch: 8, image_size: 32, num_classes: 2}\n"
        "data: {kind: image_folder, batch_size: 2}\n"
    )
    return ["--config", str(tmp_path / "run.yaml"), "--data.path", str(tmp_path / "data")]


def test_a_runs_data_and_checkpoints(images, tmp_path, monkeypatch):
    result = probe.read_run(images)
    assert (result["train"], result["val"], result["classes"], result["decoded"], result["broken"]) == (4, 4, 2, 8, [])
    (tmp_path / "data" / "val" / "a" / "4.png").write_text("no image")
    visit = Visit(Machine(), runs=tmp_path)
    data, checkpoints = doctor._run(visit, probe.read_run(images))
    assert data.state == "warning" and "7 decoded" in data.found and "4.png" in data.found and checkpoints.state == "ok"
    monkeypatch.setattr(facts, "free_mib", lambda _: 0)
    assert list(doctor._run(visit, result))[1].state == "fails"
    assert "no such config file" in probe._attempt(lambda: probe.read_run(["--config", "x.yaml"]))["error"]
    assert "not an option" in probe._attempt(lambda: probe.read_run([*images, "--data.pth", "x"]))["error"]


def test_the_command_on_this_machine(images, tmp_path):
    """The whole command, as a user runs it: MindSpore is imported, a step compiled, losses fall."""
    words = [sys.executable, "-m", "skipvit", "doctor", "--device", "cpu", "--json", *images]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr + result.stdout
    found = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert found["training step"]["state"] == found["data engine"]["state"] == found["data"]["state"] == "ok"
    assert (
        "cpu: compiled in" in found["training step"]["found"] and "4 + 4 images in 2 classes" in found["data"]["found"]
    )
    assert not (tmp_path / "runs").exists()  # it only looks
