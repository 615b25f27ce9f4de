"""Side files as crashes, disks, editors and strangers leave them: cut, of another shape, or no files at all."""

import copy
import json
import os
import shutil

import yaml

# Instead of the whole content.
CONTENTS = {
    "empty": b"",
    "no utf-8": b"\xff\xfe\x00{",
    "nul": b"\x00" * 100,
    "number": b"17",
    "null": b"null",
    "text": b'"x"',
    "list": b"[1]",
    "lists": b"[[1, 2], [null]]",
    "mapping": b"{}",
    "other mapping": b'{"epochs": 4, "epoch": 1, "name": "x"}',
    "brackets": b"[" * 20_000,
    "braces": b'{"a":' * 20_000,
    "digits": b"9" * 5000,
    "not finite": b'{"epochs": NaN, "epoch": Infinity, "runs": -Infinity}',
    "surrogate": b'{"\\ud800": "\\udcff\\ud800", "name": "\\ud800"}',
    "escapes": b'{"\\u001b[31m": "\\n\\u202e", "name": "\\u0000"}',
    "long": b'{"' + b"x" * 50_000 + b'": "' + b"y" * 50_000 + b'"}',
}
# Instead of a value, anywhere in it.
VALUES = [None, -1, 0, 1e308, "x", "$\\x$", [], {}, {"top1": "x"}, [None], True, 10**30, 1e400, float("nan"), "\ud800"]
VALUES += ["..", "\x1b[31m\n", "y" * 5000, {"\ud800": 1}, [[[[]]]]]
PLACES = ("gone", "cut", "cut by one", "folder", "pipe", "dangling link", "loop", "device")


def damage(path, how, rng):
    """Damage a file, `how` being one of CONTENTS, of PLACES, or `value` (for JSON, JSON lines and YAML)."""
    whole = path.read_bytes() if path.is_file() else b""
    mutated = _mutated(path, whole, rng) if how == "value" else None
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if how in CONTENTS:
        path.write_bytes(CONTENTS[how])
    elif how == "value":
        path.write_bytes(mutated)
    elif how == "cut":
        path.write_bytes(whole[: int(rng.integers(len(whole) + 1))])
    elif how == "cut by one":
        path.write_bytes(whole.rstrip()[:-1])
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.symlink_to({"dangling link": "/nowhere/file", "loop": path.name, "device": "/dev/zero"}[how])


def _mutated(path, whole, rng):
    if path.suffix == ".jsonl":
        lines = whole.splitlines()
        at = int(rng.integers(len(lines)))
        lines[at] = json.dumps(mutated(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines) + b"\n"
    if path.suffix == ".yaml":
        return yaml.safe_dump(mutated(yaml.safe_load(whole), rng)).encode("utf-8", "surrogatepass")
    return json.dumps(mutated(json.loads(whole), rng)).encode()


def mutated(values, rng):
    """A copy with one value in it, anywhere, replaced by another."""
    values = copy.deepcopy(values)
    places = []

    def walk(value):
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, below in pairs:
            places.append((value, key))
            walk(below)

    walk(values)
    if not places:
        return VALUES[rng.integers(len(VALUES))]
    at, key = places[rng.integers(len(places))]
    at[key] = VALUES[rng.integers(len(VALUES))]
    return values
