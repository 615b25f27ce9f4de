"""Scorers: who ranks the patch tokens that come to a route. One is a function and what it needs, declared beside it.

    @register_scorer("cls_attention", reads=("cls_row",), onnx=_cls_attention_onnx)
    def cls_attention(step, signals, noise, training): ...

It takes

    step: the route's `program.Score`: `step.before.patches` tokens to rank, `step.kept` of them stay, `step.knobs`;
    signals: what it `reads` of the block before (with `at: mlp`: of the block itself), by name:
        `cls_row` float32 (B, heads, patches), each head's attention of [CLS] to the patches;
        `received` float32 (B, patches), the attention that each patch receives of those that see it, mean over these
            and over heads;
        `q`, `k`, `v` (B, heads, patches, d), of the patches, where every patch has its own (a ViT);
        `entered` float32 (B, patches, D), the patch tokens that went into the block;
        `tokens` float32 (B, patches, D), those that come to the route, which there are before block 0 too;
    noise: its own columns of the step's random numbers, float32 (B, columns), uniform in [0, 1);
    training: whether the network trains.

It returns

    ranking: float32 (B, patches), the larger are kept, ties to the earlier position;
    weights: float32 (B, patches) >= 0, what each weighs in the fused token if it does not stay.

No gradient flows through either. Sources: SkipViT (arXiv 2401.15293) for the [CLS] attention; ATS (2111.15667) for
attention x value norm; Gumbel top-k (1903.06059) for sampling without replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from skipvit.util.lazy import ms, ops
from skipvit.util.text import nearest

LEAST = 1e-30  # attention and noise are kept above this where their logarithm is taken
SIGNALS = ("cls_row", "received", "q", "k", "v", "entered", "tokens")
ATTENTION = ("cls_row", "received", "q", "k", "v")  # of which an attention is asked


class Knob(NamedTuple):
    """A parameter of a scorer, a key of its routes: what it is if it is not given, and its limits."""

    default: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Scorer:
    """What a program has to know of a scorer.

    Attributes:
        score: the function.
        reads: the signals that it takes, of `SIGNALS`; with any but `tokens` there must be a block before the route.
        noise: columns of random numbers that it reads for each patch, and for each image.
        knobs: its own parameters by name.
        macs: multiply-accumulates of its own for an image, of how many patches it ranks and their width; what it
            reads is counted besides.
        onnx: the same outside training as nodes of a graph, see `weights.onnx.Graph`: a function of graph, step,
            signals (names of nodes' results) and noise (float32 (columns,), for every image the same) that returns
            ranking and weights, names or arrays (patches,); None: it cannot be exported to ONNX.
    """

    score: Callable[..., Any]
    reads: tuple[str, ...] = ()
    noise: tuple[int, int] = (0, 0)
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    macs: Callable[[int, int], int] | None = None
    onnx: Callable[..., Any] | None = None

    @staticmethod
    def named(name: str) -> Scorer:
        """Raises ValueError, one line, if there is none of that name."""
        if name not in SCORERS:
            raise ValueError(f"{name!r} is not one of {', '.join(SCORERS)}" + nearest(name, SCORERS))
        return SCORERS[name]

    @property
    def reads_block(self) -> tuple[str, ...]:
        """What it reads of the block before."""
        return tuple(name for name in self.reads if name != "tokens")

    def noise_columns(self, patches: int) -> int:
        return self.noise[0] * patches + self.noise[1]

    def products(self, patches: int, width: int) -> int:
        """Multiply-accumulates of its own for an image."""
        return self.macs(patches, width) if self.macs else 0

    def settings(self, given: Mapping[str, float]) -> dict[str, float]:
        """Its parameters, as given or as they are if they are not."""
        return {name: given.get(name, knob.default) for name, knob in self.knobs.items()}


SCORERS: dict[str, Scorer] = {}


def register_scorer(
    name: str,
    reads: tuple[str, ...] = (),
    noise: tuple[int, int] = (0, 0),
    knobs: Mapping[str, Knob | tuple[float, float, float]] | None = None,
    macs: Callable[[int, int], int] | None = None,
    onnx: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the scorer of a name; what the arguments mean: `Scorer`. A name that exists is replaced.

    Raises:
        ValueError: a signal that no block gives.
    """
    unknown = [signal for signal in reads if signal not in SIGNALS]
    if unknown:
        raise ValueError(f"scorer {name}: {unknown[0]!r} is not a signal; there are {', '.join(SIGNALS)}")

    def register(score: Callable[..., Any]) -> Callable[..., Any]:
        own = {knob: Knob(*limits) for knob, limits in (knobs or {}).items()}
        SCORERS[name] = Scorer(score, tuple(reads), noise, own, macs, onnx)
        return score

    return register


def cls_row(signals: Mapping[str, Any], layout: Any) -> Any:
    """[CLS] row of the attention, softmax(q_cls k^T / sqrt(d)), of the patches.

    Computed on its own rather than sliced from the attention map, so it works with any attention kernel.

    Args:
        signals: `q` and `k`, (B, heads, tokens, d) of a whole sequence; token 0 is [CLS].
        layout: of the sequence.

    Returns:
        float32 (B, heads, patches); with what [CLS] attends to besides, each row sums to 1.
    """
    batch, heads, tokens, width = signals["k"].shape
    q = ops.Slice()(signals["q"], (0, 0, 0, 0), (batch, heads, 1, width))
    logits = ops.BatchMatMul(transpose_b=True)(q * (width**-0.5), signals["k"])
    row = ops.Reshape()(ops.Softmax(-1)(ops.Cast()(logits, ms.float32)), (batch, heads, tokens))
    return ops.Slice()(row, (0, 0, layout.prefix), (batch, heads, layout.patches))


def mean_received(signals: Mapping[str, Any]) -> Any:
    """What tokens attend to among themselves, softmax(q k^T / sqrt(d)): mean over queries and heads.

    Args:
        signals: `q` and `k`, (B, heads, N, d).

    Returns:
        float32 (B, N), rows sum to 1.
    """
    q, k = signals["q"], signals["k"]
    logits = ops.BatchMatMul(transpose_b=True)(q * (q.shape[3] ** -0.5), k)
    return ops.ReduceMean()(ops.Softmax(-1)(ops.Cast()(logits, ms.float32)), (1, 2))


def of_patches(signal: Any, layout: Any) -> Any:
    """The patches' part of q, k or v: (B, heads, tokens, d) -> (B, heads, patches, d)."""
    batch, heads, _, width = signal.shape
    return ops.Slice()(signal, (0, 0, layout.prefix, 0), (batch, heads, layout.patches, width))


def _mean_row_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    weights = graph.op("ReduceMean", signals["cls_row"], axes=[1], keepdims=0)
    return weights, weights


@register_scorer("cls_attention", reads=("cls_row",), onnx=_mean_row_onnx)
def cls_attention(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """The attention of [CLS], mean over heads."""
    weights = ops.ReduceMean()(signals["cls_row"], 1)
    return weights, weights


def value_norm(v: Any) -> Any:
    """Euclidean norm of each value vector: (B, heads, tokens, d) -> float32 (B, heads, tokens)."""
    return ops.Sqrt()(ops.ReduceSum()(ops.Square()(ops.Cast()(v, ms.float32)), -1))


def _cls_attention_value_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    norm = graph.op("ReduceL2", signals["v"], axes=[-1], keepdims=0)
    weights = graph.op("ReduceMean", graph.op("Mul", signals["cls_row"], norm), axes=[1], keepdims=0)
    return weights, weights


@register_scorer("cls_attention_value", reads=("cls_row", "v"), onnx=_cls_attention_value_onnx)
def cls_attention_value(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """Each head's attention of [CLS] times the norm of its value vector, mean over heads."""
    weights = ops.ReduceMean()(signals["cls_row"] * value_norm(signals["v"]), 1)
    return weights, weights


def _attention_received_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    return signals["received"], signals["received"]


@register_scorer("attention_received", reads=("received",), onnx=_attention_received_onnx)
def attention_received(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """What the patches attend to among themselves. It needs no [CLS]."""
    return signals["received"], signals["received"]


def _magnitude_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    size = graph.op("ReduceMean", graph.op("Abs", signals["tokens"]), axes=[-1], keepdims=0)
    return size, size


@register_scorer("magnitude", reads=("tokens",), onnx=_magnitude_onnx)
def magnitude(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """Mean absolute value over channels (SparseViT, arXiv 2303.17605). It needs neither [CLS] nor a block before."""
    size = ops.ReduceMean()(ops.Abs()(signals["tokens"]), -1)
    return size, size


def _change_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    change = graph.op("ReduceL2", graph.op("Sub", signals["tokens"], signals["entered"]), axes=[-1], keepdims=0)
    return change, change


@register_scorer("change", reads=("tokens", "entered"), onnx=_change_onnx)
def change(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """How far the block before moved each token, Euclidean norm (Representation Shift, ICCV 2025)."""
    moved = signals["tokens"] - signals["entered"]
    length = ops.Sqrt()(ops.ReduceSum()(moved * moved, -1))
    return length, length


def _inverse_cls_attention_onnx(
    graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray
) -> tuple[Any, Any]:
    weights, _ = _mean_row_onnx(graph, step, signals, noise)
    return graph.op("Neg", weights), weights


@register_scorer("inverse_cls_attention", reads=("cls_row",), onnx=_inverse_cls_attention_onnx)
def inverse_cls_attention(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """The least attended first: the negative control."""
    weights = ops.ReduceMean()(signals["cls_row"], 1)
    return -weights, weights


@register_scorer(
    "sampled_cls_attention",
    reads=("cls_row",),
    noise=(1, 0),
    knobs={"temperature": (1.0, 0, 1000)},
    onnx=_mean_row_onnx,
)
def sampled_cls_attention(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """Tokens drawn without replacement, each with chances in proportion to attention ** (1 / temperature): the largest
    of log(attention) + temperature x Gumbel noise. Outside training the temperature is 0."""
    weights = ops.ReduceMean()(signals["cls_row"], 1)
    temperature = step.knobs["temperature"]
    if not training or temperature == 0:
        return weights, weights
    exponential = -ops.Log()(ops.Maximum()(noise, LEAST))
    return ops.Log()(ops.Maximum()(weights, LEAST)) - temperature * ops.Log()(exponential), weights


@register_scorer(
    "mixed_cls_attention", reads=("cls_row",), noise=(1, 1), knobs={"random_share": (0.5, 0, 1)}, onnx=_mean_row_onnx
)
def mixed_cls_attention(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """At random for an image whose own draw is below `random_share`, else by the attention of [CLS]; outside training
    always that."""
    weights = ops.ReduceMean()(signals["cls_row"], 1)
    if not training:
        return weights, weights
    batch, patches = weights.shape
    draw = ops.Slice()(noise, (0, patches), (batch, 1))
    at_random = ops.Cast()(ops.Less()(draw, step.knobs["random_share"]), ms.float32)
    return at_random * ops.Slice()(noise, (0, 0), (batch, patches)) + (1.0 - at_random) * weights, weights


def _random_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    return noise, np.ones_like(noise)


@register_scorer("random", noise=(1, 0), onnx=_random_onnx)
def random(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """A new draw each step."""
    return noise, ops.OnesLike()(noise)


def _grid_onnx(graph: Any, step: Any, signals: Mapping[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    steps = np.arange(step.before.patches + 1) * step.kept // step.before.patches
    ranking = np.diff(steps).astype(np.float32)
    return ranking, np.ones_like(ranking)


@register_scorer("grid", onnx=_grid_onnx)
def grid(step: Any, signals: Any, noise: Any, training: bool) -> Any:
    """Evenly spaced positions: exactly `kept` of them, by the rule of Bresenham's line."""
    patches, kept = step.before.patches, step.kept
    row = [(i + 1) * kept // patches - i * kept // patches for i in range(patches)]
    ranking = ops.BroadcastTo((noise.shape[0], patches))(ms.Tensor([row], ms.float32))
    return ranking, ops.OnesLike()(ranking)
