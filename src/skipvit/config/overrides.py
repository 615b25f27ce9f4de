"""Values laid over others, key by key."""

from __future__ import annotations

from typing import Any

from skipvit.util.errors import UsageError

Values = dict[str, Any]


def over(values: Values, changes: Values, where: str) -> Values:
    """Values with changes laid over them: mappings key by key, a dotted key (`optim.lr`, `routes.0.keep_ratio`) at its
    place, anything else as a whole.

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
