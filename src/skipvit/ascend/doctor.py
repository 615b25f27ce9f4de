"""What this machine has, whether it will train, and what to do about each thing that is missing.

MindSpore may be what is broken: it is tried in a process of its own, whose crash or hang is a finding too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from skipvit.config.config import Config, to_yaml
from skipvit.config.reading import load_config
from skipvit.util import compat
from skipvit.util.cores import ascend_devices, cores, memory_free
from skipvit.util.processes import OF_A_JOB, clean_environment, command, kill_group, signal_name
from skipvit.util.text import counted, one_line, printable, size

PINNED = "2.8.0"  # of MindSpore, as in requirements.txt
CORES_A_DEVICE = 4.6  # docs/data.md: 1000 images/s with the whole recipe
MEMORY_A_PROCESS = 2 << 30  # bytes; MindSpore with a tiny network takes about 0.6 GiB
DISK = 2 << 30  # bytes
SMI_ANSWERS_WITHIN_S, PROBE_ENDS_WITHIN_S = 20, 900
SAMPLE = 8  # images of each split that are decoded
STEPS = 8  # training steps; in float16 the first may be skipped, until the loss scale fits
MARK = "@finding "  # before what the process of its own has found: drivers print lines too
ASCEND = Path("/usr/local/Ascend")
INSTALL = "pip install -r requirements.txt, in an environment of Python 3.10 or 3.11"
GUIDE = "see docs/ascend.md"
State = Literal["ok", "warning", "fails"]


@dataclass(frozen=True)
class Finding:
    """Something of this machine, whether it will do, and what to do if not."""

    name: str
    found: str
    state: State = "ok"
    do: str = ""


def look(device: str = "auto", runs: Path = Path("runs"), config: Config | None = None) -> Iterator[Finding]:
    """Findings, each as soon as it is known.

    Args:
        device: what is to train, `auto`, `cpu` or `ascend`. Only for `ascend` is a fault of it more than a warning.
        runs: where run folders are made.
        config: a run that is to begin here: its images, its weights and room on the disk are looked at too.
    """
    bad: State = "fails" if device == "ascend" else "warning"
    yield from versions()
    if device == "ascend" or device == "auto" and has_ascend():
        yield device_files(bad)
        yield npu_smi(bad)
        yield software("driver", [ASCEND / "driver/version.info"], (), bad)
        homes = [Path(os.environ.get("ASCEND_HOME_PATH", ASCEND)), ASCEND / "cann", ASCEND / "ascend-toolkit/latest"]
        infos = [info for home in homes for info in (*home.glob("*-linux/*.info"), home / "version.cfg")]
        yield software("CANN", infos, compat.accepted_cann(), bad)
    yield from resources(runs)
    others = [name for name in OF_A_JOB if os.environ.get(name)]
    if others:
        yield Finding("variables", f"{', '.join(others)} of another job", "warning", f"unset {' '.join(others)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        if config is not None:
            path.write_text(to_yaml(config), encoding="utf-8")
            yield run(path, runs)
        yield from mindspore([device, str(path)] if config is not None else [device])


def versions() -> Iterator[Finding]:
    """Python and packages, against what this package asks for."""
    try:
        wanted = metadata.distribution("skipvit")
    except metadata.PackageNotFoundError:
        yield Finding("packages", "skipvit itself is not installed", "warning", INSTALL)
        return
    python = SpecifierSet(wanted.metadata["Requires-Python"] or "")
    if not python.contains(platform.python_version(), prereleases=True):
        yield Finding("Python", f"{platform.python_version()}, needed: {python}", "fails", INSTALL)
    good = [f"Python {platform.python_version()}"]
    for requirement in map(Requirement, wanted.requires or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not requirement.specifier.contains(version, prereleases=True):
            found = f"{version or 'not installed'}, needed: {requirement.specifier}"
            yield Finding(requirement.name, found, "fails", INSTALL)
        elif requirement.name == "mindspore" and version != PINNED:
            yield Finding("mindspore", f"{version}, tested: {PINNED}", "warning", f"pip install mindspore=={PINNED}")
        else:
            good.append(f"{requirement.name} {version}")
    yield Finding("packages", ", ".join(good))


def has_ascend() -> bool:
    """Whether there is any sign of Ascend."""
    return bool(ascend_devices() or shutil.which("npu-smi") or ASCEND.is_dir())


def device_files(bad: State) -> Finding:
    """The device files that a process needs, and whether this user may use them."""
    devices = [f"/dev/davinci{number}" for number in ascend_devices()]
    if not devices:
        do = "load the driver; look at ASCEND_RT_VISIBLE_DEVICES; start a container with --device /dev/davinci0 ..."
        return Finding("devices", "no /dev/davinci* that may be used", bad, do)
    for path in (*devices, "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"):
        if not os.access(path, os.R_OK | os.W_OK):
            do = f"--device {path} for a container, else usermod -aG HwHiAiUser $USER and log in anew"
            return Finding("devices", f"{path} is not there or may not be used by this user", bad, do)
    return Finding("devices", ", ".join(devices))


def npu_smi(bad: State) -> Finding:
    """What `npu-smi info` says, in a line: its exit, and the chips of its table by name and health."""
    text, problem = ran(["npu-smi", "info"], SMI_ANSWERS_WITHIN_S)
    chips = Counter(re.findall(r"^\|\s*\d+\s+(\S+)\s*\|\s*(OK|Warning|Alarm|Critical|UNKNOWN)\s*\|", text, re.M))
    if problem or not chips:
        do = "run `npu-smi info` by hand; install the driver; in a container mount npu-smi and /usr/local/dcmi"
        return Finding("npu-smi", f"{problem or 'no devices in its table'}; {last_line(text)}", bad, do)
    found = ", ".join(f"{count} x {name} {health}" for (name, health), count in chips.items())
    if all(health == "OK" for _, health in chips):
        return Finding("npu-smi", found)
    return Finding("npu-smi", found, "warning", "npu-smi info -t health -i NUMBER gives the error code")


def software(name: str, files: list[Path], accepted: tuple[str, ...], bad: State) -> Finding:
    """Driver or CANN, by its first version file (`version=8.5.0`, or `[7.6.0.1.220:8.0.0]`, the inner one first)."""
    for path in files:
        text = path.read_text(errors="replace") if path.is_file() else ""
        found = re.search(r"^\s*\w*version\s*=\s*\[?(?:[\w.]+:)?(\d+\.\d+)(\.\w[\w.]*)?", text, re.M | re.I)
        if found is not None:
            said = f"{found[1]}{found[2] or ''}, {path}"
            if accepted and found[1] not in accepted:
                return Finding(name, said, "warning", f"this MindSpore accepts {', '.join(accepted)}")
            return Finding(name, said)
    return Finding(name, f"no readable version in {ASCEND}", bad, f"install it and source its set_env.sh, {GUIDE}")


def resources(runs: Path) -> Iterator[Finding]:
    """Cores, memory, and the disk of the runs."""
    devices = len(ascend_devices())
    wanted, need = CORES_A_DEVICE * devices, MEMORY_A_PROCESS * max(1, devices)
    if cores() < wanted:
        do = "measure with `skipvit pipeline`; less augmentation needs fewer"
        yield Finding("cores", f"{cores()}, wanted for {counted(devices, 'device')}: {wanted:.0f}", "warning", do)
    else:
        yield Finding("cores", str(cores()))
    if memory_free() < need:
        do = "end other programs, or use fewer processes"
        yield Finding("memory", f"{size(memory_free())} free, wanted: {size(need)}", "warning", do)
    else:
        yield Finding("memory", f"{size(memory_free())} free")
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Finding("disk", f"{runs} cannot be made or written", "fails", "choose another folder with --runs")
    elif free < DISK:
        yield Finding("disk", f"{size(free)} free for {runs}", "warning", "free some space, or choose another --runs")
    else:
        yield Finding("disk", f"{size(free)} free for {runs}")


def run(path: Path, runs: Path) -> Finding:
    """What `train.py --check` says of a configuration: folder, images, weights, room on the disk."""
    words = command("train", "--config", str(path), "--runs", str(runs), "--resume", "auto", "--check")
    text, problem = ran(words, PROBE_ENDS_WITHIN_S)
    if not problem:
        return Finding("run", "could begin")
    errors = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    said = printable(errors[-1]) if errors else f"{problem}; {last_line(text)}"
    return Finding("run", said, "fails", "mend what it names")


def mindspore(words: list[str]) -> Iterator[Finding]:
    """What MindSpore can do here: each stage's finding, from a process of its own."""
    text, problem = ran([sys.executable, "-m", "skipvit.ascend.doctor", *words], PROBE_ENDS_WITHIN_S)
    lines = text.splitlines()
    found = [Finding(**json.loads(line.removeprefix(MARK))) for line in lines if line.startswith(MARK)]
    yield from found
    left = [name for name in STAGES if name not in {finding.name for finding in found}]
    if problem and left:
        other = "\n".join(line for line in lines if not line.startswith(MARK))
        yield Finding(left[0], f"{problem}; {last_line(other)}", "fails", STAGES[left[0]][1])


def ran(words: list[str], within_s: float) -> tuple[str, str]:
    """Run a command apart from any job: what it printed, and what went wrong. One that hangs is killed, and left alone
    where even that does not help (a driver)."""
    variables = clean_environment() | {"GLOG_v": "4", "ASCEND_SLOG_PRINT_TO_STDOUT": "0"}
    with tempfile.TemporaryFile() as file:
        ways = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        try:
            process = subprocess.Popen(words, env=variables, **ways)
        except OSError as error:
            return "", f"{words[0]} cannot be started ({error.strerror})"
        try:
            code = process.wait(within_s)
            problem = f"ended by {signal_name(-code)}" if code < 0 else f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"no answer in {within_s:g} s"
        kill_group(process.pid)
        file.seek(0)
        return file.read(1 << 20).decode(errors="replace"), problem


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" +-=|\t")]
    return f"it printed last: {printable(lines[-1])[:200]}" if lines else "it printed nothing"


# From here on in the process of its own. Each stage imports what it tries.


def load(device: str, config: Config | None) -> Finding:
    """Import MindSpore; how many devices it sees."""
    begun = time.perf_counter()
    import mindspore as ms
    from mindspore.device_context import ascend

    found = f"{ms.__version__} in {time.perf_counter() - begun:.1f} s"
    if device == "cpu" or device == "auto" and not has_ascend():
        return Finding("import MindSpore", found)
    if ascend.is_available():
        return Finding("import MindSpore", f"{found}, sees {counted(ascend.device_count(), 'device')}")
    said = f"{found}, sees no device: {compat.why_no_ascend() or 'it does not say why'}"
    return Finding("import MindSpore", said, "fails" if device == "ascend" else "warning", f"mend the above, {GUIDE}")


def small_run() -> Config:
    """A run whose step compiles in seconds: routed, on the built-in images."""
    model = {"width": 32, "depth": 3, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}
    data = {"kind": "shapes", "batch_size": 16, "train_size": 64, "val_size": 16}
    routes, optim = [{"start": 1, "end": 2, "keep_ratio": 0.5}], {"lr": 0.01, "warmup_epochs": 0}
    return Config.model_validate({"model": model, "routes": routes, "data": data, "optim": optim})


def read_images(device: str, config: Config | None) -> Finding:
    """Take images through the pipeline and MindSpore's data engine; open those of the run, and decode a few."""
    from skipvit.data.crops import validation_image
    from skipvit.data.open import batches_of, open_source

    small = small_run()
    batches = batches_of(small, open_source(small, "train"), small.noise_width(), training=True)
    read = sum(len(images) for images, *_ in batches.dataset().create_tuple_iterator(num_epochs=1, output_numpy=True))
    found, broken = [f"{read} of the built-in images read"], []
    for split in ("train", "val"):
        if config is None:
            break
        source = open_source(config, split)
        for i in range(0, len(source), max(1, len(source) // SAMPLE)):
            try:
                validation_image(source.read(i), config.model.spec().image_size, config.data.eval_crop)
            except Exception as error:  # Pillow's are of many kinds
                broken.append(f"{printable(source.name(i))} ({one_line(error)})")
        found.append(f"{split}: {counted(len(source), 'image')}, {counted(len(source.classes), 'class', 'classes')}")
    if broken:
        do = "replace broken images; data.broken_share allows some"
        return Finding("data", f"{'; '.join(found)}; broken, of a few: {broken[0]}", "warning", do)
    return Finding("data", "; ".join(found))


def train(device: str, config: Config | None) -> Finding:
    """Compile a real training step and run it a few times on one batch, whose loss starts at ln 10 and must fall.

    That it is finite says little on Ascend 910A, which turns NaN into 0 and infinity into a large number.
    """
    from skipvit.engine import devices
    from skipvit.engine.build import build_network
    from skipvit.engine.state import REPORT
    from skipvit.engine.synthetic import random_batch, training_step

    chosen, _ = devices.start(device)
    small = small_run()
    step = training_step(small, chosen, build_network(small, chosen), "routed")
    batch, times, losses = random_batch(small, "routed"), [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        report: Any = step(*batch)
        losses.append(float(report.asnumpy()[REPORT.index("loss")]))
        times.append(time.perf_counter() - begun)
    seconds = f"compiled in {times[0]:.1f} s, then {min(times[1:]):.3f} s"
    found = f"{chosen}: {seconds}; loss {losses[0]:.3f} to {losses[-1]:.3f}"
    if not losses[-1] < losses[0] - 0.1:  # nor if it is not a number
        do = "the loss must fall: driver, CANN and MindSpore may not fit each other"
        return Finding("training step", found, "fails", do)
    if chosen == "cpu" and device == "auto" and has_ascend():
        return Finding("training step", found, "warning", "it would train on the CPU: mend what is above")
    return Finding("training step", found)


STAGES: dict[str, tuple[Callable[[str, Config | None], Finding], str]] = {
    "import MindSpore": (load, f"run `python -c 'import mindspore'`; then {INSTALL}"),
    "data": (read_images, f"mend what it names; if it is NumPy: {INSTALL}"),
    "training step": (train, "mend what is above; GLOG_v=2 skipvit train shows MindSpore's own log"),
}


def main(words: list[str]) -> None:
    """Run the stages; words are the device and, where a run is to begin, the file of its configuration."""
    config = load_config(words[1]) if len(words) > 1 else None
    for name, (stage, do) in STAGES.items():
        try:
            finding = stage(words[0], config)
        except (Exception, SystemExit) as error:
            finding = Finding(name, one_line(error), "fails", do)
        sys.stdout.write(f"\n{MARK}{json.dumps(asdict(finding))}\n")  # to the process that asks
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
