"""Models by name, as timm names them: each is a function of overrides that returns a specification."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
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


def family_of(names: Iterable[str]) -> Any:
    """The specification of some network of the family that weights, by their names in any layout, are of."""
    list_models()
    joined = "\n".join(names)
    if "relative_position_bias_table" in joined:
        return model_spec("swin_tiny_patch4_window7_224")
    if re.search(r"attn\.sr\.|attn\.kv\.", joined):
        if "pos_embed" in joined:
            return model_spec("pvt_tiny")
        # Only the linear variant reduces the last stage, whose tokens are few.
        last = max(
            re.findall(r"^(?:stages\.\d+\.)?blocks\.\d+\.attn\.q\.weight$", joined, re.M), key=natural, default=""
        )
        return model_spec("pvt_v2_b2_li" if last.replace(".q.", ".sr.") in joined else "pvt_v2_b2")
    return model_spec("vit_tiny_patch16_224")


def natural(name: str) -> list[int]:
    """Its numbers, to sort names by."""
    return [int(number) for number in re.findall(r"\d+", name)]


def one_number(key: str, value: Any) -> None:
    """Raises ValueError, one line, for a list where a model takes one number."""
    if isinstance(value, list | tuple):
        raise ValueError(f"model.{key}: {list(value)} is a list; this model takes one number")
