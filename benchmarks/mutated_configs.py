"""Train with randomly mutated configurations: each must run, or be refused with one line; never a traceback.

    python benchmarks/mutated_configs.py --count 300

One to three keys of a small run get a value from a list of plausible and absurd ones, or the file's text is damaged.
Exit code 1 if one did neither.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Literal, get_args, get_origin

os.environ.setdefault("GLOG_v", "4")

import yaml
from tqdm import tqdm

from skipvit.cli import run
from skipvit.config.config import Config

BASE = {
    "name": "run",
    "model": {
        "name": "vit_tiny_patch16_224",
        "width": 8,
        "depth": 2,
        "heads": 2,
        "patch": 16,
        "image_size": 32,
        "num_classes": 10,
    },
    "data": {"kind": "shapes", "batch_size": 16, "train_size": 48, "val_size": 16},
    "optim": {"epochs": 1, "warmup_epochs": 1},
}
ABSURD = [
    None,
    "",
    "many",
    -1,
    0,
    1e400,
    float("nan"),
    -0.5,
    [],
    [1, 2],
    {},
    {"a": 1},
    True,
    10**12,
    1e-300,
    "1e-3",
    "0x10",
    "null",
]
# What makes sense for some key or other.
PLAUSIBLE = [
    1,
    2,
    3,
    4,
    8,
    0.1,
    0.5,
    0.9,
    0.999,
    1.0,
    False,
    "auto",
    "off",
    "on",
    "cpu",
    "float16",
    "float32",
    "pad",
    "dense",
    "random_resized",
    "erf",
    "matmul",
    "gather",
    "shapes",
]
ROUTES = [
    [{"start": 1, "end": 2, "restore": False}],
    [{"start": 0, "end": 1, "scorer": "random", "keep_ratio": 0.6}],
    [{"start": 0, "end": 2, "scorer": "grid", "restore": False, "fuse": True}],
    [{"start": 1, "end": 1}],
    [{"start": 5, "end": 9}],
    [{"start": "one", "end": 2}],
    ["cls_attention"],
    [{"start": 1}],
    {"start": 1, "end": 2},
    [{"start": "25%", "end": "75%"}],
    [{"start": 0, "end": 1, "repeat": "each"}],
]
PHASES = [
    [{"routes": []}],
    [{"image_size": 16}],
    [{"image_size": 17}],
    [{"epochs": 1}, {"routes": []}],
    [{"epochs": "100%"}],
    [{"epochs": 5}],
    [{"epoch": 1}],
    [{"epochs": 1, "augment": {"hflip": 0.5}}],
    [{"augment": {"flip": 0.5}}],
    [{"routes": [{"start": 1, "end": 9}]}],
    [1, 2],
    {"dense_warmup_epochs": 0},
    "dense",
]


def keys() -> list[tuple[str, ...]]:
    """Every key of a run, as its path."""
    result = []
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        result += [(name, key) for key in inner] if inner else [(name,)]
    return result


def mutated(chance: random.Random) -> str:
    """The text of a configuration file."""
    values = yaml.safe_load(yaml.safe_dump(BASE))
    for _ in range(chance.choice((1, 1, 2, 3))):
        path = chance.choice(keys())
        kind = chance.random()
        value = fitting(path, chance) if kind < 0.5 else chance.choice(ABSURD if kind < 0.75 else PLAUSIBLE)
        if path == ("routes",):
            value = chance.choice(ROUTES)
        if path == ("phases",):
            value = chance.choice(PHASES)
        if chance.random() < 0.1:
            path = (*path[:-1], misspelt(path[-1], chance))
        at = values
        for part in path[:-1]:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                break
        else:
            at[path[-1]] = value
    text = yaml.safe_dump(values)
    if chance.random() < 0.1:
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice(["", ":", "\t", "{", "\x00", "é", "- "]) + text[place + 1 :]
    return text


def fitting(path: tuple[str, ...], chance: random.Random):
    """A value of the key's type, near the base run's or the default."""
    field = Config.model_fields[path[0]]
    if len(path) == 2:
        field = field.annotation.model_fields[path[1]]
    if get_origin(field.annotation) is Literal:
        return chance.choice(get_args(field.annotation))
    at = BASE.get(path[0], {})
    value = (at.get(path[1]) if isinstance(at, dict) and len(path) == 2 else at) or field.default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if not isinstance(value, bool) else not value
    return type(value)(value * chance.choice((0.5, 1, 2)) + chance.choice((0, 0, 1)))


def misspelt(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word))
    return word[:place] + chance.choice("aeiou_") + word[place + 1 :]


def attempt(text: str, folder: Path) -> tuple[str, str]:
    """What a configuration comes to: `ran`, `refused` or `WRONG`, and the line or the traceback."""
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run("train", ["--config", str(folder / "run.yaml"), "--runs", str(folder / "runs")])
    except BaseException:
        return "WRONG", traceback.format_exc()
    # Warnings of libraries go to stderr too; what matters is one line that says error.
    lines = [line for line in err.getvalue().splitlines() if line.startswith(("error", "Traceback"))]
    if code == 0 and not lines:
        return "ran", ""
    if code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "):
        return "refused", lines[0]
    return "WRONG", f"exit code {code}\n{err.getvalue()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every refusal")
    options = parser.parse_args()
    tally: Counter = Counter()
    for number in tqdm(range(options.count), disable=None, unit="config"):
        text = mutated(random.Random(options.seed * 1_000_000 + number))
        with tempfile.TemporaryDirectory() as name:
            what, line = attempt(text, Path(name))
        tally[what] += 1
        if what == "WRONG" or options.show and line:
            print(f"{number}: {line}" + (f"\n{text}" if what == "WRONG" else ""), flush=True)
    said = f"{tally['ran']} ran, {tally['refused']} were refused in one line, {tally['WRONG']} did neither"
    print(f"{options.count} configurations: {said}")
    return 1 if tally["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
