"""Routes: which tokens bypass which blocks, and how they leave and return with static shapes.

A route sends some patch tokens around a span of blocks. A scorer ranks the tokens, the best `keep_ratio` of them
run through the span, the others keep the values they had and return, each in its original place, where it ends.

Sources: SkipViT (arXiv 2401.15293) for the bypass; EViT (2202.07800) for the fused token; TREAD (2501.04765) and random-LTD
(2211.11586) for random routes. Who ranks the tokens: `models.scorers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.routing.scorers import SCORERS

Formulation = Literal["gather", "matmul"]

# Keys that only one scorer reads, and their largest value.
KNOBS = {"temperature": ("sampled_cls_attention", 1000), "random_share": ("mixed_cls_attention", 1)}


@dataclass(frozen=True)
class Route:
    """One route, as a config describes it.

    Attributes:
        start: first block (0-based) that sees only the kept tokens.
        end: first block that sees every token again; the depth if nothing returns.
        keep_ratio: share of the patch tokens kept, in (0, 1]; [CLS] is always kept.
        scorer: who ranks the tokens: `cls_attention`, the [CLS] row of block `start - 1`'s attention, mean over heads, or
            another of `models.scorers`.
        restore: the bypassed tokens return at `end`, unchanged and in their original places.
        fuse: one extra token, the score-weighted mean of the bypassed ones, runs through the span. It is dropped
            where the tokens return; without `restore` it stays, always kept. The scorers of attention weigh it by the
            attention itself, `random` and `grid`, which have no notion of importance, equally.
        temperature: of `sampled_cls_attention`, from 0, which ranks by attention, up, towards random; 1 if not given.
        random_share: of `mixed_cls_attention`, share of the images that are routed at random; 0.5 if not given.
        at: where in block `start` the tokens part. `block`: before it. `mlp`: between its attention, which all tokens take part in and
            whose [CLS] row then scores them, and its MLP, as in EViT.
    """

    # Read by the configuration library: a key that is not a field is an error.
    __pydantic_config__ = {"extra": "forbid"}

    start: int
    end: int
    keep_ratio: float = 0.45
    scorer: str = "cls_attention"
    restore: bool = True
    fuse: bool = False
    temperature: float | None = None
    random_share: float | None = None
    at: Literal["block", "mlp"] = "block"


@dataclass(frozen=True)
class Span:
    """A route resolved into the integers that the graph is built from.

    Attributes:
        start, end: the blocks [start, end) that run on the kept tokens; of block `start` only the MLP if `at` is `mlp`.
        tokens: patch tokens that enter, before the selection.
        kept: patch tokens that run through the span: round(keep_ratio * tokens), at least 1.
        extras: fused tokens of earlier routes that are still in the sequence; always kept.
    """

    start: int
    end: int
    tokens: int
    kept: int
    extras: int
    scorer: str
    restore: bool
    fuse: bool
    temperature: float = 1.0
    random_share: float = 0.5
    at: str = "block"

    @property
    def first_block(self) -> int:
        """First block of which attention and MLP see the kept tokens only."""
        return self.start + (self.at == "mlp")

    @property
    def reads_before(self) -> bool:
        """Whether the scorer reads the attention of block start - 1."""
        return SCORERS[self.scorer].attention and self.at == "block"

    @property
    def sequence(self) -> int:
        """Tokens that the blocks of the span see: [CLS], kept, extras and the fused one."""
        return 1 + self.kept + self.extras + int(self.fuse)


def resolve(routes: list[Route] | tuple[Route, ...], depth: int, tokens: int) -> tuple[Span, ...]:
    """Check a list of routes against a network of `depth` blocks and `tokens` patch tokens and resolve it.

    Raises:
        ValueError: a route that cannot run; one line that names the key, e.g. `routes.1.start`, and what is allowed.
    """
    spans: list[Span] = []
    extras, free_from = 0, 0
    for i, route in enumerate(routes):
        _check(route, f"routes.{i}", depth, free_from)
        kept = max(1, round(route.keep_ratio * tokens))
        if route.fuse and kept == tokens:
            raise ValueError(
                f"routes.{i}.fuse: keep_ratio {route.keep_ratio} keeps all {tokens} tokens, so there is nothing to fuse; "
                f"set fuse: false or a lower keep_ratio"
            )
        given = {key: getattr(route, key) for key in KNOBS if getattr(route, key) is not None}
        span = Span(
            route.start, route.end, tokens, kept, extras, route.scorer, route.restore, route.fuse, **given, at=route.at
        )
        before = spans[-1] if spans else None
        if span.reads_before and before and before.end == before.first_block == span.start and not before.restore:
            raise ValueError(
                f"routes.{i}.at: in block {span.start - 1} attention still saw the tokens that routes.{i - 1} took away there, so it cannot "
                f"score the rest; use at: mlp here too, or start at {span.start + 1} or later"
            )
        spans.append(span)
        free_from = route.end
        if not route.restore:
            tokens, extras = kept, extras + int(route.fuse)
    return tuple(spans)


def _check(route: Route, key: str, depth: int, free_from: int) -> None:
    if route.scorer not in SCORERS:
        raise ValueError(f"{key}.scorer: {route.scorer!r} is not one of {', '.join(SCORERS)}")
    if not 0 < route.keep_ratio <= 1:
        raise ValueError(f"{key}.keep_ratio: {route.keep_ratio} is outside (0, 1]; 0.45 keeps 45 % of the tokens")
    if not 0 <= route.start < depth:
        raise ValueError(f"{key}.start: block {route.start} does not exist; the model has blocks 0 to {depth - 1}")
    if not route.start < route.end <= depth:
        raise ValueError(f"{key}.end: {route.end} is outside {route.start + 1} to {depth} (start + 1 to the depth)")
    if route.restore and route.end == depth:
        raise ValueError(
            f"{key}.end: a token restored after the last block influences nothing; "
            f"use an end of at most {depth - 1}, or restore: false"
        )
    if route.start < free_from:
        raise ValueError(
            f"{key}.start: block {route.start} overlaps the route before it; start at {free_from} or later"
        )
    for knob, (scorer, largest) in KNOBS.items():
        value = getattr(route, knob)
        if value is not None and route.scorer != scorer:
            raise ValueError(f"{key}.{knob}: {route.scorer} has none; it belongs to {scorer}")
        if value is not None and not 0 <= value <= largest:
            raise ValueError(f"{key}.{knob}: {value} is outside 0 to {largest}")
    if route.at not in ("block", "mlp"):
        raise ValueError(f"{key}.at: {route.at!r} is not one of block, mlp")
    if route.start == 0 and SCORERS[route.scorer].attention and route.at == "block":
        raise ValueError(
            f"{key}.scorer: {route.scorer} reads the attention of block start - 1 and block 0 has none before it; "
            f"start at 1 or later, use at: mlp, or random or grid"
        )


def grid_mask(tokens: int, kept: int) -> np.ndarray:
    """Evenly spaced selection: bool (tokens,) with exactly `kept` true, by the rule of Bresenham's line."""
    steps = np.arange(tokens + 1) * kept // tokens
    return np.diff(steps).astype(bool)


class Leading(nn.Cell):
    """The first `count` tokens: (B, N, D) -> (B, count, D).

    The gradient is written out as a padding: MindSpore's own of a slice runs on the AI CPU of an Ascend 910A.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def construct(self, x):
        return ops.Slice()(x, (0, 0, 0), (x.shape[0], self.count, x.shape[2]))

    def bprop(self, x, out, dout):
        return (ops.Pad(((0, 0), (0, x.shape[1] - self.count), (0, 0)))(dout),)


class Router(nn.Cell):
    """The parameter-free machinery of one route: score, select, fuse, restore.

    A sequence is laid out as [CLS], patch tokens in order of position, extras. Both formulations keep the same
    tokens in the same order and are bit-identical; `gather` is the faster on CPU, `matmul` stays on the cube and vector
    units of an Ascend 910A, where gather, scatter and float32 top-k fall to its AI CPU.

    Args:
        span: the resolved route.
        formulation: `gather` (top-k, gather, scatter) or `matmul` (0/1 selection matrix times tokens).
        noise_offset: first column of the step's noise that belongs to this route, if its scorer reads any.
    """

    def __init__(self, span: Span, formulation: Formulation, noise_offset: int):
        super().__init__()
        self.start, self.end = span.start, span.end
        self.parts_block = span.at == "mlp"
        # The span's whole blocks are [first_block, end); the last of them, if there are any, is [last_block, end).
        self.first_block, self.last_block = span.first_block, max(span.first_block, span.end - 1)
        self.tokens, self.kept, self.extras = span.tokens, span.kept, span.extras
        self.length = 1 + span.kept + span.extras  # kept sequence without the fused token
        self.restores, self.fuse = span.restore, span.fuse
        self.temperature, self.random_share = span.temperature, span.random_share
        scorer = SCORERS[span.scorer]
        self.scorer, self.reads_before = scorer.score, span.reads_before
        self.noise_offset, self.noise_columns = noise_offset, scorer.noise_columns(span.tokens)
        self.gathers = formulation == "gather"
        self.grid = Tensor(grid_mask(span.tokens, span.kept)[None].astype(np.float32))  # (1, tokens)
        # Strictly lower triangle [i, j] = j < i: who wins a tie between i and j.
        self.before = Tensor(np.tri(span.tokens, k=-1, dtype=np.float32)[None])
        # Distinct keys, the earlier the larger, so that no tie can reorder them.
        self.keys = Tensor(np.arange(1 + span.tokens + span.extras, 0, -1, dtype=np.float32)[None])
        self.without_fused = Leading(self.length)
        self.slots = Tensor(np.arange(self.length, dtype=np.float32).reshape(1, -1, 1))

    def score(self, q: Tensor, k: Tensor, v: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Rank the patch tokens; no gradient flows back.

        Args:
            q, k, v: (B, heads, sequence, d) of block start - 1 (of block start, at the MLP), for scorers that read attention.
            noise: float32 (B, noise_width), uniform in [0, 1).

        Returns:
            ranking: float32 (B, tokens), larger is kept; weights: float32 (B, tokens) >= 0, for the fused token.
        """
        if self.noise_columns:
            noise = ops.Slice()(noise, (0, self.noise_offset), (noise.shape[0], self.noise_columns))
        ranking, weights = self.scorer(self, q, k, v, noise)
        return ops.stop_gradient(ranking), ops.stop_gradient(weights)

    def mask(self, ranking: Tensor) -> Tensor:
        """The `kept` largest of each row, ties to the earlier position: float32 0/1 (B, sequence), [CLS] and extras 1."""
        if self.gathers:
            chosen = self._mask_by_top_k(ranking)
        else:
            chosen = self._mask_by_pairs(ranking)
        batch = ranking.shape[0]
        ones = ops.Ones()((batch, 1), ms.float32)
        if self.extras:
            return ops.Concat(1)((ones, chosen, ops.Ones()((batch, self.extras), ms.float32)))
        return ops.Concat(1)((ones, chosen))

    def _mask_by_top_k(self, ranking: Tensor) -> Tensor:
        # The order in which TopK returns equal values is not defined (it is not by position on CPU), its values are:
        # keep everything above the kept-th value, then fill up with its equals from the left.
        values, _ = ops.TopK(sorted=True)(ranking, self.kept)
        threshold = ops.Slice()(values, (0, self.kept - 1), (ranking.shape[0], 1))
        above = ops.Cast()(ops.Greater()(ranking, threshold), ms.float32)
        equal = ops.Cast()(ops.Equal()(ranking, threshold), ms.float32)
        room = self.kept - ops.ReduceSum(keep_dims=True)(above, 1)
        fits = ops.Cast()(ops.LessEqual()(ops.CumSum()(equal, 1), room), ms.float32)
        return above + equal * fits

    def _mask_by_pairs(self, ranking: Tensor) -> Tensor:
        # rank_i = how many tokens beat token i: a larger score, or an equal score at an earlier position.
        # Batch x tokens^2 comparisons on the vector unit: light at 196 tokens, heavy at 1024.
        batch = ranking.shape[0]
        mine = ops.Reshape()(ranking, (batch, self.tokens, 1))
        other = ops.Reshape()(ranking, (batch, 1, self.tokens))
        larger = ops.Cast()(ops.Greater()(other, mine), ms.float32)
        equal = ops.Cast()(ops.Equal()(other, mine), ms.float32)
        rank = ops.ReduceSum()(larger + equal * self.before, 2)
        return ops.Cast()(ops.Less()(rank, float(self.kept)), ms.float32)

    def index(self, mask: Tensor) -> Tensor:
        """Positions where a 0/1 mask (B, sequence) is 1, ascending: int32 (B, length)."""
        _, index = ops.TopK(sorted=True)(mask * self.keys, self.length)
        return ops.stop_gradient(index)

    def selection_matrix(self, mask: Tensor) -> Tensor:
        """0/1 matrix P with P x = the kept tokens of x, in order: float32 (B, length, sequence)."""
        batch, sequence = mask.shape
        slot = ops.CumSum()(mask, 1) - 1.0
        here = ops.Cast()(ops.Equal()(ops.Reshape()(slot, (batch, 1, sequence)), self.slots), ms.float32)
        return ops.stop_gradient(here * ops.Reshape()(mask, (batch, 1, sequence)))

    def enter(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """Take the kept tokens of x (B, sequence, D), with the fused token last if there is one."""
        if self.gathers:
            kept = ops.Gather(1)(x, self.index(mask), 1)
        else:
            kept = ops.BatchMatMul()(ops.Cast()(self.selection_matrix(mask), x.dtype), x)
        if self.fuse:
            return ops.Concat(1)((kept, self.fused(x, mask, weights)))
        return kept

    def fused(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """Mean of the bypassed tokens weighted by their scores: (B, 1, D)."""
        batch, sequence, _ = x.shape
        bypassed = weights * (1.0 - ops.Slice()(mask, (0, 1), (batch, self.tokens)))
        share = bypassed / (ops.ReduceSum(keep_dims=True)(bypassed, 1) + 1e-12)
        zeros = ops.Zeros()((batch, 1), ms.float32)
        row = ops.Concat(1)((zeros, share))
        if self.extras:
            row = ops.Concat(1)((row, ops.Zeros()((batch, self.extras), ms.float32)))
        return ops.BatchMatMul()(ops.Cast()(ops.Reshape()(row, (batch, 1, sequence)), x.dtype), x)

    def leave(self, kept: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Put the kept tokens back among the bypassed ones of x (B, sequence, D); the fused token ends here."""
        batch, sequence, width = x.shape
        if self.fuse:
            kept = self.without_fused(kept)
        if self.gathers:
            first = Tensor(tuple(range(0, batch * sequence, sequence)), ms.int32)
            flat = ops.Reshape()(self.index(mask) + ops.Reshape()(first, (batch, 1)), (batch * self.length, 1))
            table = ops.Reshape()(x, (batch * sequence, width))
            updates = ops.Reshape()(kept, (batch * self.length, width))
            return ops.Reshape()(ops.TensorScatterUpdate()(table, flat, updates), x.shape)
        # The product carries only processed tokens: a cube unit rounds float32 to float16, the bypass must stay exact.
        matrix = ops.Cast()(self.selection_matrix(mask), x.dtype)
        returned = ops.BatchMatMul(transpose_a=True)(matrix, kept)
        is_kept = ops.Greater()(ops.Reshape()(mask, (batch, sequence, 1)), 0.5)
        return ops.Select()(ops.BroadcastTo(x.shape)(is_kept), returned, x)

    def compose(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Original positions of the kept patch tokens, given those of all patch tokens: int32 (B, kept)."""
        batch = positions.shape[0]
        index = ops.Slice()(self.index(mask), (0, 1), (batch, self.kept)) - 1
        return ops.GatherD()(positions, 1, index)
