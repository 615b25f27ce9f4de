"""Hostile files in every place where a file is read: images, weights, data sets, configurations, code.

    python benchmarks/hostile_files.py

Each place gets files that are cut, flipped, empty, of random bytes, of JSON that means nothing, and what is no file:
pipes, devices, folders, links. A command reads them and must do its work or refuse in one line (`one_line.py`), and
change nothing. 200 images, most of them broken, are predicted at once: exactly those that Pillow opens must be. At last
a network is trained, asked and exported whose classes have names that mean something to others. Exit code 1 if one was
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from one_line import WRONG, End, attempt, chosen, run_all, untouched

from support.damage import CONTENTS, PLACES, damage
from support.hostile import encoded, flipped, hostile, reason_to_fail, scene
from support.runs import TINY, write_run

WAYS = [*CONTENTS, *PLACES, "random bytes", "flipped", "doubled"]
CHECKPOINT = "runs/tiny/checkpoints/epoch_0002_step_000010.ckpt"
TRAIN = "train --config tiny.yaml --runs out --name other --check"
# A file, and what reads it.
READ = {
    "images/a.png": "predict runs/tiny images/a.png --json",
    "good.ckpt": f"{TRAIN} --init.weights good.ckpt",
    CHECKPOINT: f"convert {CHECKPOINT} out.safetensors",
    "good.safetensors": f"{TRAIN} --init.weights good.safetensors",
    "half.safetensors": "convert half.safetensors out.ckpt",
    "cifar/data_batch_3.bin": f"{TRAIN} --data.kind cifar10 --data.path cifar",
    "cifar/batches.meta.txt": f"{TRAIN} --data.kind cifar10 --data.path cifar",
    "records/train.json": f"{TRAIN} --data.kind mindrecord --data.path records",
    "records/train_00000.mindrecord": f"{TRAIN} --data.kind mindrecord --data.path records",
    "records/train_00000.mindrecord.db": f"{TRAIN} --data.kind mindrecord --data.path records",
    "folder/train/class 3": f"{TRAIN} --data.kind image_folder --data.path folder",
    "tiny.yaml": TRAIN,
    "method.yaml": "sweep plan.yaml --runs out --dry-run",
    "mine.py": f"{TRAIN} --imports mine.py",
    "figure.png": "cost --config tiny.yaml --out figure.png",
}
CLASSES = ("$\\frac", "a\nb", "\x1b[31mred", "猫", "\u202eleft", "<b>*x*|`y`", "%s{0}", "\udcff\udcfe", "-x", "é" * 120)
PLAN = "base: base.yaml\nmethods: {dense: {routes: [], phases: []}, mine: {from: method.yaml}}\n"


def build() -> None:
    """One good file for each place, in the current folder."""
    rng = np.random.default_rng(0)
    write_run(Path("runs/tiny"))
    Path("tiny.yaml").write_text(Path("runs/tiny/config.yaml").read_text())
    Path("base.yaml").write_text(json.dumps({key: value for key, value in TINY.items() if key != "name"}))
    Path("plan.yaml").write_text(PLAN)
    Path("method.yaml").write_text("routes: [{start: 1, end: 2}]\nphases: []\n")
    Path("mine.py").write_text("import skipvit\n")
    for name in ("images", "cifar"):
        Path(name).mkdir()
    for name in ("images/a.png", "figure.png"):
        Path(name).write_bytes(encoded(scene(rng), "PNG"))
    shutil.copy(CHECKPOINT, "good.ckpt")
    for name in ("good", "half"):
        assert attempt(["convert", "good.ckpt", f"{name}.safetensors"]).what == "ran"
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] %= 10
        Path(f"cifar/{name}.bin").write_bytes(records.tobytes())
    Path("cifar/batches.meta.txt").write_text("".join(f"kind {i}\n" for i in range(10)))
    write_images(Path("folder"), [f"class {i}" for i in range(10)], rng)
    assert attempt(["mindrecord", "folder", "records"]).what == "ran"


def write_images(folder: Path, classes, rng: np.random.Generator) -> None:
    """Two images a class to train on, one to validate."""
    for split, count in (("train", 2), ("val", 1)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"{i}.png").write_bytes(encoded(scene(rng), "PNG"))


def spoil(path: Path, how: str, rng: np.random.Generator) -> None:
    whole = path.read_bytes() if path.is_file() else b"nothing"
    if how == "random bytes":
        damage(path, "gone", rng)
        path.write_bytes(rng.bytes(5000))
    elif how == "flipped":
        damage(path, "gone", rng)
        path.write_bytes(flipped(whole, rng))
    elif how == "doubled":
        damage(path, "gone", rng)
        path.write_bytes(whole + whole)
    else:
        damage(path, how, rng)


def ends(some: list[tuple[str, str]], place: Path) -> Iterator[tuple[str, End]]:
    (place / "whole").mkdir()
    os.chdir(place / "whole")
    build()
    for number, (name, how) in enumerate(some):
        folder = place / str(number)
        shutil.copytree(place / "whole", folder, copy_function=_copy)
        os.chdir(folder)
        spoil(Path(name), how, np.random.default_rng(number))
        with untouched(folder) as changed:
            end = attempt(READ[name].split())
        others = [path for path in changed if Path(path).name not in (".lock", "figure.png")]
        yield f"{name}, {how}", End(WRONG, f"changed {others}") if others else end


def _copy(source: str, target: str) -> None:
    """Files of data sets, which are large, as links: damages replace files, and nothing else may write."""
    (os.link if "records" in source else shutil.copy2)(source, target)


def many_images(place: Path) -> End:
    """Predict all of `support.hostile` and compare with Pillow."""
    os.chdir(place)
    write_run(Path("many/run"))
    folder = place / "many" / "images"
    folder.mkdir()
    for name, content in hostile(np.random.default_rng(0)).items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content in ("folder", "pipe"):
            path.mkdir() if content == "folder" else os.mkfifo(path)
        else:
            path.symlink_to(content)
    end = attempt(["predict", "many/run", *map(str, sorted(folder.iterdir())), "--json"], 300)
    if end.what == WRONG:
        return end
    found = {Path(row["path"]).name for row in json.loads(end.out)["predictions"]}
    expected = {path.name for path in folder.iterdir() if reason_to_fail(path) is None}
    return end if found == expected else End(WRONG, f"other images than Pillow: {sorted(found ^ expected)}")


def odd_classes(place: Path) -> Iterator[tuple[str, End]]:
    """Train, evaluate, predict and export with class names that mean something to others."""
    os.chdir(place)
    write_images(Path("odd"), CLASSES, np.random.default_rng(0))
    values = TINY | {"name": "odd", "optim": {"epochs": 1, "warmup_epochs": 0}, "phases": []}
    values["data"] = {"kind": "image_folder", "path": "odd", "batch_size": 10}
    Path("odd.yaml").write_text(json.dumps(values))
    image = str(next(Path("odd/val").glob("*/0.png")))
    lines = (["train", "--config", "odd.yaml"], ["eval", "runs/odd"])
    lines += (["predict", "runs/odd", image, "--show", "sheet.png"], ["export", "runs/odd", "--to", "safetensors"])
    for words in lines:
        end = attempt(words, 300)
        clean = all(line.isprintable() for line in end.out.splitlines())
        yield f"odd classes: {words[0]}", end if end.what == "ran" and clean else End(WRONG, end.line or repr(end.out))
    made = all(Path(name).is_file() for name in ("runs/odd/curves.png", "runs/odd/bypassed.png", "sheet.png"))
    yield "odd classes: figures", End("ran" if made else WRONG, "figures of these classes are missing")


def everything(some: list[tuple[str, str]], place: Path, short: bool) -> Iterator[tuple[str, End]]:
    yield from ends(some, place)
    if not short:
        yield "200 images", many_images(place)
        yield from odd_classes(place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="so many by lot, and nothing trained (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every refusal")
    options = parser.parse_args()
    # Of images there are 200 more; a network for each takes most of the time.
    cases = [(name, how) for name in READ for how in (PLACES if name.endswith("a.png") else WAYS)]
    some = chosen(cases, options.count, options.seed)
    with tempfile.TemporaryDirectory() as name:
        short = options.count is not None
        total = len(some) + (0 if short else 6)
        result = run_all(everything(some, Path(name), short), total, "hostile files", options.show)
        os.chdir("/")
    return result


if __name__ == "__main__":
    sys.exit(main())
