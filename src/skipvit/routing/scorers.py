"""Scorers: who ranks the patch tokens that come to a router. A new one is a function here and its line in `SCORERS`.

A scorer takes the route's router (`tokens`, `kept`, `temperature`, `random_share`, `training`), q, k and v (B, heads, sequence, d)
of the block before (with `at: mlp` of the block itself), and the route's own columns of the step's noise, float32 (B, columns),
uniform in [0, 1). A sequence is [CLS], patch tokens in order of position, fused tokens of earlier routes. It returns

    ranking: float32 (B, tokens), the larger are kept, ties to the earlier position;
    weights: float32 (B, tokens) >= 0, what each weighs in the fused token if it is bypassed.

Sources: SkipViT (arXiv 2401.15293) for the [CLS] attention; ATS (2111.15667) for attention x value norm; Gumbel top-k
(1903.06059) for sampling without replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, ops

LEAST = 1e-30  # attention and noise are kept above this where their logarithm is taken


def cls_row(q: Tensor, k: Tensor) -> Tensor:
    """[CLS] row of the attention, softmax(q_cls k^T / sqrt(d)).

    Computed on its own rather than sliced from the attention map, so it works with any attention kernel.

    Args:
        q, k: (B, heads, tokens, d); token 0 is [CLS].

    Returns:
        float32 (B, heads, tokens), each row sums to 1.
    """
    batch, heads, tokens, width = k.shape
    q_cls = ops.Slice()(q, (0, 0, 0, 0), (batch, heads, 1, width))
    logits = ops.BatchMatMul(transpose_b=True)(q_cls * (width**-0.5), k)
    row = ops.Softmax(-1)(ops.Cast()(logits, ms.float32))
    return ops.Reshape()(row, (batch, heads, tokens))


def value_norm(v: Tensor) -> Tensor:
    """Euclidean norm of each value vector: (B, heads, tokens, d) -> float32 (B, heads, tokens)."""
    return ops.Sqrt()(ops.ReduceSum()(ops.Square()(ops.Cast()(v, ms.float32)), -1))


def of_patches(router, row):
    """Mean over heads of a row (B, heads, sequence), of the patch tokens: (B, tokens)."""
    return ops.Slice()(ops.ReduceMean()(row, 1), (0, 1), (row.shape[0], router.tokens))


def columns(noise, first, count):
    return ops.Slice()(noise, (0, first), (noise.shape[0], count))


def cls_attention(router, q, k, v, noise):
    """The attention of [CLS], mean over heads."""
    weights = of_patches(router, cls_row(q, k))
    return weights, weights


def cls_attention_value(router, q, k, v, noise):
    """Each head's attention of [CLS] times the norm of its value vector, mean over heads."""
    weights = of_patches(router, cls_row(q, k) * value_norm(v))
    return weights, weights


def inverse_cls_attention(router, q, k, v, noise):
    """The least attended first: the negative control."""
    weights = of_patches(router, cls_row(q, k))
    return -weights, weights


def sampled_cls_attention(router, q, k, v, noise):
    """Tokens drawn without replacement, each with chances in proportion to attention ** (1 / temperature): the largest of
    log(attention) + temperature x Gumbel noise. Outside training the temperature is 0."""
    weights = of_patches(router, cls_row(q, k))
    if not router.training or router.temperature == 0:
        return weights, weights
    exponential = -ops.Log()(ops.Maximum()(noise, LEAST))
    return ops.Log()(ops.Maximum()(weights, LEAST)) - router.temperature * ops.Log()(exponential), weights


def mixed_cls_attention(router, q, k, v, noise):
    """At random for an image whose own draw is below `random_share`, else by the attention of [CLS]; outside training always that."""
    weights = of_patches(router, cls_row(q, k))
    if not router.training:
        return weights, weights
    at_random = ops.Cast()(ops.Less()(columns(noise, router.tokens, 1), router.random_share), ms.float32)
    return at_random * columns(noise, 0, router.tokens) + (1.0 - at_random) * weights, weights


def random(router, q, k, v, noise):
    """A new draw each step."""
    return noise, ops.OnesLike()(noise)


def grid(router, q, k, v, noise):
    """Evenly spaced positions."""
    ranking = ops.BroadcastTo((noise.shape[0], router.tokens))(router.grid)
    return ranking, ops.OnesLike()(ranking)


@dataclass(frozen=True)
class Scorer:
    """What the network has to know of a scorer.

    Attributes:
        score: the function.
        attention: it reads q, k or v, so there must be attention before the route.
        values: it reads v.
        noise: columns of the step's noise that it reads for each patch token, and for each image.
    """

    score: Callable
    attention: bool = True
    values: bool = False
    noise: tuple[int, int] = (0, 0)

    def noise_columns(self, tokens: int) -> int:
        return self.noise[0] * tokens + self.noise[1]


SCORERS = {
    "cls_attention": Scorer(cls_attention),
    "cls_attention_value": Scorer(cls_attention_value, values=True),
    "inverse_cls_attention": Scorer(inverse_cls_attention),
    "sampled_cls_attention": Scorer(sampled_cls_attention, noise=(1, 0)),
    "mixed_cls_attention": Scorer(mixed_cls_attention, noise=(1, 1)),
    "random": Scorer(random, attention=False, noise=(1, 0)),
    "grid": Scorer(grid, attention=False),
}
