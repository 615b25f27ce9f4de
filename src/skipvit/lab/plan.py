"""The plan of a sweep: a base configuration, methods, grids and seeds, resolved into runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from skipvit.config import config as configuration
from skipvit.config.config import Config, nearest
from skipvit.config.groups import Group, ModelConfig
from skipvit.lab.methods import BLOCKS, read_method, scaled
from skipvit.util.errors import UsageError

Values = dict[str, Any]
Grid = dict[str, list[Any] | dict[str, Values]]

ABOUT = "a plan is a mapping with base, methods and seeds (docs/lab.md)"
_NAME = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)*")  # of a method: part of folder names
_OF_THE_SWEEP = ("name", "seed")
# Runs of a sweep are compared with each other, so only this may differ between the plan and what was trained before.
MAY_DIFFER = {
    "checkpoint.keep",
    "checkpoint.minutes",
    "data.workers",
    "data.broken_share",
    "log.steps",
    "log.tensorboard",
}


class PlanFile(Group):
    """What a plan file may hold."""

    base: str
    """YAML file of a run, beside the plan, that all runs begin with"""
    methods: dict[str, str | Values | None] = Field(min_length=1)
    """by name: a method file (see `tools.methods`); or keys; or keys over a file (`from`), and a grid of its own (`grid`)"""
    seeds: int | list[int] = 1
    """how many, from 0; or which"""
    grid: Values = {}
    """for all methods: by key its values, or by label names and the keys that each sets; all combinations are run"""
    common: Values = {}
    """keys that all runs have, over the plan's base; another base goes without them, and without the target"""
    blocks: int | None = Field(None, ge=1)
    """of the network that routes in the plan are written for, scaled to others as method files are; null: they are taken as they are"""
    baseline: str | None = None
    """the method that all are compared to; null: the first"""
    target: float | None = Field(None, gt=0, lt=100)
    """top-1, percent, for which the report gives the time that it takes"""


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Attributes:
        name: of its folder: the variant, the seed.
        variant: the method with the point of its grids, e.g. `skipvit-dense_warmup_epochs_2`.
        cell: the point of the plan's own grid, which methods are compared within; empty without one.
        point: the grids' values by key or label.
    """

    name: str
    method: str
    variant: str
    cell: str
    seed: int
    point: dict[str, Any]
    config: Config = field(repr=False)

    def differs_from(self, other: Config) -> list[str]:
        """Keys in which another run was not trained, logged or evaluated as this one; names are left to the caller."""
        return [key for key in self.config.changed_since(other, MAY_DIFFER) if key != "name"]

    def as_dict(self) -> Values:
        """Everything but the configuration, which the run's folder has."""
        return {name: value for name, value in asdict(self).items() if name != "config"}


@dataclass(frozen=True)
class Plan:
    """A plan file, resolved."""

    name: str
    runs: tuple[Run, ...]
    baseline: str
    target: float | None


def read(path: Path, check: Callable[[Values, str], Config] = configuration.checked, base: Path | None = None) -> Plan:
    """Read a plan and resolve it into runs.

    Args:
        check: makes a configuration from values and the place to name in an error; it may lay a command line over them.
        base: the run to begin with instead of the plan's base and `common`.

    Raises:
        UsageError: one line: a missing file, an unknown key, a method or run that is there twice, a configuration that is refused.
    """
    values = configuration.read_yaml(path, ABOUT)
    try:
        plan = PlanFile(**values)
    except ValidationError as error:
        raise UsageError(f"{path}: {configuration.first_problem(error, PlanFile)}") from None
    seeds = list(range(plan.seeds)) if isinstance(plan.seeds, int) else plan.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"{path}: seeds: {plan.seeds} is to be a number of 1 or more, or a list of different ones")
    baseline = plan.baseline or next(iter(plan.methods))
    if baseline not in plan.methods:
        raise UsageError(f"{path}: baseline: {baseline} is not one of the methods" + nearest(baseline, plan.methods))
    if isinstance(plan.methods[baseline], dict) and "grid" in plan.methods[baseline]:
        raise UsageError(
            f"{path}: methods.{baseline}.grid: the baseline is to be one method; let others have the grid, or all"
        )
    _refuse_names(plan.common, f"{path}: common")
    if base is None:
        values = over(configuration.read_yaml(base_of(path, plan)), plan.common, f"{path}: common")
    else:
        values = configuration.read_yaml(base)
    runs: list[Run] = []
    for method, given in plan.methods.items():
        runs += _runs_of(path, method, given, values, plan, seeds, check)
    return Plan(path.stem, _without_twins(path, runs), baseline, plan.target if base is None else None)


def base_of(path: Path, plan: PlanFile) -> Path:
    """The base's file: beside the plan, or from the current folder."""
    beside = path.parent / plan.base
    return beside if beside.is_file() or not Path(plan.base).is_file() else Path(plan.base)


def _runs_of(
    path: Path, method: str, given: str | Values | None, base: Values, plan: PlanFile, seeds: list[int], check: Callable
) -> Iterator[Run]:
    where = f"{path}: methods.{method}"
    if not _NAME.fullmatch(method):
        raise UsageError(f"{where}: a method's name is letters, digits, _ and ., with - between; it names folders")
    own = {"from": given} if isinstance(given, str) else dict(given or {})
    file, own_grid = own.pop("from", None), own.pop("grid", {})
    _refuse_names(own, where)
    for cell, of_cell in points(plan.grid, f"{path}: grid"):
        for point, of_point in points(own_grid, f"{where}.grid"):
            layers = [(own, where), (of_cell, f"{path}: grid"), (of_point, f"{where}.grid")]
            depth = _depth(base, [keys for keys, _ in layers])
            values = base if file is None else over(base, read_method(path.parent / str(file), depth), where)
            for keys, place in layers:
                values = over(values, _for_depth(keys, depth, plan.blocks or depth, place), place)
            variant = "-".join([method, *_words(point)])
            for seed in seeds:
                name = "-".join([variant, *_words(cell), f"s{seed}"])
                config = check(
                    values | {"name": name, "seed": seed}, where if not (cell or point) else f"{where} ({name})"
                )
                if (config.name, config.seed) != (name, seed):
                    raise UsageError(
                        "--name, --seed: the sweep sets them; use the plan's seeds, and its methods' names"
                    )
                if (file is not None or plan.blocks) and config.model.shape().depth != depth:
                    raise UsageError(
                        "--model.depth, --model.size: the plan scales routes to its depth; set it in the plan or its base"
                    )
                yield Run(name, method, variant, "-".join(_words(cell)), seed, cell | point, config)


def _for_depth(keys: Values, depth: int, blocks: int, where: str) -> Values:
    """Keys with their routes moved to a network of another depth. Raises UsageError for a border that is set alone."""
    if depth == blocks:
        return keys
    for key in keys:
        if re.fullmatch(r"routes\.\d+\.(start|end)", str(key)):
            raise UsageError(f"{where}: {key} cannot be scaled from {blocks} to {depth} blocks; give the whole route")
    return (
        keys | scaled({"routes": keys["routes"]}, depth, blocks, where)
        if isinstance(keys.get("routes"), list)
        else keys
    )


def _depth(base: Values, layers: list[Values]) -> int:
    """Blocks of the network, whatever else is right or wrong with the keys."""
    values = {"model": base.get("model", {})}
    for keys in layers:
        values = over(values, {key: value for key, value in keys.items() if str(key).split(".")[0] == "model"}, "model")
    try:
        return ModelConfig(**values["model"]).shape().depth
    except (ValidationError, TypeError):
        return BLOCKS  # refused with all else that is wrong


def points(grid: Grid, where: str) -> Iterator[tuple[dict[str, Any], Values]]:
    """All combinations of a grid: what to call the point, by key or label, and the keys that it sets."""
    axes = []
    for key, values in _checked_grid(grid, where).items():
        if isinstance(values, dict):
            axes.append([({key: name}, keys) for name, keys in values.items()])
        else:
            axes.append([({key: value}, {key: value}) for value in values])
    for combination in itertools.product(*axes):
        point, keys = {}, {}
        for name, sets in combination:
            twice = sorted(set(keys) & set(sets))
            if twice:
                raise UsageError(f"{where}: {twice[0]} is set twice; every axis of a grid sets keys of its own")
            point, keys = point | name, keys | sets
        yield point, keys


def _checked_grid(grid: Any, where: str) -> Grid:
    if not isinstance(grid, dict):
        raise UsageError(f"{where}: a grid is a mapping of keys to lists, e.g. optim.lr: [1.0e-3, 2.0e-3]")
    for key, values in grid.items():
        named = isinstance(values, dict) and values and all(isinstance(keys, dict) for keys in values.values())
        plain = isinstance(values, list) and values and not any(isinstance(value, (dict, list)) for value in values)
        if not named and not plain:
            raise UsageError(f"{where}.{key}: give a list of plain values, or names with the keys that each sets")
        for keys in values.values() if named else [{key: None}]:
            _refuse_names(keys, where)
    return grid


def _refuse_names(keys: Values, where: str) -> None:
    for key in _OF_THE_SWEEP:
        if key in keys:
            raise UsageError(f"{where}.{key}: the sweep sets it; use seeds, and the methods' names")


def _words(point: dict[str, Any]) -> list[str]:
    """A point of a grid as parts of a folder's name: the key's last part and the value, e.g. `keep_ratio_0.45`."""
    texts = (f"{str(key).split('.')[-1]}_{value}".replace("%", "pct") for key, value in point.items())
    return [re.sub(r"[^A-Za-z0-9_.]+", "_", text) for text in texts]


def over(values: Values, changes: Values, where: str) -> Values:
    """Values with changes laid over them: mappings key by key, a dotted key (`optim.lr`, `routes.0.keep_ratio`) at its place,
    anything else as a whole.

    Raises:
        UsageError: a dotted key leads nowhere.
    """
    result = dict(values)
    for key, value in changes.items():
        first, _, rest = str(key).partition(".")
        if rest:
            value = _below(result.get(first, {}), rest, value, f"{where}: {key}")
        elif isinstance(value, dict) and isinstance(result.get(first), dict):
            value = over(result[first], value, where)
        result[first] = value
    return result


def _below(values: Any, key: str, value: Any, where: str) -> Any:
    first, _, rest = key.partition(".")
    if isinstance(values, dict) and not first.isdecimal():
        return over(values, {key: value}, where)
    if not isinstance(values, list) or not first.isdecimal() or int(first) >= len(values):
        raise UsageError(
            f"{where}: there is no such place in this method; a list counts from 0, e.g. routes.0.keep_ratio"
        )
    result = list(values)
    result[int(first)] = _below(result[int(first)], rest, value, where) if rest else value
    return result


def _without_twins(path: Path, runs: list[Run]) -> tuple[Run, ...]:
    """Raises UsageError if two runs have the same name, or are the same."""
    names: dict[str, Run] = {}
    contents: dict[str, Run] = {}
    for run in runs:
        if run.name in names:
            raise UsageError(f"{path}: two runs would be named {run.name}; give other names to methods or grid")
        names[run.name] = run
        same = contents.setdefault(configuration.to_yaml(run.config.model_copy(update={"name": "run"})), run)
        if same is not run:
            raise UsageError(f"{path}: {same.name} and {run.name} are the same run; leave one out")
    return tuple(runs)
