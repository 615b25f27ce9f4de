"""Damage checkpoints in every way, and read each through every door: the right result, or one line that refuses it.

    python benchmarks/damaged_checkpoints.py --count 200

A tiny run is trained. Then a damaged copy of its last checkpoint stands in for a newer one, while the run is resumed
and evaluated, and is itself named to be evaluated, predicted with, exported, converted and started from. What ends with
exit code 0 must give what the undamaged one gives, bit by bit; anything else must end with code 1 or 2 and one short
line of error. All but a few of the resumed and evaluated runs stop where the first graph would be compiled. A process
of its own reads them; its death, or a minute without a word, is a fault of that case. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

import numpy as np
import yaml
from safetensors.numpy import load_file

from skipvit import training
from skipvit.cli import exit_code, run
from skipvit.config.reading import load_config
from skipvit.engine.build import build_network, build_optimizer, build_state
from skipvit.engine.checkpoint import read, saved, weights_of
from skipvit.engine.checkpoint_file import TYPES, read_entries
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import Run

CONFIG = {
    "name": "run",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 8,
        "depth": 1,
        "heads": 2,
        "patch": 16,
        "image_size": 32,
        "num_classes": 10,
    },
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 32, "val_size": 16},
    "optim": {"epochs": 2, "warmup_epochs": 0},
    "ema": {"decay": 0.9},
}
NEWEST = "epoch_0003_step_000002.ckpt"
LONGEST_LINE, HANGS_AFTER_S, WHOLE_EVERY = 600, 60, 25
Entry = tuple[bytes, tuple[int, ...], bytes, bytes]  # name, dimensions, type, content


# The format, see `skipvit.engine.checkpoint_file`, written by hand


def varint(number: int) -> bytes:
    number, parts = number & 2**64 - 1, []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def message(entry: Entry) -> bytes:
    name, dims, kind, content = entry
    tensor = b"".join(field(1, side) for side in dims) + field(2, kind) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


def with_checksum(content: bytes) -> bytes:
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big")


def entries_of(path: Path) -> list[Entry]:
    found = read_entries(path)
    return [(name.encode(), r.shape or (0,), r.kind.encode(), bytes(r.data)) for name, r in found.items()]


# Damages


def flipped(content: bytes, chance: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        result[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(result)


def of_bytes(whole: bytes, borders: list[int], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """What disks, copies and crashes do; without end."""
    size = len(whole)
    while True:
        yield "flipped bits", flipped(whole, chance)
        yield "cut at a border", whole[: chance.choice(borders)]
        yield "cut", whole[: chance.randrange(size)]
        begin, end = sorted(chance.sample(range(size), 2))
        yield "a hole", whole[:begin] + b"\0" * (end - begin) + whole[end:]
        yield "a part missing", whole[:begin] + whole[end:]
        yield "a record missing", whole[: borders[3]] + whole[chance.choice(borders[4:]) :]
        yield "longer", whole + chance.randbytes(chance.randint(1, 99))
        yield "random bytes", chance.randbytes(chance.randint(0, 999))
        yield "random bytes with a checksum", with_checksum(chance.randbytes(chance.randint(0, 999)))


ONCE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "nothing but a checksum": lambda whole: with_checksum(b""),
    "without its checksum": lambda whole: whole[:-17],
    "twice": lambda whole: whole * 2,
    "twice within a checksum": lambda whole: with_checksum(whole[:-17] * 2),
    "a text": lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
    "an archive": lambda whole: b"PK\3\4" + whole,
}


def of_entries(entries: list[Entry], chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """With a right checksum, what no run writes; without end."""
    while True:
        for what, change in CHANGES.items():
            place = chance.randrange(len(entries))
            changed = change(entries[place], chance)
            changed = [*entries[:place], *changed, *entries[place + 1 :]]
            yield f"{what}: {entries[place][0].decode()}", with_checksum(b"".join(map(message, changed)))
        for key, value in POSITIONS:
            name = f"trainer.position.{key}".encode()
            others = [entry for entry in entries if entry[0] != name]
            yield f"{key} {value}", with_checksum(b"".join(map(message, [*others, *numbers(name, value)])))


def resized(entry: Entry, dims: tuple[int, ...], kind: str | None = None) -> list[Entry]:
    """Of these dimensions and this type, with as much content as they have."""
    size = int(np.prod(dims)) * np.dtype(TYPES[kind or entry[2].decode()]).itemsize
    content = (entry[3] * (size // len(entry[3]) + 1))[:size]
    return [(entry[0], dims, kind.encode() if kind else entry[2], content)]


def numbers(name: bytes, value: float | list | None) -> list[Entry]:
    if value is None:
        return []
    array = np.array(value, np.float64 if isinstance(value, float) else np.int64)
    return [(name, array.shape or (0,), b"Float64" if isinstance(value, float) else b"Int64", array.tobytes())]


CHANGES: dict[str, Callable[[Entry, random.Random], list[Entry]]] = {
    "missing": lambda e, chance: [],
    "there twice": lambda e, chance: [e, e],
    "a thousand times": lambda e, chance: [e] * 1000,
    "another name": lambda e, chance: [(e[0] + chance.choice([b"x", b".weight", b"\xff", b"\x1b[31m"]), *e[1:])],
    "no name": lambda e, chance: [(b"", *e[1:])],
    "a name of 100,000 letters": lambda e, chance: [(b"x" * 100_000, *e[1:])],
    "another type": lambda e, chance: resized(e, e[1], chance.choice([k for k in TYPES if k != e[2].decode()])),
    "another type, same content": lambda e, chance: [(*e[:2], chance.choice([b"Int64", b"Float16", b"Bool"]), e[3])],
    "no type": lambda e, chance: [(*e[:2], chance.choice([b"", b"str", b"\xff" * 99, b"Float\n32"]), e[3])],
    "another shape": lambda e, chance: resized(e, (*e[1][:-1], max(1, e[1][-1]) + chance.randint(1, 9))),
    "one dimension more": lambda e, chance: resized(e, (1, *(e[1] if all(e[1]) else ()), 1)),
    "negative": lambda e, chance: [(e[0], (-chance.randint(1, 2**40), *e[1][1:]), *e[2:])],
    "nothing": lambda e, chance: [(e[0], (0, 3), e[2], b"")],
    "2,000 dimensions": lambda e, chance: [(e[0], (1,) * 2000, *e[2:])],
    "terabytes": lambda e, chance: [(e[0], (2**20, 2**20, chance.randint(1, 99)), *e[2:])],
    "overflowing": lambda e, chance: [(e[0], (2**31 - 1,) * chance.randint(2, 8), *e[2:])],
    "longer than its shape": lambda e, chance: [(*e[:3], e[3] + chance.randbytes(chance.randint(1, 99)))],
    "shorter than its shape": lambda e, chance: [(*e[:3], e[3][: chance.randrange(len(e[3]))])],
}
POSITIONS = [
    ("epoch", None), ("epoch", -1), ("epoch", 10**15), ("epoch", 0.5), ("epoch", [1, 2]),
    ("step", None), ("step", 99), ("steps", 99), ("steps", 0), ("images", 0), ("images", 7), ("images", 2**62),
    ("best", float("nan")), ("best", 1e9), ("data", None), ("data", -5),
]  # fmt: skip


def others(folder: Path) -> dict[str, Callable[[Path], object]]:
    """What is no regular file, or cannot be read, in a checkpoint's place."""
    return {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link loop": lambda path: path.symlink_to(path.name),
        "a link to nowhere": lambda path: path.symlink_to("gone"),
        "a link to a folder": lambda path: path.symlink_to(folder),
        "endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: path.symlink_to("/dev/null"),
        "a device that is full": lambda path: path.symlink_to("/dev/full"),
        "unreadable": lambda path: path.symlink_to("/proc/self/mem"),  # root may read what others may not
        "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
        "a terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
        "a terabyte with a mark": terabyte_with_mark,
    }


def terabyte_with_mark(path: Path) -> None:
    with open(path, "wb") as file:
        file.seek(2**40)
        file.write(b"crc_num" + bytes(10))


def of_safetensors(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Damages of timm's format; without end."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def packed(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    while True:
        yield "flipped bits", flipped(content, chance)
        yield "cut", content[: chance.randrange(len(content))]
        yield "a header of 2^62 bytes", struct.pack("<Q", 2**62) + content[8:]
        yield "a list for a header", packed([1, 2])
        names = [name for name in header if name != "__metadata__"]
        name = chance.choice(names)
        about = header[name]
        changes = {
            "2,000 dimensions": about | {"shape": about["shape"] + [1] * 2000},
            "negative": about | {"shape": [-1, *about["shape"]]},
            "another shape": about | {"shape": [*about["shape"], 1]},
            "another type": about | {"dtype": chance.choice(["I32", "F64", "BOOL", "F8_E4M3", "nonsense"])},
            "other offsets": about | {"data_offsets": [0, chance.randint(0, 2**50)]},
            "no shape": {"dtype": "F32"},
        }
        for what, change in changes.items():
            yield f"{what}: {name}", packed(header | {name: change})
        rest = {other: value for other, value in header.items() if other != name}
        yield f"another name: {name}", packed(rest | {name + "x" * chance.choice([1, 9999]): about})
        yield "no checksum that is one", packed(header | {"__metadata__": {"crc_num": "many"}})


# Doors


class Doors:
    """A trained run, and what its commands make of a file in the place of a checkpoint."""

    def __init__(self, root: Path):
        self.root, self.config = root, root / "run.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        self.words = ["--config", str(self.config), "--runs"]
        assert run("train", [*self.words, str(root / "whole")]) == 0
        self.whole = root / "whole" / "run"
        for path in saved(self.whole / "checkpoints")[:-1]:
            path.unlink()
        self.last = saved(self.whole / "checkpoints")[-1]
        assert run("convert", [str(self.last), str(root / "whole.safetensors")]) == 0
        self.timm = (root / "whole.safetensors").read_bytes()
        from PIL import Image

        Image.new("RGB", (32, 32), (200, 40, 90)).save(root / "image.png")
        self.place = root / "runs" / "run" / "checkpoints" / NEWEST
        self.run_config = load_config(self.config)
        self.splits = training.open_splits(self.run_config, root / "runs")
        network = build_network(self.run_config, "cpu")
        optimizer = build_optimizer(self.run_config, network, 2)
        state = build_state(self.run_config, optimizer, "cpu")
        self.parameters = [*network.get_parameters(), *optimizer.get_parameters(), *state.saved()]
        self.put(writing(self.last.read_bytes()))
        self.expected = {door: self.asked(door, self.place)[2] for door in self.doors()}
        self.back = self.asked("convert", root / "whole.safetensors")[2]

    def put(self, make: Callable[[Path], object]) -> None:
        shutil.rmtree(self.root / "runs", ignore_errors=True)
        shutil.copytree(self.whole, self.root / "runs" / "run")
        make(self.place)

    def doors(self, whole: bool = True) -> dict[str, Callable[[Path, Path], int]]:
        """What takes the file's path, and one to write to, and returns an exit code.

        Args:
            whole: commands that compile graphs are among them.
        """
        run_folder, image, runs = str(self.root / "runs" / "run"), str(self.root / "image.png"), str(self.root / "runs")
        start, target = ["--check", "--init.weights"], str(self.root / "out")
        doors = {
            "eval": lambda path, out: run("eval", [run_folder, "--weights", str(path), "--json"]),
            "predict": lambda path, out: run("predict", [run_folder, image, "--weights", str(path), "--json"]),
            "export": lambda path, out: run(
                "export", [run_folder, "--weights", str(path), "--to", "safetensors", "--out", target]
            ),
            "convert": lambda path, out: run("convert", [str(path), str(out)]),
            "start from": lambda path, out: run("train", [*self.words, target, *start, str(path)]),
            "choose": lambda path, out: exit_code(lambda: self.choose(out)),
            "go on from": lambda path, out: exit_code(lambda: self.go_on_from(out)),
        }
        if whole:
            doors["eval a run"] = lambda path, out: run("eval", [run_folder, "--json"])
            doors["resume"] = lambda path, out: run("train", [*self.words, runs, "--resume", "auto"])
        return doors

    def choose(self, out: Path) -> None:
        """What evaluates a run, up to the first graph."""
        found = weights_of(read_entries(Run(self.root / "runs" / "run").checkpoint("last")), averaged=True)
        out.write_bytes(pickle.dumps([(name, bytes(r.data)) for name, r in sorted(found.items())]))

    def go_on_from(self, out: Path) -> None:
        """What resumes a run, up to the first graph."""
        found = training.newest_checkpoint(RunFolder(self.root / "runs" / "run"), self.run_config, self.splits)
        if found is not None:
            found.restore(self.parameters)
            out.write_bytes(pickle.dumps([(p.name, p.asnumpy()) for p in self.parameters]))

    def asked(self, door: str, path: Path) -> tuple[int, str, object]:
        """Exit code, what was said on stderr, and the result."""
        shutil.rmtree(self.root / "out", ignore_errors=True)
        target = self.root / ("out.ckpt" if path.suffix == ".safetensors" else "out.safetensors")
        target.unlink(missing_ok=True)
        with captured(self.root) as said:
            code = self.doors()[door](path, target)
        return code, said["err"], self.result(door, said["out"], target) if code == 0 else None

    def result(self, door: str, out: str, target: Path) -> object:
        if door in ("eval", "eval a run"):
            found = json.loads(out.splitlines()[-1])
            return {name: (row["top1"], row["loss"]) for name, row in found.items() if isinstance(row, dict)}
        if door == "predict":
            return json.loads(out.splitlines()[-1])["predictions"]
        if door == "resume":
            path = Run(self.root / "runs" / "run").checkpoint("last")
            return {name: value.tobytes() for name, value in read(path).items()}
        if door == "export":
            target = next((self.root / "out").glob("*.safetensors"))
        if door in ("export", "convert") and target.suffix == ".safetensors":  # whose header has no order
            return {name: value.tobytes() for name, value in load_file(target).items()}
        return target.read_bytes() if door != "start from" and target.exists() else None

    def fault(self, door: str, path: Path) -> str:
        """What is wrong with how a door takes a file; "" where nothing is."""
        try:
            code, said, result = self.asked(door, path)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        lines = [line for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        if any("Traceback" in line or len(line) > LONGEST_LINE for line in lines):
            return f"a traceback or a long line: {said[-300:]}"
        if code == 0:
            expected = self.back if (door, path.suffix) == ("convert", ".safetensors") else self.expected[door]
            return "" if result == expected else "another result, silently"
        return "" if code in (1, 2) and len(errors) == 1 else f"exit code {code}: {said[-300:]}"


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[dict[str, str]]:
    """What is written to stdout and stderr, by libraries too."""
    said, before = {}, {number: os.dup(number) for number in (1, 2)}
    sys.stdout.flush()
    for number in before:
        with open(folder / f"said_{number}", "wb") as file:
            os.dup2(file.fileno(), number)
    try:
        yield said
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(before[number], number)
            os.close(before[number])
            said[name] = (folder / f"said_{number}").read_text(errors="replace")


def cases(doors: Doors, count: int, seed: int) -> Iterator[tuple[str, Path, Callable[[Path], object]]]:
    """What each is, where it lies, and what makes it."""
    chance, whole, entries = random.Random(seed), doors.last.read_bytes(), entries_of(doors.last)
    borders = [0]
    for entry in entries:
        borders.append(borders[-1] + len(message(entry)))
    for what, make in others(doors.root).items():
        yield what, doors.place, make
    for what, make in ONCE.items():
        yield what, doors.place, writing(make(whole))
    ckpt, timm = [of_bytes(whole, borders, chance), of_entries(entries, chance)], of_safetensors(doors.timm, chance)
    for number in range(count - len(others(doors.root)) - len(ONCE)):
        if number % 6 == 5:
            what, content = next(timm)
            yield f"safetensors, {what}", doors.root / "bad.safetensors", writing(content)
        else:
            what, content = next(ckpt[number % 3 > 0])
            yield what, doors.place, writing(content)


def writing(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def work(count: int, seed: int, first: int) -> None:
    """Read the cases from a number on; say on stdout, a line of JSON each, what is about to be read and what was."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as name:
        doors = Doors(Path(name))
        for number, (what, path, make) in enumerate(cases(doors, count, seed)):
            if number < first:
                continue
            usual = doors.doors(whole=number % WHOLE_EVERY == 0)
            for door in usual if path.suffix == ".ckpt" else ("convert", "start from"):
                print(json.dumps([number, what, door, None]), file=out)
                path.unlink(missing_ok=True) if path.suffix != ".ckpt" else None
                doors.put(make) if path.suffix == ".ckpt" else make(path)
                print(json.dumps([number, what, door, doors.fault(door, path)]), file=out)
    print(json.dumps([count, "", "", ""]), file=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.count, options.seed, options.worker)
        return 0
    faults, reads, number = Counter(), 0, 0
    while number < options.count:
        number, read_now = follow(options.count, options.seed, number, faults)
        reads += read_now
    print(f"{options.count} damaged checkpoints, {reads} times read; {faults.total()} wrongly", flush=True)
    return 1 if faults else 0


def follow(count: int, seed: int, first: int, faults: Counter) -> tuple[int, int]:
    """Follow a worker from a case on to its end, or the case that ends it: the next case, and how often it has read."""
    words = [sys.executable, __file__, "--count", str(count), "--seed", str(seed), "--worker", str(first)]
    number, what, door, reads = first, "the run itself", "train", 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as worker:
        assert worker.stdout is not None
        patience = 10 * HANGS_AFTER_S  # to train the run
        while select.select([worker.stdout], [], [], patience)[0] and (line := worker.stdout.readline()):
            number, what, door, fault = json.loads(line)
            patience = HANGS_AFTER_S
            if number == count:
                return number, reads
            reads += fault is not None
            if fault:
                faults[what] += 1
                print(f"{number:3d} {what}, {door}: {fault}", flush=True)
        hangs = worker.poll() is None
        worker.kill()
        faults[what] += 1
        how = f"no word for {HANGS_AFTER_S} s" if hangs else f"ends the process with {worker.wait()}"
        print(f"{number:3d} {what}, {door}: {how}", flush=True)
    if door == "train":
        raise SystemExit("the run that is to be damaged could not be trained")
    return number + 1, reads


if __name__ == "__main__":
    sys.exit(main())
