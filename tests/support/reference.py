"""The routed Vision Transformer once more, in NumPy and float64, one sample and one token at a time.

Written from the design and the docstrings, not from the code under test: tokens are little objects in a list, a route
is an event between two blocks (tokens are parked, later they come back), and the attention that a scorer reads is
worked out again from what that block was given. Of the code only `Route` objects are read, whose borders are worked out
here once more. Slow and obvious on purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])

CLS = -1  # position of [CLS]: before all patches
FUSED = 10**6  # position of the first fused token: behind all patches, the next one has FUSED + 1, ...


@dataclass
class Token:
    """One token of one sample: where it belongs in the image, its value (D,), and the patches that it stands for."""

    position: int
    value: np.ndarray
    stands_for: frozenset[int] = frozenset()

    @property
    def is_patch(self) -> bool:
        return 0 <= self.position < FUSED


@dataclass
class Trace:
    """What a forward did. Lists over blocks hold arrays (B, n, D), lists over routes hold arrays (B, ...).

    Attributes:
        kept: per route, positions in the image of the kept patch tokens, ascending.
        slots: per route, the place in the sequence of the token that each patch of the image lives in; -1: none.
        rankings: per route, what the entering patch tokens were sorted by.
        scores: per route, the weights of the fused token before normalisation (also where nothing is fused).
        cls_attention: per block, what [CLS] pays each patch of the sequence that its attention saw, mean over heads.
        margins: per route, how far the last kept token is ahead of the first bypassed one, as a share of the largest.
    """

    logits: np.ndarray
    embed: np.ndarray
    blocks: list[np.ndarray]
    norm: np.ndarray
    cls_attention: list[np.ndarray]
    kept: list[np.ndarray]
    slots: list[np.ndarray]
    rankings: list[np.ndarray]
    scores: list[np.ndarray]
    margins: list[np.ndarray]


@dataclass
class _Sample:
    embed: np.ndarray | None = None
    blocks: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    slots: list = field(default_factory=list)
    cls_attention: list = field(default_factory=list)
    rankings: list = field(default_factory=list)
    scores: list = field(default_factory=list)
    margins: list = field(default_factory=list)
    norm: np.ndarray | None = None
    logits: np.ndarray | None = None


@dataclass
class Planned:
    """A route with its borders as block numbers."""

    start: int
    end: int
    restore: bool
    route: Any


def planned(routes, depth: int) -> list[Planned]:
    """Borders of routes in `depth` blocks: numbers, from the end if negative, or shares of the depth rounded
    half up to a block inside; no end: the depth, for good; `each`: one route for every block."""

    def block(border):
        if isinstance(border, str):
            above, below = map(int, border.split("/"))
            return min(max((2 * above * depth + below) // (2 * below), 1), depth - 1)
        return border % depth if border < 0 else border

    result = []
    for route in routes:
        start, end = block(route.start), depth if route.end is None else block(route.end)
        restore = route.restore and route.end is not None
        spans = [(b, b + 1) for b in range(start, end)] if route.each else [(start, end)]
        result += [Planned(first, last, restore, route) for first, last in spans]
    return result


def forward(
    parameters: dict[str, np.ndarray],
    images: np.ndarray,
    noise: np.ndarray,
    *,
    depth: int,
    heads: int,
    patch: int,
    routes=(),
    drop_path: float = 0.0,
    training: bool = False,
    exact_gelu: bool = False,
    scores: list[np.ndarray] | None = None,
) -> Trace:
    """Forward of images (B, H, W, 3) along `Route` objects; `scores`, of an earlier trace, replaces the scorers'.

    Fixed scores are what a finite difference needs: by design no gradient flows through a score, so neither the
    selection nor the weights of a fused token may move with the parameters.
    """
    net = _Network({name: np.asarray(value, np.float64) for name, value in parameters.items()}, heads, exact_gelu)
    samples, routes = [], planned(routes, depth)
    for b in range(len(images)):
        fixed = None if scores is None else [score[b] for score in scores]
        samples.append(
            _one(net, images[b], noise[b], depth, patch, routes, drop_path if training else 0.0, training, fixed)
        )

    def over_batch(name):
        return [np.stack(column) for column in zip(*(getattr(s, name) for s in samples))]

    return Trace(
        logits=np.stack([s.logits for s in samples]),
        embed=np.stack([s.embed for s in samples]),
        norm=np.stack([s.norm for s in samples]),
        **{
            name: over_batch(name)
            for name in ("blocks", "cls_attention", "kept", "slots", "rankings", "scores", "margins")
        },
    )


def _one(net, image, noise, depth, patch, routes, drop_path, training, fixed) -> _Sample:
    out = _Sample()
    noise = np.asarray(noise, np.float64)
    active = net.embed(image, patch)  # tokens that the next block will see
    image_patches = len(active) - 1
    parked: list[Token] = []  # tokens that bypass it
    out.embed = _matrix(active)
    unread = 2 * depth  # first column of the noise that nobody has used
    given: list[Token] = []  # what the block before this one was given, as the next scorer is to see it

    def part(at, i):
        """Before or within block i, whose attention (or that of the block before) was given the tokens `given`."""
        nonlocal active, parked, unread
        for r, plan in enumerate(routes):
            route = plan.route
            if (plan.start, route.at) != (i, at):
                continue
            patches = [t for t in active if t.is_patch]
            count = how_many(route.keep_ratio, len(patches))
            if fixed is not None:
                score = fixed[r]
            elif route.scorer in ("random", "grid"):
                score = np.ones(len(patches))
            else:
                read = i - 1 if at == "block" else i
                if route.scorer == "attention_received":
                    score = net.attention_received(read, given)
                else:
                    row = net.attention_of_cls(read, given, times_value=route.scorer == "cls_attention_value")
                    score = np.array([a for a, t in zip(row, given) if t.is_patch])
            if route.scorer in ("random", "sampled_cls_attention", "mixed_cls_attention"):
                uniform = noise[unread : unread + len(patches)]
                unread += len(patches)
            if route.scorer == "random":
                ranking = uniform
            elif route.scorer == "sampled_cls_attention" and training:
                gumbel = -np.log(-np.log(uniform))
                ranking = np.log(score) + route.knobs.get("temperature", 1.0) * gumbel
            elif route.scorer == "mixed_cls_attention":
                at_random = training and noise[unread] < route.knobs.get("random_share", 0.5)
                ranking = uniform if at_random else score
                unread += 1
            elif route.scorer == "grid":
                ranking = grid(len(patches), count).astype(float)
            else:
                ranking = -score if route.scorer == "inverse_cls_attention" else score
            best = np.argsort(-ranking, kind="stable")
            chosen = {patches[j].position for j in best[:count]}
            bypassed = [(t, s) for t, s in zip(patches, score) if t.position not in chosen]
            active = [t for t in active if not t.is_patch or t.position in chosen]
            if route.fuse:
                total = sum(s for _, s in bypassed)
                stands_for = frozenset(t.position for t, _ in bypassed)
                active.append(Token(FUSED + r, sum(t.value * s for t, s in bypassed) / total, stands_for))
            if plan.restore:
                parked = [t for t, _ in bypassed]
            out.kept.append(np.array(sorted(chosen)))
            out.slots.append(_slots(active, image_patches))
            out.rankings.append(ranking)
            out.scores.append(score)
            out.margins.append(_margin(ranking, best, count))

    for i in range(depth):
        for r, plan in enumerate(routes):
            if plan.end == i and plan.restore:
                mine = FUSED + r
                active = in_order([t for t in active if t.position != mine] + parked)
                # With `at: mlp` a block's attention has seen the tokens that its MLP has not.
                seen = {t.position for t in given}
                given = in_order(
                    [t for t in given if t.position != mine] + [t for t in parked if t.position not in seen]
                )
                parked = []
        part("block", i)
        given = list(active)
        paid = net.attention_of_cls(i, given, times_value=False)
        out.cls_attention.append(np.array([a for a, t in zip(paid, given) if t.is_patch]))
        drop = drop_path * i / (depth - 1)
        active = net.attend(i, active, _branch_scale(noise[2 * i], drop))
        part("mlp", i)
        active = net.feed(i, active, _branch_scale(noise[2 * i + 1], drop))
        out.blocks.append(_matrix(active))

    normed = [net.layer_norm("norm", t.value) for t in active]
    out.norm = np.stack(normed)
    out.logits = net.dense("head", normed[0])
    return out


class _Network:
    """The arithmetic of the parts, on lists of tokens."""

    def __init__(self, parameters, heads, exact_gelu):
        self.p, self.heads, self.exact_gelu = parameters, heads, exact_gelu

    def dense(self, name, x):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def layer_norm(self, name, x):
        centred = x - x.mean()
        return centred / math.sqrt((centred**2).mean() + 1e-6) * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def gelu(self, x):
        if self.exact_gelu:
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def embed(self, image, patch):
        rows = image.shape[0] // patch
        place = self.p["pos_embed"][0]
        tokens = [Token(CLS, self.p["cls_token"][0, 0] + place[0])]
        for position in range(rows * rows):
            top, left = position // rows * patch, position % rows * patch
            pixels = image[top : top + patch, left : left + patch]
            if image.dtype == np.uint8:
                pixels = (pixels - MEAN) / STD
            value = self.dense("patch_embed.proj", pixels.ravel().astype(float))
            tokens.append(Token(position, value + place[1 + position], frozenset([position])))
        return tokens

    def heads_of(self, what, block, tokens):
        """q, k or v of a block: a list over heads of arrays (n, d)."""
        normed = np.stack([self.layer_norm(f"blocks.{block}.norm1", t.value) for t in tokens])
        return np.split(self.dense(f"blocks.{block}.attn.{what}", normed), self.heads, axis=1)

    def attention_of_cls(self, block, tokens, times_value):
        """The attention that [CLS] pays each of `tokens`, the input of `block`, there: mean over heads."""
        per_head = []
        for q, k, v in zip(*(self.heads_of(what, block, tokens) for what in "qkv")):
            row = _softmax(k @ q[0] / math.sqrt(q.shape[1]))
            per_head.append(row * np.linalg.norm(v, axis=1) if times_value else row)
        return sum(per_head) / self.heads

    def attention_received(self, block, tokens):
        """What each patch of `tokens` is attended to by a patch, of the attention among them: mean over heads."""
        patches = [i for i, token in enumerate(tokens) if token.is_patch]
        per_head = []
        for q, k in zip(*(self.heads_of(what, block, tokens) for what in "qk")):
            rows = [_softmax(k[patches] @ query / math.sqrt(q.shape[1])) for query in q[patches]]
            per_head.append(np.mean(rows, axis=0))
        return sum(per_head) / self.heads

    def attend(self, i, tokens, scale):
        mixed = []
        for q, k, v in zip(*(self.heads_of(what, i, tokens) for what in "qkv")):
            mixed.append(np.stack([_softmax(k @ query / math.sqrt(q.shape[1])) @ v for query in q]))
        attended = self.dense(f"blocks.{i}.attn.proj", np.concatenate(mixed, axis=1))
        return [Token(t.position, t.value + scale * y, t.stands_for) for t, y in zip(tokens, attended)]

    def feed(self, i, tokens, scale):
        result = []
        for token in tokens:
            hidden = self.gelu(self.dense(f"blocks.{i}.mlp.fc1", self.layer_norm(f"blocks.{i}.norm2", token.value)))
            value = token.value + scale * self.dense(f"blocks.{i}.mlp.fc2", hidden)
            result.append(Token(token.position, value, token.stands_for))
        return result


def how_many(keep_ratio, tokens):
    """Patch tokens that a route keeps."""
    return max(1, round(keep_ratio * tokens))


def stable_best(ranking, kept):
    """Positions of the `kept` largest, ties to the earlier one, ascending."""
    return np.sort(np.argsort(-np.asarray(ranking), kind="stable")[:kept])


def grid(tokens, kept):
    """Bresenham's line, by its running error: a step of the line is a token that stays."""
    stays, error = np.zeros(tokens, bool), 0
    for i in range(tokens):
        error += kept
        if error >= tokens:
            stays[i] = True
            error -= tokens
    return stays


def _slots(tokens, patches):
    """For each patch of the image the place of the token that stands for it, or -1."""
    places = np.full(patches, -1)
    for place, token in enumerate(tokens):
        places[list(token.stands_for)] = place
    return places


def in_order(tokens):
    """[CLS], patches by position, fused tokens by age."""
    return sorted(tokens, key=lambda t: t.position)


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def _branch_scale(draw, rate):
    return 0.0 if draw < rate else 1 / (1 - rate)


def _margin(ranking, best, count):
    if count == len(ranking):
        return np.inf
    return (ranking[best[count - 1]] - ranking[best[count]]) / np.abs(ranking).max()


def _matrix(tokens):
    return np.stack([t.value for t in tokens])


def timm_shapes(width: int, depth: int, patch: int, grid: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as timm's VisionTransformer has them, written out."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": (4 * width,),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": (width,),
        }
    return shapes
