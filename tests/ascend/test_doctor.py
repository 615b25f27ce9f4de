"""`skipvit doctor`: what real servers print, one fault after another, a MindSpore that misbehaves, this machine."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from skipvit.ascend import doctor
from skipvit.ascend.doctor import Finding, look
from skipvit.cli import run
from skipvit.config.reading import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A function that makes commands of a server; its Ascend software goes below the folder that it returns."""
    monkeypatch.setattr(doctor, "ASCEND", tmp_path / "Ascend")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def make(**commands):
        for name, script in commands.items():
            path = tmp_path / "bin" / name.replace("_", "-")
            path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{script}")
            path.chmod(0o755)
        return tmp_path / "Ascend"

    return make


@pytest.mark.parametrize(
    "wanted, version, state",
    [
        ("numpy<2", "1.26.4", "ok"),
        ("numpy<2", "2.1", "fails"),
        ("numpy<2", None, "fails"),
        ("mindspore>=2.8,<2.11", "2.8.0", "ok"),
        ("mindspore>=2.8,<2.11", "2.9.0", "warning"),
        ("mindspore>=2.8,<2.11", "2.8.0rc1", "fails"),
        ("mindspore~=2.8", "3.0", "fails"),
        ("onnx>=1.16; extra == 'onnx'", None, "ok"),
    ],
)
def test_versions_are_compared_as_pip_does(monkeypatch, wanted, version, state):
    def installed(name):
        if version is None:
            raise doctor.metadata.PackageNotFoundError(name)
        return version

    package = SimpleNamespace(metadata={"Requires-Python": ">=3.10"}, requires=[wanted])
    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: package)
    monkeypatch.setattr(doctor.metadata, "version", installed)
    assert next(doctor.versions()).state == state
    package.metadata["Requires-Python"] = "<3.8"
    assert next(doctor.versions()) == Finding("Python", ANY_PYTHON, "fails", doctor.INSTALL)


ANY_PYTHON = f"{doctor.platform.python_version()}, needed: <3.8"


def test_the_pinned_version_is_that_of_the_requirements():
    assert f"mindspore=={doctor.PINNED} " in (ROOT / "requirements.txt").read_text()


TABLE = """
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.rc1                 Version: 23.0.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B                | OK            | 68.6        36                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           591  / 14795      0    / 32768         |
+===========================+===============+====================================================+
| 1     910B                | Critical      | 63.7        31                0    / 0             |
| 0                         | 0000:81:00.0  | 0           303  / 15177      0    / 32768         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 55115         | python                   | 30784                   |
"""


@pytest.mark.parametrize(
    "script, state, found",
    [
        (f"print('''{TABLE}''')", "warning", "1 x 910B OK, 1 x 910B Critical"),
        (f"print('''{TABLE}'''.replace('Critical', 'OK      '))", "ok", "2 x 910B OK"),
        (
            "print('dcmi module initialize failed. ret is -8005'); sys.exit(1)",
            "fails",
            "exit code 1; it printed last: d",
        ),
        ("time.sleep(60)", "fails", "no answer in 1 s; it printed nothing"),
        ("os.kill(os.getpid(), 11)", "fails", "ended by SIGSEGV; it printed nothing"),
        ("sys.stdout.buffer.write(bytes(range(256)) * 99)", "fails", "no devices in its table; it printed last: "),
    ],
)
def test_what_npu_smi_says(server, monkeypatch, script, state, found):
    monkeypatch.setattr(doctor, "SMI_ANSWERS_WITHIN_S", 1)
    server(npu_smi=script)
    finding = doctor.npu_smi("fails")
    assert finding.state == state and finding.found.startswith(found) and finding.found.isprintable()
    assert bool(finding.do) == (state != "ok")


def test_no_npu_smi(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.npu_smi("warning").found.startswith("npu-smi cannot be started")


@pytest.mark.parametrize(
    "text, version",
    [
        ("package_name=Ascend-cann-toolkit\nversion=8.1.RC1\ninnerversion=V100R001C21\narch=aarch64\n", "8.1.RC1"),
        ("# version: 1.0\nruntime_running_version=[7.6.0.1.220:8.0.0]\n", "8.0.0"),
        ("Version=24.1.rc1\nascendhal_version=7.35.19\n", "24.1.rc1"),
        ("version=\n\0\n", None),
    ],
)
def test_version_files(tmp_path, text, version):
    (tmp_path / "version.info").write_text(text)
    finding = doctor.software("driver", [tmp_path / "none", tmp_path / "version.info"], (), "fails")
    assert finding.found == f"{version}, {tmp_path / 'version.info'}" if version else finding.state == "fails"


def names(findings, state):
    return [finding.name for finding in findings if finding.state == state]


def test_a_server_with_one_fault_after_another(server, monkeypatch, tmp_path):
    folder = server(npu_smi=f"print('''{TABLE}'''.replace('Critical', 'OK      '))")
    for name, text in {
        "driver/version.info": "Version=25.2.0",
        "cann/x86_64-linux/toolkit.info": "version=8.5.0",
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(doctor, "ascend_devices", lambda: [0, 1])
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(doctor, "cores", lambda: 48)
    monkeypatch.setattr(doctor, "memory_free", lambda: 64 << 30)
    monkeypatch.setattr(doctor, "mindspore", lambda words: iter([Finding("words", repr(words))]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9 << 30))
    for name in doctor.OF_A_JOB:
        monkeypatch.delenv(name, raising=False)

    def faults():
        found = [finding for finding in look("ascend", tmp_path) if finding.name != "packages"]
        assert all(bool(finding.do) == (finding.state != "ok") for finding in found)
        return names(found, "fails"), names(found, "warning")

    assert faults() == ([], [])
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    monkeypatch.setattr(doctor, "memory_free", lambda: 1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    (folder / "cann/x86_64-linux/toolkit.info").write_text("version=7.0.1")
    assert faults() == ([], ["CANN", "cores", "memory", "disk", "variables"])
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith("/dev/hisi"))
    (folder / "driver/version.info").unlink()
    assert faults()[0] == ["devices", "driver"]
    assert names(look("auto", tmp_path), "fails") == []  # it would train on the CPU
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert names(look("cpu", tmp_path), "fails") == ["disk"]


LOADED = f"print('noise'); print('{doctor.MARK}' + '{json.dumps({'name': 'import MindSpore', 'found': '2.8.0'})}')\n"


@pytest.mark.parametrize(
    "script, name, found",
    [
        ("sys.exit('no such library')", "import MindSpore", "exit code 1; it printed last: no such library"),
        (LOADED + "sys.stdout.flush(); os.kill(os.getpid(), 11)", "data", "ended by SIGSEGV; it printed last: noise"),
        (LOADED + "sys.stdout.flush(); time.sleep(60)", "data", "no answer in 2 s; it printed last: noise"),
    ],
)
def test_a_mindspore_that_misbehaves_is_a_line(server, monkeypatch, tmp_path, script, name, found):
    server(python=script)
    monkeypatch.setattr(doctor, "PROBE_ENDS_WITHIN_S", 2)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    *others, last = doctor.mindspore(["cpu"])
    assert (last.name, last.state, last.found) == (name, "fails", found) and last.do
    assert [finding.state for finding in others] == ["ok"] * len(others)


def test_this_machine_and_a_run_with_a_broken_image(tmp_path, monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "2")  # of a job that nothing here may wait for
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / f"images/{split}/{name}").mkdir(parents=True)
            for i in range(4):
                pixels = np.full((40, 40, 3), 50 * i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"images/{split}/{name}/{i}.jpg")
    (tmp_path / "images/val/dog/2.jpg").write_bytes(b"no image")
    model = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 2}
    data = {"kind": "image_folder", "path": str(tmp_path / "images"), "batch_size": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    config = load_config(tmp_path / "run.yaml")
    found = {finding.name: finding for finding in look("cpu", tmp_path / "runs", config)}
    assert found["run"].state == "ok" and not (tmp_path / "runs" / config.name).exists()
    assert found["data"].state == "warning" and "val: 8 images, 2 classes; broken, of a few: " in found["data"].found
    assert "dog/2.jpg" in found["data"].found
    assert found["training step"].state == "ok" and found["training step"].found.startswith("cpu: compiled in ")
    assert found["variables"].do == "unset MS_WORKER_NUM"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": model, "data": data | {"path": "/nowhere"}}))
    refused = doctor.run(tmp_path / "run.yaml", tmp_path / "runs")
    assert refused.state == "fails" and refused.found.startswith("data.path: /nowhere/train is not a folder")


def test_the_command(monkeypatch, tmp_path, capsys):
    good, bad = Finding("cores", "2"), Finding("disk", "none", "fails", "free some")
    monkeypatch.setattr("skipvit.cli.doctor.look", lambda *_: iter([good]))
    assert run("doctor", ["--device", "cpu"]) == 0
    assert capsys.readouterr().out == "ok       cores             2\n"
    monkeypatch.setattr("skipvit.cli.doctor.look", lambda *_: iter([good, bad]))
    assert run("doctor", []) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith(f"fails    disk              none\n{' ' * 27}to do: free some\n")
    assert printed.err == "error: this machine will not do: disk\n"
    assert run("doctor", ["--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"] and result["findings"][1]["do"] == "free some"


@pytest.mark.parametrize(
    "words", [["--devise", "cpu"], ["--device", "gpu"], ["--data.path", "x"], ["--config", "none"]]
)
def test_wrong_words_are_one_line(words, capsys):
    assert run("doctor", words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
