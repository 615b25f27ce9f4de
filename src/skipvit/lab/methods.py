"""Method files: a published scheme as routes and phases, written for 12 blocks and laid over the configuration of a run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from skipvit.config import config as configuration
from skipvit.config.groups import Group, PhasesConfig
from skipvit.routing.routing import Route
from skipvit.util.errors import UsageError

BLOCKS = 12  # of the networks in the papers (ViT-S, ViT-B), and of every method file


class Method(Group):
    """What a method file holds."""

    routes: list[Route]
    phases: PhasesConfig = PhasesConfig()


def read_method(path: Path, depth: int) -> dict[str, Any]:
    """The keys that a method sets, for a network of `depth` blocks: `routes` and, if the file has them, `phases`.

    Raises:
        UsageError: a missing or malformed file, a key that is not a method's, too few blocks for its routes; one line.
    """
    values = configuration.read_yaml(path, "a method is a mapping of routes and phases")
    return scaled(values, depth, BLOCKS, str(path))


def scaled(values: dict[str, Any], depth: int, blocks: int, where: str) -> dict[str, Any]:
    """A method's keys, its routes moved from the `blocks` they are written for to a network of `depth`.

    Raises:
        UsageError: as `read_method`; the line begins with `where`.
    """
    try:
        method = Method(**values)
        routes = for_depth(method.routes, depth, blocks)
    except ValidationError as error:
        raise UsageError(f"{where}: {configuration.first_problem(error, Method)}") from None
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    phases = method.phases.model_dump(exclude_unset=True)
    return {"routes": [_given(route) for route in routes]} | ({"phases": phases} if phases else {})


def for_depth(routes: list[Route], depth: int, blocks: int = BLOCKS) -> list[Route]:
    """Routes written for so many blocks on as many as a network has.

    A border between blocks stays where it is if it is next to either end (of 12: 0, 1, 11, 12), so that the first and the last
    block stay what they are; the others are scaled, b x depth / blocks, halves up. A chain of like routes of one block each,
    which selects anew for every block, stays such a chain, over the scaled span.

    Raises:
        ValueError: a route would be left without a block; one line.
    """
    result: list[Route] = []
    for chain in _chains(routes):
        start, end = _border(chain[0].start, depth, blocks), _border(chain[-1].end, depth, blocks)
        if start >= end:
            raise ValueError(
                f"its blocks {chain[0].start} to {chain[-1].end - 1} of {blocks} vanish in a network of {depth}; use more blocks"
            )
        borders = range(start, end + 1) if len(chain) > 1 else (start, end)
        result += [replace(chain[0], start=first, end=last) for first, last in zip(borders, borders[1:])]
    return result


def _chains(routes: list[Route]) -> list[list[Route]]:
    """Neighbouring routes of one block each that differ in nothing else go together, any other is alone."""
    chains: list[list[Route]] = []
    for route in routes:
        before = chains[-1][-1] if chains else None
        follows = (
            before is not None
            and before.end - before.start == 1
            and route == replace(before, start=before.end, end=before.end + 1)
        )
        if follows:
            chains[-1].append(route)
        else:
            chains.append([route])
    return chains


def _border(block: int, depth: int, blocks: int) -> int:
    if block <= 1:
        return block
    if block >= blocks - 1:
        return depth - (blocks - block)
    return min(max((2 * block * depth + blocks) // (2 * blocks), 1), depth - 1)


def _given(route: Route) -> dict[str, Any]:
    """A route as a file would write it: without what is the default anyway."""
    values = {field.name: getattr(route, field.name) for field in fields(route)}
    defaults = {field.name: field.default for field in fields(route)}
    return {key: value for key, value in values.items() if value != defaults[key]}
