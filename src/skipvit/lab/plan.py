"""The plan of a sweep: a base configuration, methods, grids and seeds, resolved into trials."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from skipvit.config.config import Config
from skipvit.config.groups import Group
from skipvit.config.overrides import Values, over, points
from skipvit.config.reading import checked, first_problem, read_yaml, recipe
from skipvit.routing.program import routed_stage
from skipvit.routing.spec import resolve
from skipvit.util.errors import UsageError
from skipvit.util.text import nearest

ABOUT = "a plan is a mapping with base, methods and seeds (docs/lab.md)"
MOST = 10_000  # trials
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*"  # of a method: part of folder names
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
# Runs of a sweep are compared with each other, so only this may differ between the plan and what was trained before.
MAY_DIFFER = {"name", "checkpoint.keep", "checkpoint.minutes", "data.workers", "data.broken_share"}


class PlanFile(Group):
    """What a plan file may hold."""

    base: str
    """YAML file of a run, beside the plan, that all runs begin with"""
    methods: dict[str, str | Values | None] = Field(min_length=1)
    """by name: a method file; or keys; or keys over a file (`from`), and a grid of its own (`grid`)"""
    seeds: int | list[int] = 1
    """how many, from 0; or which"""
    grid: Values = {}
    """for all methods: by key its values, or by label names and the keys that each sets; all combinations are run"""
    common: Values = {}
    """keys that all runs have, over the plan's base; another base goes without them, and without the target"""
    baseline: str | None = None
    """the method that all are compared to; null: the first"""
    target: float | None = Field(None, gt=0, lt=100)
    """top-1, percent, for which the report gives the time that it takes"""


class Entry(BaseModel):
    """One training of a sweep, as `sweep.json` has it.

    Attributes:
        name: of its run: the variant, the cell, the seed.
        variant: the method with the point of its own grid, e.g. `skipvit-keep_ratio_0.3`.
        cell: the point of the plan's own grid, which methods are compared within; empty without one.
        point: the grids' values by key or label.
    """

    name: Name
    method: Name
    variant: Name
    cell: Annotated[str, Field(pattern=f"^({NAME})?$")]
    seed: int
    point: dict[str, Any]


class Trial(Entry):
    """One training of a plan."""

    config: Config = Field(exclude=True, repr=False)


@dataclass(frozen=True)
class Plan:
    """A plan file, resolved."""

    name: str
    trials: tuple[Trial, ...]
    baseline: str
    target: float | None


def read(path: Path, overrides: Values | None = None, base: Path | None = None) -> Plan:
    """Read a plan and resolve it into trials.

    Args:
        overrides: keys that all trials have, over everything else; groups or dotted.
        base: the run to begin with instead of the plan's base and `common`.

    Raises:
        UsageError: one line: a missing file, an unknown key, a method or trial that is there twice, a configuration
            that is refused.
    """
    path = recipe(path)
    values = read_yaml(path, ABOUT)
    try:
        plan = PlanFile(**values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, PlanFile)}") from None
    seeds = list(range(min(plan.seeds, MOST + 1))) if isinstance(plan.seeds, int) else plan.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"{path}: seeds: {plan.seeds} is to be a number of 1 or more, or a list of different ones")
    baseline = plan.baseline or next(iter(plan.methods))
    if baseline not in plan.methods:
        raise UsageError(f"{path}: baseline: {baseline} is not one of the methods" + nearest(baseline, plan.methods))
    if "grid" in _keys_of(plan.methods[baseline]):
        why = "the baseline is to be one method; let others have the grid, or all"
        raise UsageError(f"{path}: methods.{baseline}.grid: {why}")
    if path.stem.startswith("."):
        raise UsageError(f"{path}: the file's name is that of the sweep's folder, and may not begin with a dot")
    if base is None:
        beside, other = path.parent / plan.base, recipe(plan.base)
        file = beside if beside.is_file() or not other.is_file() else other
        begin = _over(read_yaml(file), plan.common, f"{path}: common")
    else:
        begin = read_yaml(recipe(base))
    _refuse_own(overrides or {}, "--")
    found = (_trials_of(path, method, begin, plan, seeds, overrides or {}) for method in plan.methods)
    trials = tuple(islice(chain.from_iterable(found), MOST + 1))
    if len(trials) > MOST:
        raise UsageError(f"{path}: these are more than {MOST:,} runs; use fewer methods, values or seeds")
    _refuse_twins(path, trials)
    return Plan(path.stem, trials, baseline, plan.target if base is None else None)


def _keys_of(method: str | Values | None) -> Values:
    return {"from": method} if isinstance(method, str) else dict(method or {})


def _trials_of(
    path: Path, method: str, base: Values, plan: PlanFile, seeds: list[int], overrides: Values
) -> Iterator[Trial]:
    where, own = f"{path}: methods.{method}", _keys_of(plan.methods[method])
    if not re.fullmatch(NAME, method):
        raise UsageError(
            f"{where}: a method's name is letters, digits, _ and . (not first), with - between; it names folders"
        )
    file, own_grid = own.pop("from", None), own.pop("grid", {})
    if file is not None:
        file = path.parent / str(file)
        base = _over(base, read_yaml(file, "a method is a mapping of keys of a run"), str(file))
        where = f"{where} ({file})"
    base = _over(base, own, where)
    for cell, of_cell in points(plan.grid, f"{path}: grid"):
        for point, of_point in points(own_grid, f"{where}.grid"):
            values = _over(_over(base, of_cell, f"{path}: grid"), of_point, f"{where}.grid")
            values = over(values, overrides, where)
            names = {"method": method, "variant": "-".join([method, *_words(point)]), "cell": "-".join(_words(cell))}
            for seed in seeds:
                name = "-".join([names["variant"], *_words(cell), f"s{seed}"])
                place = f"{where} ({name})" if cell or point else where
                config = checked(values | {"name": name, "seed": seed}, place)
                yield Trial(name=name, **names, seed=seed, point=cell | point, config=config)


def _over(values: Values, keys: Values, where: str) -> Values:
    """`over`, but for what the sweep sets itself. Raises UsageError."""
    _refuse_own(keys, f"{where}.")
    return over(values, keys, where)


def _refuse_own(keys: Values, before: str) -> None:
    for key in ("name", "seed"):
        if key in keys:
            raise UsageError(f"{before}{key}: the sweep sets it; use the plan's seeds, and its methods' names")


def _words(point: dict[str, Any]) -> list[str]:
    """A point of a grid as parts of a folder's name: the key's last part and the value, e.g. `keep_ratio_0.45`."""
    texts = (f"{str(key).split('.')[-1]}_{value}".replace("%", "pct") for key, value in point.items())
    return [re.sub(r"[^A-Za-z0-9_.]+", "_", text) for text in texts]


def _refuse_twins(path: Path, trials: tuple[Trial, ...]) -> None:
    """Raises UsageError if two trials have the same name, or are the same."""
    names: set[str] = set()
    known: dict[str, str] = {}  # names by identity
    for trial in trials:
        if trial.name in names:
            raise UsageError(f"{path}: two runs would be named {trial.name}; give other names to methods or grid")
        names.add(trial.name)
        same = known.setdefault(identity(trial.config), trial.name)
        if same != trial.name:
            raise UsageError(f"{path}: {same} and {trial.name} are the same run; leave one out")


def identity(config: Config) -> str:
    """A hash of what makes a run what it is: equal for runs that were trained, evaluated and logged alike."""
    return hashlib.sha256(json.dumps(essentials(config), sort_keys=True).encode()).hexdigest()[:16]


def essentials(config: Config) -> Values:
    """A configuration by dotted key, resolved: however it was written, and without what changes nothing of the run's
    weights and records."""
    values = config.model_dump(mode="json", exclude={"log", "routes"})
    values["model"] = asdict(config.model.spec())
    values["routes"] = {name: forward_of(config, name) for name in config.evaluated()}
    values["phases"] = [
        [phase.epochs, forward_of(config, phase.forward), phase.config.augment.model_dump()]
        for phase in config.resolved_phases()
    ]
    flat: Values = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": of for name, of in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if key not in MAY_DIFFER}


def forward_of(config: Config, name: str) -> Values:
    """What a forward of a configuration is, however it was written."""
    spec, forward = config.model.spec(), config.forwards()[name]
    spans = resolve(forward.routes, routed_stage(spec, forward.image_size))
    return {"image_size": forward.image_size, "spans": [asdict(span) for span in spans]}
