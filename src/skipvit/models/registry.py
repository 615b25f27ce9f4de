"""Models by name, as timm names them: each is a function of overrides that returns a specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from skipvit.util.text import nearest

MODELS: dict[str, Callable[..., Any]] = {}


def register_model(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the model of a name; a name that exists is replaced.

    The function takes `image_size`, `num_classes`, `drop_path` and whatever else a configuration's `model` may set for
    it (`width`, `depth`, `heads`, `patch`, `gelu`), by keyword, and returns a specification with what
    `models.vit_spec.ViTSpec` has: the program, the costs, the weights' names and the network ask it.
    """

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        MODELS[name] = make
        return make

    return register


def list_models() -> list[str]:
    """Names of all models."""
    from skipvit.models import pvt_spec, swin_spec, vit_spec  # noqa: F401  they register their own

    return sorted(MODELS)


def model_spec(name: str, **overrides: Any) -> Any:
    """The specification of a model; overrides that are None are left out.

    Raises:
        ValueError: no such model, an override that it does not take, numbers that do not go together; one line.
    """
    known = list_models()
    if name not in MODELS:
        raise ValueError(
            f"model.name: {name!r} is not a model" + (nearest(name, known) or f"; there are {', '.join(known)}")
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    parameters = inspect.signature(MODELS[name]).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in {p.name for p in parameters}:
                raise ValueError(f"model.{key}: {name} has none; leave it out")
    return MODELS[name](**given)
