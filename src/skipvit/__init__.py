"""SkipViT: vision transformers whose unimportant tokens skip the middle of the network (arXiv 2401.15293).

Everything below is imported when it is first used; `import skipvit` alone loads neither MindSpore nor NumPy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# MindSpore interprets, slowly, what it takes for third-party code, and that is whatever lies in site-packages.
_modules = [name for name in os.environ.get("MS_JIT_MODULES", "").split(",") if name]
if "skipvit" not in _modules:
    os.environ["MS_JIT_MODULES"] = ",".join([*_modules, "skipvit"])

_PUBLIC = {
    "Config": "config.config",
    "Route": "routing.spec",
    "RunError": "util.errors",
    "Run": "runs.run",
    "Stopped": "util.errors",
    "Sweep": "lab.sweep",
    "UsageError": "util.errors",
    "bench": "measure.bench.variants",
    "cost": "measure.cost",
    "create_model": "models.create",
    "evaluate": "runs.evaluation",
    "export": "weights.export",
    "list_models": "models.registry",
    "list_recipes": "config.reading",
    "load_config": "config.reading",
    "load_weights": "weights.files",
    "register_model": "models.registry",
    "register_scorer": "routing.scorers",
    "save_weights": "weights.files",
    "train": "training",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skipvit' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"skipvit.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if TYPE_CHECKING:
    from skipvit.config.config import Config as Config
    from skipvit.config.reading import list_recipes as list_recipes
    from skipvit.config.reading import load_config as load_config
    from skipvit.lab.sweep import Sweep as Sweep
    from skipvit.measure.bench.variants import bench as bench
    from skipvit.measure.cost import cost as cost
    from skipvit.models.create import create_model as create_model
    from skipvit.models.registry import list_models as list_models
    from skipvit.models.registry import register_model as register_model
    from skipvit.routing.scorers import register_scorer as register_scorer
    from skipvit.routing.spec import Route as Route
    from skipvit.runs.evaluation import evaluate as evaluate
    from skipvit.runs.run import Run as Run
    from skipvit.training import train as train
    from skipvit.util.errors import RunError as RunError
    from skipvit.util.errors import Stopped as Stopped
    from skipvit.util.errors import UsageError as UsageError
    from skipvit.weights.export import export as export
    from skipvit.weights.files import load_weights as load_weights
    from skipvit.weights.files import save_weights as save_weights
