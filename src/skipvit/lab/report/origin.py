"""Measurements in a sweep's folder, with what they were made with: none is quoted after that has changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import skipvit
from skipvit.lab.plan import identity
from skipvit.runs.run import Run
from skipvit.util.files import open_regular, read_text, write_whole

COMPUTES = ("routing", "models", "engine")  # folders of the source that decide about a step and its time
END_OF_FILE = 4096  # bytes; a checkpoint ends with a checksum of all of it
Found = TypeVar("Found")


def save(path: Path, device: str, found: dict[str, Any]) -> None:
    """Write a measurement that was made here and now on a device."""
    about = {"origin": _here(device), "date": time.strftime("%Y-%m-%d"), "checksum": _hash(found)}
    write_whole(path, json.dumps(about | found, indent=1, allow_nan=False) + "\n")


def load(
    path: Path, device: str, option: str, parse: Callable[[dict[str, Any]], Found]
) -> tuple[Found | None, list[str]]:
    """What was saved, if it is still true, and a line for people if it is left out though it is there.

    Args:
        option: of `skipvit report`, with which it is measured.
        parse: makes of it what is asked for.
    """
    measured = f"`skipvit report FOLDER {option}`"
    try:
        found = json.loads(read_text(path))
        then, date, checksum = (found.pop(name) for name in ("origin", "date", "checksum"))
        if _hash(found) != checksum:
            raise ValueError
        changed = [f"{name} {then[name]}, now {now}" for name, now in _here(device).items() if then[name] != now]
        why = f"measured on {date} with {'; '.join(changed)}"
        if not changed:
            return parse(found | {"date": date}), []
    except FileNotFoundError:
        return None, []
    except Exception:  # whatever is wrong with it, it is not one of ours
        why = f"not what {measured} writes"
    return None, [f"{path.name} is left out: {why[:300]}. {measured} measures again."]


def _hash(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _here(device: str) -> dict[str, str]:
    return {"skipvit": code(), "mindspore": version("mindspore"), "device": device}


@cache
def code() -> str:
    """The version of this project with a hash of the source that decides about a step, e.g. `1.0.0+3f2a91c0`."""
    root = Path(__file__).parents[2]
    files = sorted(path for folder in COMPUTES for path in (root / folder).rglob("*.py"))
    content = b"".join(path.relative_to(root).as_posix().encode() + path.read_bytes() for path in files)
    return f"{skipvit.__version__}+{hashlib.sha256(content).hexdigest()[:8]}"


def fingerprint(run: Run, checkpoint: Path) -> str:
    """A hash of a run's configuration and of a checkpoint, by its size and end."""
    with open_regular(checkpoint) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_OF_FILE))
        text = f"{identity(run.config)} {size} ".encode() + file.read()
    return hashlib.sha256(text).hexdigest()[:16]
