"""Routes as a configuration describes them, checked and resolved into spans of blocks. Pure Python, without MindSpore.

A route sends some patch tokens around a span of blocks. A scorer ranks the tokens, the best `keep_ratio` of them run
through the span, the others keep the values they had and return, each to its original place, where it ends.

Sources: SkipViT (arXiv 2401.15293) for the bypass; EViT (2202.07800) for the fused token; TREAD (2501.04765) and
random-LTD (2211.11586) for random routes. Who ranks the tokens: `routing.scorers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from skipvit.routing.layout import Stage
from skipvit.routing.scorers import SCORERS, Scorer
from skipvit.util.text import nearest


def _border(value: Any) -> Any:
    """A block's number, from the front or the back, or a fraction of the depth, which is kept as it is written."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}(/\d{1,6})?|0?\.\d{1,6}", value.strip()):
        with suppress(ZeroDivisionError):
            share = Fraction(value.strip())
            if share.denominator == 1:
                return int(share)
            if 0 < share < 1:
                return f"{share.numerator}/{share.denominator}"
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("border", "input should be a block's number, or a share of the depth such as 1/3")


Border = Annotated[int | str, BeforeValidator(_border)]


class Route(BaseModel):
    """One route, as a configuration describes it. The keys of its scorer's own parameters stand beside these."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    start: Border
    """first block (from 0) that sees only the kept tokens; negative: counted from the end; 1/3: that share of the
    depth, rounded"""
    end: Border | None = None
    """first block that sees every token again, in the same way; null: the depth, and nothing returns"""
    keep_ratio: float = 0.45
    """share of the patch tokens kept, in (0, 1]; [CLS] is always kept"""
    scorer: str = "cls_attention"
    """who ranks the tokens: cls_attention, the [CLS] row of block start - 1's attention, mean over heads, or another
    scorer"""
    restore: bool = True
    """the bypassed tokens return at `end`, unchanged and in their original places"""
    fuse: bool = False
    """one more token, the score-weighted mean of the others, runs through the span; it ends where they return, else it
    stays"""
    at: Literal["block", "mlp"] = "block"
    """where in block `start` tokens part: before it, or between its attention, which then scores them, and its MLP, as
    in EViT"""
    each: bool = False
    """the tokens are selected anew for every block of the span: a route for each"""

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, values: Any) -> Any:
        """Parameters of other scorers that are null are none: older configurations write them out."""
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None or name in cls.model_fields}
        return values

    @model_validator(mode="after")
    def _check(self) -> Route:
        if self.scorer not in SCORERS:
            known = ", ".join(SCORERS)
            raise _wrong(f"scorer: {self.scorer!r} is not one of {known}{nearest(self.scorer, SCORERS)}")
        if not 0 < self.keep_ratio <= 1:
            raise _wrong(f"keep_ratio: {self.keep_ratio} is outside (0, 1]; 0.45 keeps 45 % of the tokens")
        for name, value in self.knobs.items():
            self._check_knob(name, value)
        return self

    @property
    def knobs(self) -> dict[str, Any]:
        """The scorer's own parameters, as far as they are given."""
        return dict(self.model_extra or {})

    def _check_knob(self, name: str, value: Any) -> None:
        knob = SCORERS[self.scorer].knobs.get(name)
        if knob is None:
            owners = [scorer for scorer, known in SCORERS.items() if name in known.knobs]
            if owners:
                raise _wrong(f"{name}: {self.scorer} has none; it belongs to {', '.join(owners)}")
            known = [*type(self).model_fields, *SCORERS[self.scorer].knobs]
            raise _wrong(f"{name} is not a key{nearest(name, known)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not knob.smallest <= value <= knob.largest:
            raise _wrong(f"{name}: {value!r} is outside {knob.smallest:g} to {knob.largest:g}")


def _wrong(text: str) -> PydanticCustomError:
    """What a route gets wrong; the text begins with the key."""
    return PydanticCustomError("route", "{text}", {"text": text})


@dataclass(frozen=True)
class Span:
    """A route resolved into numbers.

    Attributes:
        start, end: the blocks [start, end) that run on the kept tokens; of block `start` only the MLP if `at` is `mlp`.
        counts: of each of the stage's cells the patch tokens that run through the span (`layout.Cells.kept`); of a ViT,
            which is one cell, round(keep_ratio * patches), at least 1.
        knobs: the scorer's own parameters, as far as they are given.
    """

    start: int
    end: int
    counts: tuple[int, ...]
    scorer: str
    restore: bool
    fuse: bool
    at: str
    knobs: dict[str, Any]

    @property
    def kept(self) -> int:
        """Patch tokens that run through the span."""
        return sum(self.counts)

    @property
    def first_block(self) -> int:
        """First block of which attention and MLP see the kept tokens only."""
        return self.start + (1 if self.at == "mlp" else 0)

    @property
    def reads_before(self) -> bool:
        """Whether the scorer reads what block start - 1 did."""
        return bool(SCORERS[self.scorer].reads_block) and self.at == "block"


def resolve(routes: Iterable[Route], stage: Stage) -> tuple[Span, ...]:
    """Check a list of routes against the stage that they are in, and resolve it; blocks count from the stage's first.

    Raises:
        ValueError: a route that cannot run; one line that names the key, e.g. `routes.1.start`, and what is allowed.
    """
    spans: list[Span] = []
    patches, free_from = stage.layout.patches, 0
    for i, route in enumerate(routes):
        for span in _spans_of(route, f"routes.{i}", stage, free_from):
            span = replace(span, counts=stage.kept(route.keep_ratio, patches))
            _check_span(span, f"routes.{i}", route, patches, stage)
            _refuse_blind(span, spans, i)
            spans.append(span)
            free_from = span.end
            patches = patches if span.restore else span.kept
    return tuple(spans)


def _spans_of(route: Route, key: str, stage: Stage, free_from: int) -> list[Span]:
    """The route's borders as block numbers; the number of kept tokens is still open."""
    start = _block(route.start, stage, f"{key}.start", 0, stage.depth - 1)
    end, restore = stage.depth, False
    if route.end is not None:
        end, restore = _block(route.end, stage, f"{key}.end", start + 1, stage.depth), route.restore
    if restore and end == stage.depth and not stage.keeps_grid:
        raise ValueError(
            f"{key}.end: a token restored after the last block influences nothing; use an end of at most "
            f"{stage.depth - 1}, or restore: false"
        )
    if stage.keeps_grid and not restore:
        wrong = "restore: false" if route.end is not None else "end: null"
        raise ValueError(
            f"{key}: with {wrong} tokens do not return, and this network needs the whole grid after {stage.name}; "
            f"set end to at most {stage.depth}, and restore: true"
        )
    if start < free_from:
        raise ValueError(f"{key}.start: block {start} overlaps the route before it; start at {free_from} or later")
    borders = range(start, end + 1) if route.each else (start, end)
    return [
        Span(first, last, (), route.scorer, restore, route.fuse, route.at, route.knobs)
        for first, last in zip(borders, borders[1:])
    ]


def _block(border: int | str, stage: Stage, key: str, lowest: int, highest: int) -> int:
    """Raises ValueError if there is no such block."""
    depth = stage.depth
    if isinstance(border, str):
        share = Fraction(border) * depth
        block = int(share + Fraction(1, 2))
        block = min(max(block, 1), depth - 1)  # a share is inside: neither the first block nor the end
    else:
        block = border + depth if border < 0 else border
    if lowest <= block <= highest:
        return block
    said = f"block {border}" if block == border else f"block {border} (of {depth}: {block})"
    if key.endswith("start"):
        raise ValueError(f"{key}: {said} does not exist; {stage.name} has blocks 0 to {highest}")
    raise ValueError(f"{key}: {said.removeprefix('block ')} is outside {lowest} to {highest} (start + 1 to the depth)")


def _check_span(span: Span, key: str, route: Route, patches: int, stage: Stage) -> None:
    scorer = Scorer.named(span.scorer)
    if span.fuse and stage.keeps_grid:
        raise ValueError(f"{key}.fuse: the tokens of {stage.name} have places, and there is none for a fused one")
    if span.fuse and span.kept == patches:
        raise ValueError(
            f"{key}.fuse: keep_ratio {route.keep_ratio} keeps all {patches} tokens, so there is nothing to fuse; "
            f"set fuse: false or a lower keep_ratio"
        )
    if span.start == 0 and span.reads_before:
        raise ValueError(
            f"{key}.scorer: {span.scorer} reads what block start - 1 did and block 0 has none before it; "
            f"start at 1 or later, use at: mlp, or random or grid"
        )
    missing = [name for name in scorer.reads if name not in stage.signals]
    if missing:
        what = "the attention of [CLS]" if missing[0] == "cls_row" else f"the {missing[0]} of every patch"
        able = ", ".join(name for name, other in SCORERS.items() if set(other.reads) <= set(stage.signals))
        raise ValueError(f"{key}.scorer: {span.scorer} reads {what}, which this network has none of; use {able}")


def _refuse_blind(span: Span, spans: list[Span], i: int) -> None:
    """Raises ValueError for a scorer whose attention saw other tokens than those that it is to rank."""
    before = spans[-1] if spans else None
    if span.reads_before and before and before.end == before.first_block == span.start and not before.restore:
        raise ValueError(
            f"routes.{i}.at: in block {span.start - 1} attention still saw the tokens that the route before took away "
            f"there, "
            f"so it cannot score the rest; use at: mlp here too, or start at {span.start + 1} or later"
        )
