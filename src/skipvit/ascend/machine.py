"""What a machine has, read from its files and commands without MindSpore: Ascend devices, driver, CANN, memory, packages.

Everything that is read may be missing, unreadable or nonsense; then there is less to tell, and no exception.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

MOST = 1 << 20  # characters taken of a file or of what a command prints
PINNED = "2.8.0"  # of MindSpore, as in requirements.txt

# Names that npu-smi and CANN give to the chips of the first generation, without `Ascend`: here 910B is an early 910, and the
# second generation is 910B1 to 910B4 (CANN lists ascend910a, proa, b, prob and premiuma as one family, `ascend910`).
FIRST_GENERATION = ("910", "910A", "910PROA", "910PREMIUMA", "910B", "910PROB")
FIRST_GENERATION_HBM_MB = 32768


@dataclass(frozen=True)
class Pair:
    """Versions that were published as belonging together."""

    mindspore: str
    cann: str
    driver: str
    source: str


MINDFORMERS = "https://www.mindspore.cn/mindformers/docs/en/r1.9.0/installation.html"
PAIRS = (
    Pair("2.7.0", "8.2.RC1", "25.2.0", MINDFORMERS),
    Pair("2.7.1", "8.3.RC1", "25.3.RC1", MINDFORMERS),
    Pair("2.7.2", "8.5.0", "25.5.0", MINDFORMERS),
    Pair(PINNED, "8.2, 8.3, 8.5", "as CANN's", "the mindspore 2.8.0 package: run_check/_check_version.py, line 272"),
)
# Drivers for CANN 8.5.0: https://www.hiascend.com/document/detail/en/canncommercial/850/releasenote/releasenote_0000.html
DRIVERS = {"8.2": ("25.2",), "8.3": ("25.3",), "8.5": ("25.0", "25.2", "25.3", "25.5")}
# What MindSpore 2.8.0 accepts; for another one its own list is read, see `accepted_cann`.
CANN_OF_PINNED = ("8.2", "8.3", "8.5")


@dataclass(frozen=True)
class Answer:
    """What a command printed (both streams together) and why that is all, if anything went wrong."""

    text: str
    problem: str = ""


@dataclass(frozen=True)
class Machine:
    """Where files, commands and variables are looked for; tests give another root, PATH and Python.

    Args:
        patience: seconds that a command may take.
        probe_patience: seconds for importing MindSpore, reading a run's data and compiling a step.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    python: str = sys.executable
    patience: float = 20.0
    probe_patience: float = 900.0

    def path(self, name: str | Path) -> Path:
        return self.root / str(name).lstrip("/")

    def read(self, name: str | Path) -> str | None:
        """The beginning of a text file; None if it is not there or cannot be read."""
        try:
            if not os.path.isfile(self.path(name)):  # Path.is_file raises what it may not look at
                return None
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read(MOST)
        except (OSError, ValueError):
            return None

    def names(self, folder: str) -> list[str]:
        """What is in a folder; nothing if that cannot be known."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return []

    def which(self, command: str) -> str | None:
        return shutil.which(command, path=self.environment.get("PATH", ""))

    def run(
        self, words: list[str], patience: float | None = None, environment: Mapping[str, str] | None = None
    ) -> Answer:
        """Run a command. It is killed, and if even that does not help left alone, when its time is over."""
        patience = self.patience if patience is None else patience
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(self.environment if environment is None else environment),
            )
        except (OSError, ValueError) as error:
            return Answer("", f"cannot be started ({getattr(error, 'strerror', None) or error})")
        pieces: list[bytes] = []
        reader = threading.Thread(target=_collect, args=(process.stdout, pieces), daemon=True)
        end = time.monotonic() + patience
        reader.start()
        reader.join(patience)
        problem = f"no answer in {patience:g} s" if reader.is_alive() else ""
        try:
            # A driver that hangs keeps its process from dying: never wait for longer than this.
            code = process.wait(max(0.1, min(2.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            _kill(process)
            code = 0
        if code and not problem:
            problem = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        return Answer(b"".join(pieces).decode("utf-8", errors="replace"), problem)


def said(lines: list[str]) -> str:
    """The first line that says something, without what would upset a terminal."""
    line = next((line.strip() for line in lines if line.strip(" +-=|\t")), "")
    return "".join(character if character.isprintable() else "?" for character in line)[:120]


def _collect(stream, pieces: list[bytes]) -> None:
    size = 0
    for piece in iter(lambda: stream.read1(65536), b""):
        pieces.append(piece)
        size += len(piece)
        if size > MOST:
            break  # whoever goes on printing is killed


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class Device:
    """A chip of `npu-smi info`."""

    number: int
    name: str
    health: str
    hbm_used_mb: int | None = None
    hbm_mb: int | None = None

    @property
    def first_generation(self) -> bool:
        """Whether this is a 910A or one of its sisters. Newer servers also write `Ascend910`, but have more memory."""
        known = self.name.upper().removeprefix("ASCEND") in FIRST_GENERATION
        return known and (self.hbm_mb is None or self.hbm_mb <= FIRST_GENERATION_HBM_MB)


def parse_npu_smi(text: str) -> list[Device]:
    """The chips in the table that `npu-smi info` prints: two lines each, name and health, then bus and memory."""
    devices: list[Device] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:
            continue  # processes have four columns
        first = re.fullmatch(r"(\d{1,4})\s+(\d*[A-Za-z][\w.-]*|\d{3,}[\w.-]*)", cells[0])
        if first and re.fullmatch(r"[A-Za-z]+", cells[1]):
            devices.append(Device(int(first[1]), first[2], cells[1]))
        elif devices and devices[-1].hbm_mb is None and re.match(r"[0-9A-Fa-f]{4}:", cells[1]):
            memory = re.findall(
                r"(\d+)\s*/\s*(\d+)", cells[2]
            )  # of the device's own processor, then of its main memory
            if memory:
                used, total = (int(number) for number in memory[-1])
                device = devices.pop()
                devices.append(Device(device.number, device.name, device.health, used, total))
    return devices


def npu_smi_version(text: str) -> str | None:
    found = re.search(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)", text)
    return found[2] if found else None


def parse_info(text: str) -> dict[str, str]:
    """`key=value` lines, keys in lower case; the first of a key counts."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            values.setdefault(key.strip().lower(), value.strip())
    return values


def version_of(text: str | None) -> str | None:
    """The version in an `install.info`, `version.info` or `version.cfg` of Ascend software."""
    values = parse_info(text or "")
    for key in ("version_dir", "version", "toolkit_running_version", "runtime_running_version"):
        # version.cfg: [7.6.0.1.220:8.0.0], the inner number first
        value = values.get(key, "").strip("[] ").split(":")[-1]
        if re.match(r"\d+\.\w", value):
            return value
    return None


def two_parts(version: str) -> str:
    """8.2 of 8.2.RC1."""
    return ".".join(version.split(".")[:2])


def cann_homes(machine: Machine) -> list[str]:
    """Where CANN may be: what set_env.sh says, then the default places, of 8.5 (`cann`) and of what came before."""
    home = machine.environment.get("HOME", "/root")
    places = [
        f"{base}/{name}"
        for base in ("/usr/local/Ascend", f"{home}/Ascend")
        for name in ("cann", "ascend-toolkit/latest")
    ]
    said = [
        machine.environment[name]
        for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
        if machine.environment.get(name)
    ]
    return list(dict.fromkeys(said + places))


def find_cann(machine: Machine) -> tuple[str, str | None] | None:
    """Folder and version (None: it has no readable one) of the CANN that a shell would use; None if there is none."""
    for home in cann_homes(machine):
        if not os.path.isdir(machine.path(home)):
            continue
        infos = [
            f"{home}/{name}/ascend_toolkit_install.info" for name in machine.names(home) if name.endswith("-linux")
        ]
        for info in [*infos, f"{home}/compiler/version.info", f"{home}/version.cfg", f"{home}/version.info"]:
            version = version_of(machine.read(info))
            if version:
                return home, version
        return home, None
    return None


def accepted_cann() -> tuple[str, ...]:
    """CANN versions that the installed MindSpore accepts, read from its start-up check; or those of the pinned one."""
    try:
        text = Path(metadata.distribution("mindspore").locate_file("mindspore/run_check/_check_version.py")).read_text()
        versions = re.search(r"class AscendEnvChecker.*?self\.version = \[([^\]]*)\]", text, re.DOTALL)[1]
        return tuple(re.findall(r"\d+\.\d+", versions)) or CANN_OF_PINNED
    except Exception:  # it is not ours: it may be missing or look otherwise
        return CANN_OF_PINNED


def compiled_for(machine: Machine, home: str) -> list[str]:
    """Chip families whose compiled operators CANN has here, e.g. `ascend910` (910A) or `ascend910b`."""
    folder = f"{home}/opp/built-in/op_impl/ai_core/tbe/kernel"
    return [name for name in machine.names(folder) if name.startswith("ascend")]


def find_driver(machine: Machine, part: str) -> str | None:
    """Version of the `driver` or the `firmware`; None if it cannot be read."""
    key = f"{part}_install_path_param"
    base = parse_info(machine.read("/etc/ascend_install.info") or "").get(key) or "/usr/local/Ascend"
    return version_of(machine.read(f"{base}/{part}/version.info"))


def parse_hccn(text: str) -> dict[int, str]:
    """Addresses of the devices' own network ports in /etc/hccn.conf (`address_0=192.168.100.101`)."""
    found = re.findall(r"^\s*(?:IPv6)?address_(\d{1,4})\s*=\s*([0-9A-Fa-f.:]+)\s*$", text, re.MULTILINE)
    return {int(number): address for number, address in found}


def processors(machine: Machine) -> float:
    """Cores that this process may use: those it is bound to, or fewer if a container's quota is smaller."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = (machine.read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(quota) == 2 and all(part.isdigit() and int(part) for part in quota):
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def memory_mib(machine: Machine) -> int | None:
    """Memory that is free for a new process, or what a container's limit leaves of it."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", machine.read("/proc/meminfo") or "", re.MULTILINE)
    limit = (machine.read("/sys/fs/cgroup/memory.max") or "").strip()
    used = (machine.read("/sys/fs/cgroup/memory.current") or "").strip()
    left = [int(found[1]) >> 10] if found else []
    if limit.isdigit() and used.isdigit():
        left.append(max(0, int(limit) - int(used)) >> 20)
    return min(left, default=None)


def free_mib(folder: Path) -> int | None:
    """Free space where a folder is or would be made."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free >> 20
    except OSError:
        return None


def installed(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except Exception:  # a half-removed package has metadata of any shape
        return None


def requirements(package: str) -> list[str]:
    """What a package asks for, `python` first: ["python>=3.10,<3.12", "numpy<2", ...], without its extras."""
    try:
        python = metadata.metadata(package)["Requires-Python"] or ""
        return [f"python{python}", *(r for r in metadata.requires(package) or [] if ";" not in r)]
    except Exception:
        return []


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as `>=2.8,<2.11`; what is not a plain comparison is taken as met."""
    for sign, bound in re.findall(r"(>=|<=|==|!=|<|>)\s*([\d.]+)", bounds):
        have, want = _numbers(version), _numbers(bound)
        length = max(len(have), len(want))
        have, want = (numbers + (0,) * (length - len(numbers)) for numbers in (have, want))
        met = {
            ">=": have >= want,
            "<=": have <= want,
            "==": have == want,
            "!=": have != want,
            "<": have < want,
            ">": have > want,
        }
        if not met[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))
