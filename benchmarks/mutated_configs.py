"""Train with randomly mutated configurations: each must run, or be refused with one line; never a traceback.

    python benchmarks/mutated_configs.py --count 300

One to three keys of a small run get a value from a list of plausible and absurd ones, or the file's text is damaged.
It is checked (`--check`), every thirtieth is trained.
Every third file is YAML that is no configuration at all (bombs of aliases, deep nesting, tags, values that are none,
other encodings) or no text file; it is read as a run's, as a plan or on the command line. Exit code 1 if one did
neither.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import yaml
from one_line import End, attempt, run_all

from skipvit.config.config import Config
from support.damage import CONTENTS, PLACES, damage
from support.runs import TINY

BASE = {
    "name": "run",
    "model": TINY["model"] | {"width": 8, "depth": 2, "patch": 16},
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


NINE = ",".join(["x"] * 9)
LETTERS = list(zip("abcdefgh", "bcdefghi"))
BOMB = f"a: &a [{NINE}]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in LETTERS)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in LETTERS)
# Where a value could stand.
VALUES = r"""2024-13-45;0x_;0b_;!!int abc;!!bool maybe;!!float x;!!timestamp x;!!binary '=';!!set x;!!map x;!!null x
!x y;!!python/object:os.system x;!!int '';!!omap [a];*nowhere;&a [*a];&a {b: *a};1e400;.nan;-.inf;12:30:45;~;y;|;? x
';@;`;"\ud800";"\0";"\e[31m\n";2001-01-01 99:99:99;{<<: 1};{<<: [[1]]};%x;{[a]: 1};{a: 1, a: 2};=;<<""".replace(
    "\n", ";"
)
VALUES = VALUES.split(";") + ["9" * 5000, "0x" + "f" * 6000, "1:" * 3000 + "1", "[" * 20_000, "[" * 60 + "]" * 60]
VALUES += ["{a: " * 9000, "- " * 9000, "k" * 5000, '"' + "x" * 5000 + '"']
TEXTS = [BOMB, MERGES, "a: 1\n---\nb: 2\n", "%YAML 9.9\n---\na: 1\n", "? " * 9000, "x" * 300_000, "#" * 300_000]
ENCODINGS = ["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7"]
READERS = (
    ["train", "--config", "run.yaml", "--runs", "runs", "--check"],
    ["cost", "--config", "run.yaml"],
    ["sweep", "run.yaml", "--runs", "runs", "--dry-run"],
    ["eval", "--config", "run.yaml", "--weights", "none.ckpt"],
)


def damaged(path: Path, chance: random.Random) -> list[str]:
    """Write YAML that is no configuration; returns the command line that reads it."""
    key = ".".join(chance.choice(keys()))
    kind, value = chance.randrange(5), chance.choice(VALUES)
    text = yaml.safe_dump(BASE)
    if kind == 0:
        damage(path, chance.choice([*CONTENTS, *PLACES]), np.random.default_rng(chance.randrange(1000)))
    elif kind == 1:
        path.write_bytes(chance.choice(TEXTS).encode())
    elif kind == 2:
        path.write_bytes((text + "title: é\n").encode(chance.choice(ENCODINGS)))
    elif kind == 3:
        path.write_text(text)
        return [*READERS[0], f"--{chance.choice(('routes', 'phases', 'imports', 'eval.forwards', key))}", value]
    else:
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = f"{lines[at].partition(':')[0]}: {value}"
        path.write_text("\n".join(lines))
    return chance.choice(READERS)


def ends(count: int, seed: int, train: bool) -> Iterator[tuple[str, End]]:
    for number in range(count):
        chance = random.Random(seed * 1_000_000 + number)
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            path = Path("run.yaml")
            if number % 3 == 0:
                words = damaged(path, chance)
            else:
                path.write_text(mutated(chance), encoding="utf-8")
                words = READERS[0][:-1] if train or number % 30 == 5 else READERS[0]
            label = path.read_text(errors="replace")[:2000] if path.is_file() else "no file"
            yield f"{number}: {ascii(words)[:200]} {ascii(label)}", attempt(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="train with all that can be, not with every thirtieth")
    parser.add_argument("--show", action="store_true", help="print every refusal")
    options = parser.parse_args()
    return run_all(ends(options.count, options.seed, options.train), options.count, "configurations", options.show)


if __name__ == "__main__":
    sys.exit(main())
