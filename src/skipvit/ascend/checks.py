"""Checks of a machine, one function a part: what was found, whether it will do, what to do. None of them imports MindSpore."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from skipvit.ascend import machine as facts
from skipvit.ascend.machine import Device, Machine

CORES_A_DEVICE = 4.6  # docs/data.md: 1000 images/s with the whole recipe
MIB_A_PROCESS = 2048  # MindSpore with a tiny network takes about 600, see the last line of the table
GUIDE = "docs/ascend.md"
JOB = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "RANK_SIZE",
    "RANK_ID",
)  # set for a job's processes


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    found: str
    state: Literal["ok", "warning", "fails"] = "ok"
    do: str = ""


@dataclass
class Visit:
    """What is asked, of which machine.

    Args:
        run: the command line of a run (`--config FILE ...`), or nothing.
    """

    machine: Machine
    device: str = "auto"
    runs: Path = Path("runs")
    run: list[str] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)

    @property
    def bad(self) -> Literal["warning", "fails"]:
        """How bad it is when something of Ascend is wrong: without it, `auto` still trains on the CPU."""
        return "fails" if self.device == "ascend" else "warning"

    def missing(self, name: str, found: str, do: str) -> Row:
        """A row for an absent part of Ascend: a machine that has none of it is no worse for that."""
        if self.device == "auto" and not self.has_ascend():
            return Row(name, "none (CPU only)")
        return Row(name, found, self.bad, do)

    def has_ascend(self) -> bool:
        """Whether there is any sign of Ascend."""
        machine = self.machine
        return bool(
            _davinci(machine)
            or machine.which("npu-smi")
            or facts.find_cann(machine)
            or facts.find_driver(machine, "driver")
        )


def python(visit: Visit) -> Iterator[Row]:
    bounds = next(iter(facts.requirements("skipvit")), "python")[len("python") :]
    version = platform.python_version()
    if facts.satisfies(version, bounds):
        yield Row("Python", f"{version}, {platform.machine()}")
    else:
        yield Row("Python", f"{version}, needed: {bounds}", "fails", "make an environment with Python 3.10 or 3.11")


def packages(visit: Visit) -> Iterator[Row]:
    """MindSpore and NumPy for themselves, the others together."""
    wanted = facts.requirements("skipvit")[1:]
    if not wanted:
        yield Row("packages", "skipvit itself is not installed", "warning", "pip install -r requirements.txt")
    others = []
    for requirement in wanted:
        name, bounds = re.match(r"([\w.-]+)\s*(.*)", requirement).groups()
        version = facts.installed(name)
        fits = version is not None and facts.satisfies(version, bounds)
        if not fits:
            yield Row(
                name, f"{version or 'not installed'}, needed: {bounds}", "fails", "pip install -r requirements.txt"
            )
        elif name == "mindspore" and version != facts.PINNED:
            yield Row(name, f"{version} (tested: {facts.PINNED})", "warning", f"pip install mindspore=={facts.PINNED}")
        elif name in ("mindspore", "numpy"):
            yield Row(name, version)
        else:
            others.append(f"{name} {version}")
    if others:
        yield Row("packages", ", ".join(others))


def driver(visit: Visit) -> Iterator[Row]:
    version, firmware = (facts.find_driver(visit.machine, part) for part in ("driver", "firmware"))
    if version is None:
        yield visit.missing(
            "driver", "no readable driver/version.info", f"install the Ascend driver and firmware, see {GUIDE}"
        )
        return
    found = f"{version}, firmware {firmware or 'unknown'}"
    known = facts.find_cann(visit.machine)
    fitting = facts.DRIVERS.get(facts.two_parts(known[1])) if known and known[1] else None
    if fitting and facts.two_parts(version) not in fitting:
        do = f"CANN {known[1]} is published with driver {', '.join(fitting)}; install one of these"
        yield Row("driver", found, "warning", do)
    else:
        yield Row("driver", found)


# What npu-smi says instead of its table, and what to do.
SMI_ERRORS = {
    "-8020": "another container or process holds the devices: stop it, or give this one other devices",
    "-8005": "the driver is not loaded (restart after an update), or another container holds the devices (stop it)",
}


def devices(visit: Visit) -> Iterator[Row]:
    smi = visit.machine.which("npu-smi")
    if smi is None:
        do = "install the driver; in a container mount npu-smi, /usr/local/dcmi and the driver's folder"
        yield visit.missing("devices", "no npu-smi on the PATH", do)
        return
    answer = visit.machine.run([smi, "info"])
    visit.devices = facts.parse_npu_smi(answer.text)
    if not visit.devices:
        printed = f"it printed: {facts.said(answer.text.splitlines()) or 'nothing'}"
        known = (do for code, do in SMI_ERRORS.items() if code in answer.text)
        found = f"npu-smi info: {', '.join(filter(None, (answer.problem, printed)))}"
        yield visit.missing("devices", found, next(known, "run `npu-smi info` by hand; see the driver's log"))
        return
    names = ", ".join(f"{count} x {name}" for name, count in Counter(device.name for device in visit.devices).items())
    if all(device.first_generation for device in visit.devices):
        yield Row(
            "devices", f"{names}, first generation (910A), npu-smi {facts.npu_smi_version(answer.text) or 'unknown'}"
        )
    else:
        do = "this project is written for 910A; check results yourself"
        yield Row("devices", f"{names}: not the first generation", "warning", do)
    yield from _health(visit)


def _health(visit: Visit) -> Iterator[Row]:
    """`npu-smi` knows OK, Warning, Alarm, Critical and UNKNOWN."""
    ill = [device for device in visit.devices if device.health.upper() != "OK"]
    if ill:
        worst = visit.bad if any(device.health.upper() != "WARNING" for device in ill) else "warning"
        said = ", ".join(f"device {device.number}: {device.health}" for device in ill)
        yield Row("device health", said, worst, f"npu-smi info -t health -i {ill[0].number} gives the error code")
    else:
        yield Row("device health", "OK")
    used = [device for device in visit.devices if device.hbm_mb and device.hbm_used_mb > device.hbm_mb // 8]
    if used:
        said = ", ".join(f"device {device.number}: {device.hbm_used_mb} of {device.hbm_mb} MB" for device in used)
        yield Row("device memory", f"in use, {said}", "warning", "npu-smi info lists the processes; stop them or wait")


def _davinci(machine: Machine) -> list[str]:
    return [name for name in machine.names("/dev") if re.fullmatch(r"davinci\d+", name)]


def device_files(visit: Visit) -> Iterator[Row]:
    """The device files, and whether this user may use them."""
    machine, files = visit.machine, _davinci(visit.machine)
    if not files:
        yield visit.missing(
            "device files", "no /dev/davinci*", "load the driver; start a container with --device /dev/davinci0 ..."
        )
        return
    needed = [*files, "davinci_manager", "devmm_svm", "hisi_hdc"]
    absent = [name for name in needed if not machine.path(f"/dev/{name}").exists()]
    closed = [
        name for name in needed if name not in absent and not os.access(machine.path(f"/dev/{name}"), os.R_OK | os.W_OK)
    ]
    if absent:
        do = f"give the container --device /dev/{absent[0]}, or load the driver"
        yield Row("device files", f"no /dev/{absent[0]}", visit.bad, do)
    elif closed:
        do = "usermod -aG HwHiAiUser $USER (or the driver's group), then log in anew"
        yield Row("device files", f"/dev/{closed[0]} may not be used by this user", visit.bad, do)
    elif visit.devices and len(visit.devices) != len(files):
        do = "compare npu-smi info with ls /dev/davinci*"
        yield Row("device files", f"{len(files)} of {len(visit.devices)} devices have one", "warning", do)
    else:
        yield Row("device files", f"{len(files)}: /dev/{files[0]}" + (" ..." if len(files) > 1 else ""))


def cann(visit: Visit) -> Iterator[Row]:
    known, accepted = facts.find_cann(visit.machine), facts.accepted_cann()
    if known is None:
        yield visit.missing(
            "CANN", "none in /usr/local/Ascend or ~/Ascend", f"install toolkit and 910 operators, see {GUIDE}"
        )
        return
    home, version = known
    if version is None:
        yield Row(
            "CANN", f"{home} without a readable version", visit.bad, "install CANN again, or correct ASCEND_HOME_PATH"
        )
    elif facts.two_parts(version) not in accepted:
        # MindSpore only warns, too: whether it runs, the training step shows.
        do = f"this MindSpore accepts {', '.join(accepted)}: install one of these, or the MindSpore that goes with {version}"
        yield Row("CANN", f"{version} in {home}", "warning", do)
    else:
        yield Row("CANN", f"{version} in {home}")
    chips = facts.compiled_for(visit.machine, home)
    if chips and "ascend910" not in chips:
        do = "install Ascend-cann-910-ops (8.5 and later) or Ascend-cann-kernels-910 of the toolkit's version"
        yield Row("CANN operators", f"compiled for {', '.join(chips)}, not for 910A (ascend910)", "warning", do)


def cann_environment(visit: Visit) -> Iterator[Row]:
    """The variables that MindSpore's own start-up check warns about; CANN in its default place may do without."""
    known = facts.find_cann(visit.machine)
    if known is None:
        return
    environment, home = visit.machine.environment, known[0]
    wanted = {"PYTHONPATH": "opp/built-in/op_impl/ai_core/tbe", "LD_LIBRARY_PATH": "/lib64", "ASCEND_OPP_PATH": "/opp"}
    lacking = [name for name, part in wanted.items() if part not in environment.get(name, "")]
    scripts = [f"{folder}/set_env.sh" for folder in (home, str(Path(home).parent))]
    script = next((name for name in scripts if visit.machine.path(name).is_file()), scripts[0])
    if lacking:
        yield Row("CANN variables", f"{', '.join(lacking)} not set for CANN", "warning", f"source {script}")
    else:
        yield Row("CANN variables", "set")


def cann_packages(visit: Visit) -> Iterator[Row]:
    """CANN's own Python packages, which MindSpore imports when it compiles for a device."""
    known = facts.find_cann(visit.machine)
    if known is None:
        return
    said = filter(None, visit.machine.environment.get("PYTHONPATH", "").split(os.pathsep))
    places = [*(str(visit.machine.path(place)) for place in said), *sys.path]
    lacking = [name for name in ("te", "hccl") if PathFinder.find_spec(name, places) is None]
    if lacking:
        wheels = " ".join(f"{known[0]}/lib64/{name}-*.whl" for name in lacking)
        state = visit.bad if "te" in lacking else "warning"  # MindSpore itself imports te alone
        do = f"source set_env.sh, or pip install sympy {wheels}"
        yield Row("CANN packages", f"Python finds no {' or '.join(lacking)}", state, do)
    else:
        yield Row("CANN packages", "te, hccl")


def addresses(visit: Visit) -> Iterator[Row]:
    """The network ports of the devices: several servers and rank tables need them."""
    text = visit.machine.read("/etc/hccn.conf")
    found = facts.parse_hccn(text or "")
    count = len(visit.devices) or len(_davinci(visit.machine))
    do = "several servers and rank tables need one a device: hccn_tool -i 0 -ip -s address 192.168.100.101 netmask 255.255.255.0"
    if not found and count <= 1:
        yield Row("device addresses", "one device needs none" if count else "no devices that need any")
    elif not found:
        yield Row(
            "device addresses",
            "none in /etc/hccn.conf" if text is not None else "no readable /etc/hccn.conf",
            "warning",
            do,
        )
    elif len(found) < count or len(set(found.values())) < len(found):
        what = f"{len(found)} for {count} devices" if len(found) < count else "one address twice"
        yield Row("device addresses", f"/etc/hccn.conf: {what}", "warning", do)
    else:
        yield Row("device addresses", f"{len(found)} in /etc/hccn.conf: {next(iter(found.values()))} ...")


def processors(visit: Visit) -> Iterator[Row]:
    cores = facts.processors(visit.machine)
    if visit.devices and cores < CORES_A_DEVICE * len(visit.devices):
        need = f"{CORES_A_DEVICE * len(visit.devices):.0f} for {len(visit.devices)} devices at 1000 images/s each (docs/data.md)"
        do = "measure with `skipvit pipeline`; less augmentation needs fewer"
        yield Row("cores", f"{cores:g}, wanted: {need}", "warning", do)
    else:
        yield Row("cores", f"{cores:g}")


def memory(visit: Visit) -> Iterator[Row]:
    mib, need = facts.memory_mib(visit.machine), MIB_A_PROCESS * max(1, len(visit.devices))
    if mib is None:
        yield Row("memory", "unknown", "warning", "compare `free -g` with what a run takes")
    elif mib < need:
        do = "end other programs or use fewer processes"
        yield Row("memory", f"{size_of(mib)} free, wanted: {size_of(need)}", "warning", do)
    else:
        yield Row("memory", f"{size_of(mib)} free")


def size_of(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def shared_memory(visit: Visit) -> Iterator[Row]:
    folder = visit.machine.path("/dev/shm")
    free = facts.free_mib(folder) if folder.is_dir() else None
    if free is None or not os.access(folder, os.W_OK):
        yield Row("/dev/shm", "missing or not writable", "warning", "mount it: mount -t tmpfs tmpfs /dev/shm")
    elif free < 128:
        yield Row("/dev/shm", f"{size_of(free)} free", "warning", "start the container with a larger --shm-size")
    else:
        yield Row("/dev/shm", f"{size_of(free)} free")


def disk(visit: Visit) -> Iterator[Row]:
    """Room for runs; with a configuration, see also `checkpoints`."""
    folder, free = visit.runs, facts.free_mib(visit.runs)
    place = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Row("disk", f"{folder} cannot be made or written", "fails", "choose another folder with --runs")
    elif free is None or free < 2048:
        found = "unknown" if free is None else size_of(free)
        yield Row("disk", f"{found} free for {folder}", "warning", "free some space or choose another --runs")
    else:
        yield Row("disk", f"{size_of(free)} free for {folder}")


def variables(visit: Visit) -> Iterator[Row]:
    """Variables that change how MindSpore, CANN and HCCL behave; those that set other jobs up are in the way of this one."""
    environment = visit.machine.environment
    ours = {"MS_JIT_MODULES"} | ({"GLOG_v"} if environment.get("GLOG_v") == "4" else set())
    pattern = r"(ASCEND|HCCL|MS|GLOG|RANK|DEVICE|GE|TE)_\w+"
    shown = sorted(name for name in environment if re.fullmatch(pattern, name) and name not in ours)
    yield Row(
        "variables", ", ".join(f"{name}={environment[name][:60]}" for name in shown) or "none of Ascend or MindSpore"
    )
    home = environment.get("ASCEND_HOME_PATH")
    if home and not os.path.isdir(visit.machine.path(home)):
        do = "source the set_env.sh of the CANN that is installed, or unset ASCEND_HOME_PATH"
        yield Row("variables", f"ASCEND_HOME_PATH={home}: no such folder", "warning", do)
    started = [name for name in JOB if environment.get(name)]
    if started:
        do = f"unset {' '.join(started)}: training would wait for the processes of that job"
        yield Row("variables", f"{', '.join(started)} of another distributed job", "warning", do)
    yield from _rank_table(visit)


def _rank_table(visit: Visit) -> Iterator[Row]:
    table = visit.machine.environment.get("RANK_TABLE_FILE")
    if not table:
        return
    try:
        servers = json.loads(visit.machine.read(table) or "")["server_list"]
        ranks = sum(len(server["device"]) for server in servers)
    except (ValueError, KeyError, TypeError):
        yield Row("rank table", f"{table} is no rank table", "warning", "unset RANK_TABLE_FILE: msrun needs none")
        return
    do = "unset it unless you start processes by hand; for msrun use ./run_distributed.sh --rank_table FILE"
    yield Row("rank table", f"{table}: {ranks} ranks on {len(servers)} servers", "warning", do)


def launcher(visit: Visit) -> Iterator[Row]:
    """run_distributed.sh and msrun start the `python` on the PATH, which need not be the one that has MindSpore."""
    machine = visit.machine
    msrun, started = machine.which("msrun"), machine.which("python")
    do = "activate the environment that has MindSpore, or put its bin folder first (several devices only)"
    if started is None or msrun is None:
        yield Row("launcher", f"no {'msrun' if started else 'python'} on the PATH", "warning", do)
        return
    prefix = machine.run([started, "-c", "import sys; print(sys.prefix)"]).text.strip().splitlines()[-1:]
    if prefix == [sys.prefix]:
        yield Row("launcher", f"{msrun} and {started}")
    else:
        yield Row("launcher", f"msrun would start {started}, and this is {sys.executable}", "warning", do)


GENERAL = (python, packages)
ASCEND = (driver, devices, device_files, cann, cann_environment, cann_packages, addresses)
HOST = (processors, memory, shared_memory, disk, variables, launcher)
