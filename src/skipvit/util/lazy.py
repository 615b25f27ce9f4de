"""MindSpore, imported when something of it is first used.

Specifications, checks and `--help` need none of it, and its import takes seconds. Functions that MindSpore compiles
find the real operators under these names, as under an ordinary import.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what looks at modules in general does not import this one
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value


ms: Any = _Lazy("mindspore")
ops: Any = _Lazy("mindspore.ops")
