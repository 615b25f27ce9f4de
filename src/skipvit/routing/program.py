"""The program: what a forward computes, as a flat list of steps with the layout of the tokens before and after each.

Pure Python, without MindSpore. `routing.forward.Forward` walks a program when it is compiled; multiply-accumulates and
memory (`measure`), the ONNX graph (`weights`), the audit, the figures of kept patches and the tests walk the same
list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from skipvit.routing.carry import Carrier, carrier_of
from skipvit.routing.layout import Cells, Layout, Stage
from skipvit.routing.scorers import ATTENTION, Scorer
from skipvit.routing.spec import Route, Span, resolve


class Spec(Protocol):
    """All that a program has to know of a backbone; see `models.vit_spec.ViTSpec` for the whole of it.

    Attributes:
        depth: all its blocks.
        image_size: side of its images, pixels.
        routed_stage: in which of its stages routes are, and whose blocks they count.
    """

    depth: int
    image_size: int
    routed_stage: int

    def stages(self, image_size: int | None = None) -> tuple[Stage, ...]:
        """In order."""
        ...


def routed_stage(spec: Spec, image_size: int | None = None) -> Stage:
    """The stage of a backbone that routes are in."""
    return spec.stages(image_size)[spec.routed_stage]


def first_routed_block(spec: Spec) -> int:
    """Of all the backbone's blocks, the one that is block 0 to a route."""
    return sum(stage.depth for stage in spec.stages()[: spec.routed_stage])


@dataclass(frozen=True)
class Step:
    """One step of a program.

    Attributes:
        before, after: the tokens that it takes and gives.
        block: of which block, -1 for a step of none.
        route: of which route, -1 for a step of none.
    """

    kind: ClassVar[str] = ""
    before: Layout
    after: Layout
    block: int = -1
    route: int = -1

    @property
    def makes(self) -> tuple[str, ...]:
        """Names of the values that can be asked for here."""
        return ()


class Embed(Step):
    """Images to tokens. Makes `embed`."""

    kind = "embed"

    @property
    def makes(self) -> tuple[str, ...]:
        return ("embed",)


class Attend(Step):
    """The first half of a block, in which tokens meet. Makes `blocks.N.cls_attention`: what [CLS] attends to of the
    patches."""

    kind = "attend"

    @property
    def makes(self) -> tuple[str, ...]:
        return (f"blocks.{self.block}.cls_attention",) if self.before.prefix else ()


class Feed(Step):
    """The second half of a block, each token on its own. Makes `blocks.N`, its output."""

    kind = "feed"

    @property
    def makes(self) -> tuple[str, ...]:
        return (f"blocks.{self.block}",)


@dataclass(frozen=True)
class Score(Step):
    """Rank the patches by what the latest attention told. Makes `routes.N.ranking`, or the name of a probe.

    Attributes:
        kept: how many will stay.
        first_noise: the first column of the forward's noise that the scorer reads.
        knobs: the scorer's own parameters.
        name: of the ranking.
    """

    kind: ClassVar[str] = "score"
    scorer: Scorer = field(kw_only=True)
    kept: int = field(kw_only=True)
    first_noise: int = field(kw_only=True)
    knobs: dict[str, Any] = field(kw_only=True)
    name: str = field(kw_only=True)

    @property
    def noise_columns(self) -> int:
        return self.scorer.noise_columns(self.before.patches)

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class Select(Step):
    """The kept tokens go on, the others take the carrier's way. Makes `routes.N.slots`: which place of the sequence
    each of the stage's patches lives in from here on, -1 for none.

    Attributes:
        cells: of the patches that are selected from.
        counts: how many of each of them stay.
    """

    kind: ClassVar[str] = "select"
    carrier: Carrier = field(kw_only=True)
    cells: Cells = field(kw_only=True)
    counts: tuple[int, ...] = field(kw_only=True)

    @property
    def makes(self) -> tuple[str, ...]:
        return (f"routes.{self.route}.slots",)


@dataclass(frozen=True)
class Restore(Step):
    """The tokens that did not stay return to their places."""

    kind: ClassVar[str] = "restore"
    carrier: Carrier = field(kw_only=True)


@dataclass(frozen=True)
class Rescore(Restore):
    """Signals of all tokens for the scorer that follows a route at once: of those that bypassed the block before, too.

    Attributes:
        reads: the scorer's.
    """

    kind: ClassVar[str] = "rescore"
    reads: tuple[str, ...] = field(kw_only=True)

    @property
    def asks_attention(self) -> bool:
        """Whether it reads of the attention, and not only what went into the block."""
        return any(name in ATTENTION for name in self.reads)


@dataclass(frozen=True)
class Downsample(Step):
    """Fewer and wider tokens, between two stages.

    Attributes:
        stage: the one that begins.
    """

    kind: ClassVar[str] = "downsample"
    stage: int = field(kw_only=True)


class Norm(Step):
    """The last norm. Makes `norm`."""

    kind = "norm"

    @property
    def makes(self) -> tuple[str, ...]:
        return ("norm",)


class Head(Step):
    """Tokens to logits. Makes `logits`."""

    kind = "head"

    @property
    def makes(self) -> tuple[str, ...]:
        return ("logits",)


@dataclass(frozen=True)
class Program:
    """A named forward.

    Attributes:
        name: e.g. `dense` or `routed`.
        steps: in order.
        noise_width: columns of random numbers that it reads an image.
        image_size: side of the images that it takes, pixels.
    """

    name: str
    steps: tuple[Step, ...]
    noise_width: int
    image_size: int

    def of_kind(self, kind: str) -> tuple[Any, ...]:
        """Its steps of a kind such as `select`."""
        return tuple(step for step in self.steps if step.kind == kind)

    @property
    def makes(self) -> tuple[str, ...]:
        """Names of all values that can be asked for, in the order in which they are made."""
        return tuple(name for step in self.steps for name in step.makes)

    @property
    def selections(self) -> tuple[Select, ...]:
        """The routes' selections, in order."""
        return self.of_kind("select")


@dataclass(frozen=True)
class Probe:
    """A scorer to be asked in a forward without selecting by it.

    Attributes:
        scorer: its name and, if it has any, its own parameters.
        block: whose attention it reads.
        kept: how many it would keep.
    """

    scorer: str
    block: int
    kept: int
    knobs: dict[str, Any] = field(default_factory=dict)


def compile_program(
    spec: Spec,
    routes: Iterable[Route] = (),
    name: str = "dense",
    image_size: int | None = None,
    probes: Iterable[Probe] = (),
) -> Program:
    """Resolve a backbone and its routes into steps.

    Args:
        spec: of the backbone, see `Spec`.
        image_size: side of the images, if not the backbone's own.
        probes: rankings to make on the way; each is named `probes.<its scorer>`.

    Raises:
        ValueError: a route that cannot run, in one line that names the key, e.g. `routes.1.start`.
    """
    stages = spec.stages(image_size)
    spans = resolve(routes, stages[spec.routed_stage])
    writer = _Writer(stages, spec.routed_stage, spans, tuple(probes))
    steps = tuple(writer.write())
    return Program(name, steps, writer.noise, image_size or spec.image_size)


class _Writer:
    """Writes the steps of a program one after another."""

    def __init__(self, stages: tuple[Stage, ...], routed: int, spans: tuple[Span, ...], probes: tuple[Probe, ...]):
        self.stages, self.routed, self.probes = stages, routed, probes
        self.layout, self.first = stages[0].layout, sum(stage.depth for stage in stages[:routed])
        self.spans = tuple(replace(span, start=self.first + span.start, end=self.first + span.end) for span in spans)
        # columns 2 i and 2 i + 1 are for the drop path of block i
        self.noise = 2 * sum(stage.depth for stage in stages)

    def write(self) -> Iterator[Step]:
        at = 0
        yield Embed(Layout(0, self.layout.patches, 0), self.layout)
        for s, stage in enumerate(self.stages):
            end = at + stage.depth
            if s > 0:
                yield Downsample(self.layout, stage.layout, at, stage=s)
                self.layout = stage.layout
            if s == self.routed:
                for r, span in enumerate(self.spans):
                    yield from self.blocks(at, span.start)
                    yield from self.route(r, span)
                    at = span.end
            yield from self.blocks(at, end)
            at = end
        yield Norm(self.layout, self.layout)
        yield Head(self.layout, Layout(1, 0, 0))

    def blocks(self, start: int, end: int) -> Iterator[Step]:
        for block in range(start, end):
            yield from self.attend(block)
            yield self.feed(block)

    def attend(self, block: int) -> Iterator[Step]:
        yield Attend(self.layout, self.layout, block)
        for probe in self.probes:
            if probe.block == block:
                yield self.score(-1, probe.scorer, probe.kept, probe.knobs, f"probes.{probe.scorer}")

    def feed(self, block: int) -> Step:
        return Feed(self.layout, self.layout, block)

    def score(self, route: int, scorer: str, kept: int, knobs: dict[str, Any], name: str) -> Score:
        step = Score(
            self.layout, self.layout, route=route, scorer=Scorer.named(scorer), kept=kept, first_noise=self.noise,
            knobs=Scorer.named(scorer).settings(knobs), name=name,
        )  # fmt: skip
        self.noise += step.noise_columns
        return step

    def route(self, r: int, span: Span) -> Iterator[Step]:
        outer, carrier = self.layout, carrier_of(span.restore, span.fuse)
        if span.at == "mlp":
            yield from self.attend(span.start)
        yield self.score(r, span.scorer, span.kept, span.knobs, f"routes.{r}.ranking")
        inner = Layout(outer.prefix, span.kept, outer.suffix + carrier.adds, outer.places)
        cells = self.stages[self.routed].cells or Cells((outer.patches,))
        yield Select(outer, inner, route=r, carrier=carrier, cells=cells, counts=span.counts)
        self.layout = inner
        if span.at == "mlp":
            yield self.feed(span.start)
        yield from self.blocks(span.first_block, span.end)
        if carrier.returns:
            if self.scored_at_once(r + 1, span):
                reads = Scorer.named(self.spans[r + 1].scorer).reads_block
                yield Rescore(inner, outer, span.end - 1, r, carrier=carrier, reads=reads)
            yield Restore(inner, outer, route=r, carrier=carrier)
            self.layout = outer

    def scored_at_once(self, r: int, span: Span) -> bool:
        """Whether route r begins where a span ends, and its scorer reads of a block that not all tokens saw."""
        follows = r < len(self.spans) and self.spans[r].start == span.end and self.spans[r].reads_before
        return follows and span.first_block < span.end


def kept_positions(slots: np.ndarray, layout: Layout) -> np.ndarray:
    """Which patches of an image stand for themselves in a sequence, in order of position.

    Args:
        slots: (n, patches of the stage), a forward's `routes.N.slots`, `row_major` or as they are stored.
        layout: of the sequence, `Select.after`.

    Returns:
        int (n, layout.patches).
    """
    alone = (slots >= layout.prefix) & (slots < layout.prefix + layout.patches)
    return np.nonzero(alone)[1].reshape(len(slots), layout.patches)


def row_major(values: np.ndarray, stage: Stage) -> np.ndarray:
    """Values by patch (n, patches) of a stage, from the order in which they are stored to rows of the image."""
    if stage.order is None:
        return values
    result = np.empty_like(values)
    result[:, list(stage.order)] = values
    return result
