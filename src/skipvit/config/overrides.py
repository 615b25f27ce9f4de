"""Keys laid over a configuration's values, and grids of them. Pure: plain values in, plain values out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from skipvit.util.errors import UsageError

Values = dict[str, Any]
Point = tuple[dict[str, Any], Values]  # of a grid: what to call it, by key or label, and the keys that it sets


def over(values: Values, changes: Values, where: str) -> Values:
    """Values with changes laid over them: mappings key by key, a dotted key (`optim.lr`, `routes.0.keep_ratio`) at its
    place, anything else as a whole. Raises UsageError: a dotted key leads nowhere; the line begins with `where`."""
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


def points(grid: Any, where: str) -> Iterator[Point]:
    """All combinations of a grid, whose axes are keys with lists of values, or labels with names and the keys of each.
    Raises UsageError: it is no grid, or two axes set the same key."""
    for combination in itertools.product(*_axes(grid, where)):
        point: dict[str, Any] = {}
        keys: Values = {}
        for name, sets in combination:
            twice = sorted(set(keys) & set(sets))
            if twice:
                raise UsageError(f"{where}: {twice[0]} is set twice; every axis of a grid sets keys of its own")
            point, keys = point | name, keys | sets
        yield point, keys


def _axes(grid: Any, where: str) -> list[list[Point]]:
    if not isinstance(grid, dict):
        raise UsageError(f"{where}: a grid is a mapping of keys to lists, e.g. optim.lr: [1.0e-3, 2.0e-3]")
    axes = []
    for key, values in grid.items():
        if isinstance(values, dict) and values and all(isinstance(keys, dict) for keys in values.values()):
            axes.append([({key: name}, keys) for name, keys in values.items()])
        elif isinstance(values, list) and values and not any(isinstance(value, dict | list) for value in values):
            axes.append([({key: value}, {key: value}) for value in values])
        else:
            raise UsageError(f"{where}.{key}: give a list of plain values, or names with the keys that each sets")
    return axes
