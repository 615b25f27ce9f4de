"""Python files of one's own that register models and scorers, imported once a process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from skipvit.util.files import resolved
from skipvit.util.text import one_line, printable


def import_files(paths: Any) -> list[str]:
    """Import Python files by their paths; returns the absolute ones. Raises ValueError: no such file, or it fails; one
    line that begins with the key."""
    names = [paths] if isinstance(paths, str) else paths
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"imports: a list of Python files, got {paths!r}")
    return [str(_import(resolved(name), f"imports.{i}")) for i, name in enumerate(names)]


def _import(path: Path, key: str) -> Path:
    name = f"skipvit_imports_{path.stem}"
    known, shown = sys.modules.get(name), printable(str(path))  # pydantic takes no half surrogate pairs
    if known is not None and known.__file__ == str(path):
        return path
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{key}: {shown} is not a Python file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # MindSpore looks for the source of what it compiles here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever it does
        del sys.modules[name]
        raise ValueError(f"{key}: {shown} cannot be imported ({type(error).__name__}: {one_line(error)})") from None
    return path
