"""Configurations as earlier versions wrote them, so that old run folders stay readable."""

from __future__ import annotations

from typing import Any

from skipvit.util.yaml_text import parse

OLD_PHASES = ("dense_warmup_epochs", "dense_cooldown_epochs", "evaluate")


def translated(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a run in today's keys; what is not of an earlier version stays as it is."""
    values = dict(values)
    if isinstance(values.get("model"), dict) and "size" in values["model"]:
        values["model"] = _named(values["model"])
    phases = values.get("phases")
    if isinstance(phases, dict) and set(phases) <= set(OLD_PHASES):
        values["phases"] = _listed(phases, values.get("routes"))
        if phases.get("evaluate", "auto") != "auto":
            evaluation = values.get("eval")
            values["eval"] = (evaluation if isinstance(evaluation, dict) else {}) | {"main": phases["evaluate"]}
    return values


def _named(model: dict[str, Any]) -> dict[str, Any]:
    """`size` with `patch` and `image_size` was what is now a model's name."""
    from skipvit.models.registry import list_models

    model = dict(model)
    size, patch, image_size = model.pop("size"), model.get("patch", 16), model.get("image_size", 224)
    name = f"vit_{size}_patch{patch}_{image_size}"
    if name in list_models():
        model.pop("patch", None)
        model.pop("image_size", None)
    else:
        name = f"vit_{size}_patch16_224"
    if model.get("gelu") == "tanh":  # the default, which a run folder has written out and a recipe has not
        model.pop("gelu")
    return {"name": name} | {key: value for key, value in model.items() if value is not None or key == "name"}


def _listed(phases: dict[str, Any], routes: Any) -> list[dict[str, Any]]:
    """Dense warm-up, routed, dense cool-down were three keys; without routes they meant nothing."""
    if isinstance(routes, str):
        try:
            routes = parse(routes)
        except ValueError:
            return []  # the routes themselves are refused
    if not routes:
        return []
    warmup, cooldown = phases.get("dense_warmup_epochs", 15), phases.get("dense_cooldown_epochs", 0)
    if not warmup and not cooldown:
        return []
    dense = [{"epochs": epochs, "routes": []} for epochs in (warmup, cooldown)]
    return [dense[0], {}, dense[1]]
