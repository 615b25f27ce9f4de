"""Configurations from YAML: read whole, checked, and refused in one line that names the file and the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from skipvit.config.config import Config
from skipvit.config.groups import PhaseConfig
from skipvit.config.overrides import over
from skipvit.routing.spec import Route
from skipvit.util.errors import UsageError
from skipvit.util.files import expanded, open_regular
from skipvit.util.text import meant, nearest, shortened
from skipvit.util.yaml_text import LONGEST, parse

RECIPES = Path(__file__).parents[1] / "recipes"
MOST_BYTES = 4 * LONGEST + 1  # of a file: a device's content never ends


def recipe(name: str | Path) -> Path:
    """A configuration's file: as it is named, or below `configs` in the current folder, or the shipped one of that
    name."""
    path = expanded(name)
    candidates = (path, Path("configs") / path, RECIPES / str(path).removeprefix("configs/"))
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def list_recipes() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.name for path in RECIPES.glob("*.yaml"))


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a run's configuration.

    Args:
        path: a YAML file, or the name of a shipped recipe.
        overrides: values over the file's, by key: `{"optim.lr": 1e-3, "routes": []}`.

    Raises:
        UsageError: a missing or malformed file, an unknown key, a value that is not allowed, keys that contradict each
            other.
    """
    found = recipe(path)
    return checked(over(read_yaml(found), overrides or {}, str(path)), str(path))


def checked(values: dict[str, Any], where: str, make: Callable[..., Config] = Config) -> Config:
    """A run of these values.

    Args:
        where: begins the line that says what is wrong.
        make: the class, or what lays a command line over the values.

    Raises:
        UsageError: as `load_config`, but for the file.
    """
    try:
        return make(**values)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(error)}") from None


def read_yaml(
    path: Path, about: str = "a config is a mapping of keys such as model, routes, data and optim"
) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        about: what to say where it is none.

    Raises:
        UsageError: a missing or malformed file, a key that is there twice.
    """
    try:
        with open_regular(path) as file:
            values = parse(file.read(MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a text file ({getattr(error, 'strerror', 'not UTF-8')})") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(values or {}, dict) or not all(isinstance(key, str) for key in values or {}):
        raise UsageError(f"{path}: {about}")
    return values or {}


def _nearest_file(path: Path) -> str:
    """As `nearest`, of configurations beside a file that is not there, and of recipes."""
    others = {Path(name).stem: name for name in [*list_recipes(), *map(str, path.parent.glob("*.yaml"))]}
    found = meant(path.stem, others)
    return f"; did you mean {others[found]}?" if found else ""


def first_problem(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The first thing that a config, or another model, gets wrong: its key, what is allowed, what was given; one
    line."""
    problem = error.errors(include_url=False)[0]
    # Positions in unions and the like are strings of the library's own; keys and list positions are the config's.
    key = ".".join(shortened(str(part)) for part in problem["loc"])
    if problem["type"] == "value_error":  # of our own checks, which name the key
        return str(problem.get("ctx", {})["error"])
    if problem["type"] == "route":
        return f"{key}.{problem['msg']}"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not a key" + nearest(str(problem["loc"][-1]), _known_keys(problem["loc"][:-1], model))
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    given = shortened(repr(problem["input"]))
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {given}".replace("\n", " ")


def _known_keys(location: tuple, model: type[BaseModel]) -> list[str]:
    """Keys that exist at a location such as (), ("optim",), ("phases", 1) or ("routes", 0)."""
    if not location:
        return list(model.model_fields)
    if "routes" in location:
        return list(Route.model_fields)
    if location[0] == "phases":
        return list(PhaseConfig.model_fields)
    field = model.model_fields.get(str(location[0]))
    return list(getattr(field.annotation, "model_fields", [])) if field else []
