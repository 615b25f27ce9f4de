"""YAML as plain values, whoever wrote it: what would take minutes, gigabytes or a stack is refused before."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import yaml

from skipvit.util.text import shortened

LONGEST = 100_000  # characters, of which PyYAML reads some 200,000 a second; a run that is written out has 3,000
DEEPEST = 40  # lists and mappings within each other
MOST_OPEN = 500  # brackets: PyYAML's time grows with their square; some may be within quotes
TOO_DEEP = f"nested deeper than {DEEPEST} lists and mappings"
MOST = 100_000  # values, aliases written out
LARGEST_INT = 2**63
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # of PyYAML's conversions


def parse(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: one short line: where it is malformed, which key is there twice, what is no number or date, or that
            it is too long, too deep or too large.
    """
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters, which no configuration is")
    if max(accumulate(("[{]}".find(c) < 2) * 2 - 1 for c in text if c in "[{]}"), default=0) > MOST_OPEN:
        raise ValueError(TOO_DEEP)
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except Bomb as error:
        raise ValueError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML ({_reason(error)})") from None
    except MALFORMED as error:
        raise ValueError(f"not valid YAML ({shortened(str(error))})") from None


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong: PyYAML has it under several names."""
    found = getattr(error, "problem", None) or getattr(error, "reason", None) or getattr(error, "context", None)
    return shortened(str(found or "malformed"), 120)


class Bomb(Exception):
    """Little text that would become very much, or very deep. One line."""


def _refuse_bomb(root: yaml.Node | None) -> None:
    """Raises Bomb if the values are too many or nested too deeply once aliases are written out, or if an alias
    names what it is in. Linear in the text: every node is counted once."""
    sizes: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise Bomb(TOO_DEEP)
        if id(node) not in sizes:
            sizes[id(node)] = MOST  # that of a node within itself
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            below = 0 if isinstance(node, yaml.ScalarNode) else sum(count(part, depth + 1) for part in parts)
            sizes[id(node)] = 1 + below
        return sizes[id(node)]

    if root is not None and count(root, 0) > MOST:
        raise Bomb(f"more than {MOST:,} values once its aliases are written out")


class _Loader(yaml.SafeLoader):
    def get_single_node(self):
        node = super().get_single_node()
        _refuse_bomb(node)
        return node

    def construct_object(self, node, deep=False):
        """PyYAML's conversions raise many kinds, without a place."""
        try:
            value = super().construct_object(node, deep)
            if type(value) is str:
                value.encode()  # half of a surrogate pair is no text, and can be written nowhere
        except MALFORMED:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            problem = f"'{shortened(str(node.value))}' is not of the type {shortened(kind)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        if type(value) is int and abs(value) >= LARGEST_INT:
            problem = "a whole number of more than 64 bits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        """Of a key that is written twice YAML libraries silently take the last."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{shortened(key.value)} is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
