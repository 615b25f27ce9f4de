"""Routes and the router's parts: what is refused, who is kept, and that a bypassed token returns untouched."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from skipvit.models.sizes import Size
from skipvit.models.vit import ViT
from skipvit.routing.routing import Route, Router, Span, grid_mask, resolve
from skipvit.routing.scorers import SCORERS, cls_row
from support.reference import grid, stable_best

FORMULATIONS = ("gather", "matmul")


def bits(x):
    """The bit patterns of a float32 array: equal only if every bit is."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


# ---------------------------------------------------------------------------------------------------------------------
# resolve: from a config to integers
# ---------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "negative start": ([Route(-1, 3, scorer="random")], "routes.0.start"),
    "start at the depth": ([Route(6, 7)], "routes.0.start"),
    "start beyond the depth": ([Route(9, 10)], "routes.0.start"),
    "end at the start": ([Route(3, 3)], "routes.0.end"),
    "end before the start": ([Route(3, 2)], "routes.0.end"),
    "negative end": ([Route(1, -1)], "routes.0.end"),
    "end beyond the depth": ([Route(3, 7, restore=False)], "routes.0.end"),
    "restored after the last block": ([Route(3, 6)], "routes.0.end"),
    "overlap": ([Route(1, 4), Route(3, 5)], "routes.1.start"),
    "overlap of the third": ([Route(1, 2), Route(2, 4), Route(3, 5)], "routes.2.start"),
    "the same route twice": ([Route(1, 3), Route(1, 3)], "routes.1.start"),
    "one inside another": ([Route(1, 5), Route(2, 3)], "routes.1.start"),
    "wrong order": ([Route(3, 4), Route(1, 2)], "routes.1.start"),
    "overlap where nothing returns": ([Route(1, 6, restore=False), Route(4, 6, restore=False)], "routes.1.start"),
    "cls_attention at block 0": ([Route(0, 3)], "routes.0.scorer"),
    "cls_attention_value at block 0": ([Route(0, 3, scorer="cls_attention_value")], "routes.0.scorer"),
    "inverse_cls_attention at block 0": ([Route(0, 3, scorer="inverse_cls_attention")], "routes.0.scorer"),
    "unknown scorer": ([Route(1, 3, scorer="magic")], "routes.0.scorer"),
    "unknown scorer of the second": ([Route(1, 3), Route(3, 4, scorer="magic")], "routes.1.scorer"),
    "sampled_cls_attention at block 0": ([Route(0, 3, scorer="sampled_cls_attention")], "routes.0.scorer"),
    "no such place in a block": ([Route(1, 3, at="attention")], "routes.0.at"),
    "no attention to the rest alone": ([Route(1, 2, at="mlp", restore=False), Route(2, 3)], "routes.1.at"),
    "temperature below zero": ([Route(1, 3, scorer="sampled_cls_attention", temperature=-0.1)], "routes.0.temperature"),
    "temperature without end": (
        [Route(1, 3, scorer="sampled_cls_attention", temperature=math.inf)],
        "routes.0.temperature",
    ),
    "temperature of another scorer": ([Route(1, 3, temperature=1.0)], "routes.0.temperature"),
    "random share above one": ([Route(1, 3, scorer="mixed_cls_attention", random_share=1.1)], "routes.0.random_share"),
    "random share of another scorer": ([Route(1, 3, scorer="random", random_share=0.5)], "routes.0.random_share"),
    "keep nothing": ([Route(1, 3, keep_ratio=0.0)], "routes.0.keep_ratio"),
    "keep less than nothing": ([Route(1, 3, keep_ratio=-0.5)], "routes.0.keep_ratio"),
    "keep more than all": ([Route(1, 3, keep_ratio=1.01)], "routes.0.keep_ratio"),
    "keep percent": ([Route(1, 3, keep_ratio=45)], "routes.0.keep_ratio"),
    "keep nan": ([Route(1, 3, keep_ratio=math.nan)], "routes.0.keep_ratio"),
    "keep infinity": ([Route(1, 3, keep_ratio=math.inf)], "routes.0.keep_ratio"),
    "nothing to fuse": ([Route(1, 3, keep_ratio=1.0, fuse=True)], "routes.0.fuse"),
    "nothing to fuse after rounding": ([Route(1, 3, keep_ratio=0.99, fuse=True)], "routes.0.fuse"),
    "nothing left to fuse": (
        [Route(1, 2, keep_ratio=0.01, restore=False), Route(2, 3, keep_ratio=0.4, restore=False, fuse=True)],
        "routes.1.fuse",
    ),
}


@pytest.mark.parametrize("routes, key", REFUSED.values(), ids=REFUSED.keys())
def test_a_route_that_cannot_run_is_refused_by_name(routes, key):
    with pytest.raises(ValueError) as refusal:
        resolve(routes, depth=6, tokens=16)
    message = str(refusal.value)
    assert message.startswith(f"{key}:")
    assert "\n" not in message


ACCEPTED = {
    "none": [],
    "SkipViT": [Route(1, 5)],
    "keeps all": [Route(1, 5, keep_ratio=1.0)],
    "to the last block for good": [Route(1, 6, restore=False)],
    "random from block 0": [Route(0, 5, scorer="random")],
    "grid from block 0": [Route(0, 5, scorer="grid")],
    "cls_attention within block 0": [Route(0, 3, at="mlp")],
    "at the MLP, back, then before the next block": [Route(1, 2, at="mlp"), Route(2, 3)],
    "at the MLP for good, then at the next": [Route(1, 2, at="mlp", restore=False), Route(2, 3, at="mlp")],
    "at the MLP for good, then at random": [Route(1, 2, at="mlp", restore=False), Route(2, 3, scorer="random")],
    "two blocks from the MLP on for good": [Route(1, 3, at="mlp", restore=False), Route(3, 4)],
    "one after the other": [Route(1, 2), Route(2, 3), Route(3, 4)],
    "with a gap": [Route(1, 2), Route(4, 5)],
}


@pytest.mark.parametrize("routes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_route_that_can_run_keeps_its_blocks(routes):
    assert [(s.start, s.end) for s in resolve(routes, depth=6, tokens=16)] == [(r.start, r.end) for r in routes]


@pytest.mark.parametrize(
    "keep_ratio, tokens, kept",
    [
        (0.45, 196, 88),
        (0.7, 196, 137),
        (0.5, 196, 98),
        (0.3, 196, 59),
        (1.0, 196, 196),
        (0.001, 196, 1),
        (0.45, 16, 7),
        (0.45, 64, 29),
        (0.5, 1, 1),
        (1e-9, 4, 1),
        (0.999, 1024, 1023),
    ],
)
def test_kept_tokens_are_the_rounded_share_and_at_least_one(keep_ratio, tokens, kept):
    assert resolve([Route(1, 2, keep_ratio)], depth=4, tokens=tokens)[0].kept == kept


def test_a_returning_route_leaves_all_tokens_to_the_next():
    first, second = resolve([Route(1, 2, 0.5, fuse=True), Route(2, 3, 0.25)], depth=6, tokens=16)
    assert (first.tokens, first.kept, first.extras) == (16, 8, 0)
    assert (second.tokens, second.kept, second.extras) == (16, 4, 0)


def test_a_route_for_good_leaves_what_it_kept_and_its_fused_token_to_the_next():
    route = {"restore": False, "fuse": True, "keep_ratio": 0.7}
    spans = resolve([Route(3, 6, **route), Route(6, 9, **route), Route(9, 12, **route)], depth=12, tokens=196)
    assert [s.tokens for s in spans] == [196, 137, 96]
    assert [s.kept for s in spans] == [137, 96, 67]
    assert [s.extras for s in spans] == [0, 1, 2]
    assert [s.sequence for s in spans] == [1 + 137 + 1, 1 + 96 + 2, 1 + 67 + 3]


def test_the_model_refuses_a_route_as_resolve_does():
    with pytest.raises(ValueError, match=r"^routes\.1\.start: "):
        ViT(Size(16, 4, 2), 16, 4, 5, [Route(1, 3), Route(2, 3)])


# ---------------------------------------------------------------------------------------------------------------------
# grid
# ---------------------------------------------------------------------------------------------------------------------

GRIDS = [(16, 1), (16, 7), (16, 8), (16, 15), (16, 16), (49, 22), (196, 88), (196, 137), (1024, 461), (1, 1)]


@pytest.mark.parametrize("tokens, kept", GRIDS)
def test_grid_keeps_exactly_the_asked_number(tokens, kept):
    assert grid_mask(tokens, kept).dtype == bool
    assert grid_mask(tokens, kept).sum() == kept


@pytest.mark.parametrize("tokens, kept", GRIDS)
def test_grid_is_evenly_spaced(tokens, kept):
    """Going round in a circle, the distances between neighbours differ by at most one."""
    chosen = np.flatnonzero(grid_mask(tokens, kept))
    gaps = np.diff(np.append(chosen, chosen[0] + tokens))
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("tokens, kept", GRIDS)
def test_grid_is_the_line_of_bresenham(tokens, kept):
    assert np.array_equal(grid_mask(tokens, kept), grid(tokens, kept))


# ---------------------------------------------------------------------------------------------------------------------
# Who is kept: Router.mask, Router.index
# ---------------------------------------------------------------------------------------------------------------------

TOKENS, EXTRAS = 196, 2
KEPT = (1, 2, 88, 195, 196)


def rankings():
    """Rows that try to confuse a selection, under the name of their difficulty: float32 (rows, TOKENS)."""
    rng = np.random.default_rng(0)
    close = np.full((8, TOKENS), 0.02, np.float32)
    close.view(np.uint32)[:] += rng.integers(0, 4, close.shape).astype(np.uint32)  # neighbours among the floats
    tiny = rng.random((8, TOKENS)) ** 30  # what a sharp attention gives: many scores close to zero
    return {
        "random": rng.random((40, TOKENS)),
        "negative": -rng.random((8, TOKENS)),
        "both signs": rng.normal(size=(8, TOKENS)) * 1e6,
        "ties of two values": rng.integers(0, 2, (20, TOKENS)),
        "ties of four values": rng.integers(-2, 2, (20, TOKENS)),
        "mostly equal": np.where(rng.random((20, TOKENS)) < 0.1, rng.random((20, TOKENS)), 0.5),
        "all zero": np.zeros((1, TOKENS)),
        "all equal": np.full((1, TOKENS), -3.25),
        "both zeros": np.where(rng.random((8, TOKENS)) < 0.5, 0.0, -0.0),
        "ascending": np.arange(TOKENS)[None],
        "descending": -np.arange(TOKENS)[None],
        "last bit": close,
        "tiny": np.maximum(tiny, 1e-30),
    }


class Masks(nn.Cell):
    """Mask, positions and selection matrix of the same rows, for each formulation and number of kept tokens."""

    def __init__(self):
        super().__init__()
        self.routers = nn.CellList(
            [
                Router(Span(1, 2, TOKENS, kept, EXTRAS, "cls_attention", True, False), formulation, 0)
                for formulation in FORMULATIONS
                for kept in KEPT
            ]
        )

    def construct(self, ranking):
        results = ()
        for router in self.routers:
            mask = router.mask(ranking)
            results = results + ((mask, router.index(mask), router.selection_matrix(mask)),)
        return results


@pytest.fixture(scope="module")
def masks():
    """{(formulation, kept): (mask, index, matrix)} of all rows, and the rows by name."""
    rows = {name: np.asarray(values, np.float32) for name, values in rankings().items()}
    ranking = np.concatenate(list(rows.values()))
    results = Masks()(Tensor(ranking))
    cases = [(formulation, kept) for formulation in FORMULATIONS for kept in KEPT]
    return {case: [r.asnumpy() for r in result] for case, result in zip(cases, results)}, rows


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("difficulty", rankings().keys())
def test_kept_set_is_the_stable_argsort(masks, difficulty, formulation, kept):
    results, rows = masks
    first = sum(len(rows[name]) for name in list(rows)[: list(rows).index(difficulty)])
    for row, ranking in enumerate(rows[difficulty], start=first):
        chosen = np.flatnonzero(results[formulation, kept][0][row, 1 : 1 + TOKENS])
        assert np.array_equal(chosen, stable_best(ranking, kept))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_mask_is_zero_or_one(masks, formulation, kept):
    mask = masks[0][formulation, kept][0]
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_cls_and_extras_are_always_kept(masks, formulation, kept):
    mask = masks[0][formulation, kept][0]
    assert mask.shape[1] == 1 + TOKENS + EXTRAS
    assert (mask[:, 0] == 1).all() and (mask[:, -EXTRAS:] == 1).all()


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_index_lists_the_ones_of_the_mask_ascending(masks, formulation, kept):
    mask, index, _ = masks[0][formulation, kept]
    assert index.dtype == np.int32
    for row in range(len(mask)):
        assert np.array_equal(index[row], np.flatnonzero(mask[row]))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_selection_matrix_has_a_one_at_each_kept_token_in_order(masks, formulation, kept):
    mask, _, matrix = masks[0][formulation, kept]
    for row in range(len(mask)):
        assert np.array_equal(matrix[row], np.eye(mask.shape[1])[mask[row] == 1])


# ---------------------------------------------------------------------------------------------------------------------
# Leaving and returning: Router.enter, Router.leave
# ---------------------------------------------------------------------------------------------------------------------

ROWS, PATCHES, STAY, OLD, WIDTH = 12, 10, 4, 2, 5
VARIANTS = [(formulation, fuse) for formulation in FORMULATIONS for fuse in (False, True)]


class RoundTrip(nn.Cell):
    """Tokens enter each variant of a route, and given values leave it in their place."""

    def __init__(self):
        super().__init__()
        self.routers = nn.CellList(
            [Router(Span(1, 2, PATCHES, STAY, OLD, "cls_attention", True, fuse), form, 0) for form, fuse in VARIANTS]
        )

    def construct(self, x, ranking, weights, processed):
        results = ()
        for router in self.routers:
            mask = router.mask(ranking)
            inside = router.enter(x, mask, weights)
            length = inside.shape[1]
            results = results + ((mask, inside, router.leave(processed[:, :length], x, mask)),)
        return results


@pytest.fixture(scope="module")
def round_trip():
    """Inputs by name, and {(formulation, fuse): (mask, inside, outside)}."""
    rng = np.random.default_rng(1)
    sequence = 1 + PATCHES + OLD
    # Values of all sizes, subnormal ones and both zeros: whatever arithmetic would touch.
    x = rng.normal(size=(ROWS, sequence, WIDTH)) * 10.0 ** rng.integers(-30, 30, (ROWS, sequence, WIDTH))
    x = x.astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -0.0
    x[rng.random(x.shape) < 0.1] = 1e-42
    inputs = {
        "x": x,
        "ranking": rng.random((ROWS, PATCHES)).astype(np.float32),
        "weights": rng.random((ROWS, PATCHES)).astype(np.float32),
        "processed": rng.normal(size=(ROWS, 1 + STAY + OLD + 1, WIDTH)).astype(np.float32),
    }
    results = RoundTrip()(*(Tensor(value) for value in inputs.values()))
    return inputs, {variant: [r.asnumpy() for r in result] for variant, result in zip(VARIANTS, results)}


def stays(inputs, row):
    """Boolean mask over the sequence of a row: [CLS], the best patches, the extras."""
    best = set(stable_best(inputs["ranking"][row], STAY))
    return np.array([True] + [p in best for p in range(PATCHES)] + [True] * OLD)


@pytest.mark.parametrize("formulation, fuse", VARIANTS)
def test_the_kept_tokens_enter_in_order(round_trip, formulation, fuse):
    inputs, results = round_trip
    inside = results[formulation, fuse][1]
    assert inside.shape == (ROWS, 1 + STAY + OLD + fuse, WIDTH)
    for row in range(ROWS):
        expected = inputs["x"][row][stays(inputs, row)]
        if formulation == "matmul":  # a matrix product may take a subnormal number for zero
            expected = np.where(np.abs(expected) < np.finfo(np.float32).tiny, 0, expected)
        assert np.array_equal(inside[row, : 1 + STAY + OLD], expected)


@pytest.mark.parametrize("formulation, fuse", VARIANTS)
def test_bypassed_tokens_return_bit_for_bit(round_trip, formulation, fuse):
    inputs, results = round_trip
    outside = results[formulation, fuse][2]
    for row in range(ROWS):
        bypassed = ~stays(inputs, row)
        assert np.array_equal(bits(outside[row][bypassed]), bits(inputs["x"][row][bypassed]))


@pytest.mark.parametrize("formulation, fuse", VARIANTS)
def test_processed_tokens_return_to_their_places(round_trip, formulation, fuse):
    inputs, results = round_trip
    outside = results[formulation, fuse][2]
    for row in range(ROWS):
        returned = outside[row][stays(inputs, row)]
        assert np.array_equal(returned, inputs["processed"][row, : 1 + STAY + OLD])


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_fused_token_is_the_weighted_mean_of_the_bypassed(round_trip, formulation):
    inputs, results = round_trip
    fused = results[formulation, True][1][:, -1]
    for row in range(ROWS):
        bypassed = [p for p in range(PATCHES) if not stays(inputs, row)[1 + p]]
        weights = [float(inputs["weights"][row, p]) for p in bypassed]
        values = [inputs["x"][row, 1 + p].astype(float) for p in bypassed]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        scale = np.abs(values).max(axis=0)
        assert np.all(np.abs(fused[row] - expected) <= 1e-6 * scale + 1e-37)


class WeightedReturn(nn.Cell):
    """sum(weight * tokens after the route)."""

    def __init__(self, variant):
        super().__init__()
        formulation, fuse = variant
        self.router = Router(Span(1, 2, PATCHES, STAY, OLD, "cls_attention", True, fuse), formulation, 0)

    def construct(self, x, processed, ranking, weight):
        mask = self.router.mask(ranking)
        return (self.router.leave(processed, x, mask) * weight).sum()


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def return_gradients(request, round_trip):
    """Inputs by name, weights of the sum, and its gradients by the bypassed and by the processed values."""
    inputs, _ = round_trip
    formulation, fuse = request.param
    weight = np.random.default_rng(3).normal(size=inputs["x"].shape).astype(np.float32)
    processed = inputs["processed"][:, : 1 + STAY + OLD + fuse]
    gradient = ms.jit(ms.grad(WeightedReturn(request.param), (0, 1)))
    of_x, of_processed = gradient(*(Tensor(value) for value in (inputs["x"], processed, inputs["ranking"], weight)))
    return inputs, weight, of_x.asnumpy(), of_processed.asnumpy()


def test_the_gradient_passes_a_bypassed_token_unchanged(return_gradients):
    inputs, weight, of_x, _ = return_gradients
    for row in range(ROWS):
        bypassed = ~stays(inputs, row)
        assert np.array_equal(of_x[row], np.where(bypassed[:, None], weight[row], 0))


def test_the_gradient_of_a_returned_token_goes_to_its_processed_value(return_gradients):
    inputs, weight, _, of_processed = return_gradients
    for row in range(ROWS):
        assert np.array_equal(of_processed[row, : 1 + STAY + OLD], weight[row][stays(inputs, row)])


def test_no_gradient_reaches_the_fused_token_where_it_is_dropped(return_gradients):
    _, _, _, of_processed = return_gradients
    assert not of_processed[:, 1 + STAY + OLD :].any()


# ---------------------------------------------------------------------------------------------------------------------
# Scorers: Router.score, cls_row
# ---------------------------------------------------------------------------------------------------------------------

BATCH, HEADS, HEAD_WIDTH, OFFSET = 3, 2, 8, 4


class Scores(nn.Cell):
    """(ranking, weights) of every scorer, and the [CLS] row of every head."""

    def __init__(self):
        super().__init__()
        self.routers = nn.CellList(
            [Router(Span(1, 2, PATCHES, STAY, OLD, scorer, True, False), "gather", OFFSET) for scorer in SCORERS]
        )

    def construct(self, q, k, v, noise):
        results = ()
        for router in self.routers:
            results = results + (router.score(q, k, v, noise),)
        return results, cls_row(q, k)


@pytest.fixture(scope="module")
def scores():
    """Inputs by name, {scorer: (ranking, weights)}, [CLS] rows (B, heads, sequence)."""
    rng = np.random.default_rng(2)
    shape = (BATCH, HEADS, 1 + PATCHES + OLD, HEAD_WIDTH)
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name in "qkv"}
    inputs["noise"] = rng.random((BATCH, OFFSET + PATCHES + 3)).astype(np.float32)
    results, rows = Scores()(*(Tensor(value) for value in inputs.values()))
    return inputs, {s: [r.asnumpy() for r in result] for s, result in zip(SCORERS, results)}, rows.asnumpy()


def attention_rows(inputs):
    """The [CLS] row of the full attention map, float64 (B, heads, sequence)."""
    rows = np.empty((BATCH, HEADS, 1 + PATCHES + OLD))
    for b in range(BATCH):
        for h in range(HEADS):
            q, k = inputs["q"][b, h].astype(float), inputs["k"][b, h].astype(float)
            e = np.exp(q @ k.T / math.sqrt(HEAD_WIDTH))
            rows[b, h] = (e / e.sum(axis=1, keepdims=True))[0]
    return rows


def test_cls_attention_is_the_first_row_of_the_attention_map(scores):
    inputs, _, rows = scores
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, attention_rows(inputs), rtol=1e-5)


def test_cls_attention_ranks_by_the_mean_over_heads(scores):
    inputs, results, _ = scores
    expected = attention_rows(inputs).mean(axis=1)[:, 1 : 1 + PATCHES]
    np.testing.assert_allclose(results["cls_attention"][0], expected, rtol=1e-5)


def test_cls_attention_value_ranks_by_attention_times_the_norm_of_the_value(scores):
    inputs, results, _ = scores
    norms = np.sqrt((inputs["v"].astype(float) ** 2).sum(axis=-1))
    expected = (attention_rows(inputs) * norms).mean(axis=1)[:, 1 : 1 + PATCHES]
    np.testing.assert_allclose(results["cls_attention_value"][0], expected, rtol=1e-5)


def test_inverse_cls_attention_puts_the_least_attended_first(scores):
    inputs, results, _ = scores
    expected = attention_rows(inputs).mean(axis=1)[:, 1 : 1 + PATCHES]
    assert np.array_equal(np.argsort(-results["inverse_cls_attention"][0]), np.argsort(expected))


def test_random_ranks_by_its_own_columns_of_the_noise(scores):
    inputs, results, _ = scores
    assert np.array_equal(results["random"][0], inputs["noise"][:, OFFSET : OFFSET + PATCHES])


def test_grid_ranks_the_evenly_spaced_first(scores):
    ranking = scores[1]["grid"][0]
    for row in ranking:
        assert np.array_equal(stable_best(row, STAY), np.flatnonzero(grid(PATCHES, STAY)))


@pytest.mark.parametrize("scorer", ["sampled_cls_attention", "mixed_cls_attention"])
def test_outside_training_the_scorers_that_draw_rank_by_attention_bit_for_bit(scores, scorer):
    for drawn, plain in zip(scores[1][scorer], scores[1]["cls_attention"]):
        assert np.array_equal(bits(drawn), bits(plain))


DRAWS = 20_000
DRAWN = [("sampled_cls_attention", {"temperature": t}) for t in (0.0, 0.5, 1.0, 1000.0)] + [
    ("mixed_cls_attention", {"random_share": share}) for share in (0.0, 0.25, 1.0)
]


class Draws(nn.Cell):
    """(ranking, weights) of the scorers that draw, in training; their noise is the last columns."""

    def __init__(self):
        super().__init__()
        spans = [Span(1, 2, PATCHES, STAY, OLD, scorer, True, False, **knob) for scorer, knob in DRAWN]
        self.routers = nn.CellList([Router(span, "gather", OFFSET) for span in spans])

    def construct(self, q, k, v, noise):
        results = ()
        for router in self.routers:
            results = results + (router.score(q, k, v, noise),)
        return results


@pytest.fixture(scope="module")
def draws():
    """Attention of one image (PATCHES,), noise of many steps, {(scorer, knob): (ranking, weights) of every step}."""
    rng = np.random.default_rng(3)
    q, k, v = (
        np.repeat(rng.normal(size=(1, HEADS, 1 + PATCHES + OLD, HEAD_WIDTH)), DRAWS, 0).astype(np.float32)
        for _ in "qkv"
    )
    noise = rng.random((DRAWS, OFFSET + PATCHES + 1), np.float32)
    noise[0, OFFSET] = 0.0  # its logarithm must not spoil the ranking
    results = Draws().set_train()(*(Tensor(value) for value in (q, k, v, noise)))
    results = {
        (scorer, *knob.values()): [r.asnumpy() for r in result] for (scorer, knob), result in zip(DRAWN, results)
    }
    return results["sampled_cls_attention", 0.0][1][0], noise[:, OFFSET:], results


def test_sampling_at_temperature_0_is_the_attention(draws):
    attention, _, results = draws
    assert np.array_equal(results["sampled_cls_attention", 0.0][0], np.tile(attention, (DRAWS, 1)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1000.0])
def test_the_first_token_is_sampled_in_proportion_to_attention_to_the_inverse_temperature(draws, temperature):
    """Within five standard deviations of the binomial distribution."""
    attention, _, results = draws
    ranking = results["sampled_cls_attention", temperature][0]
    assert np.isfinite(ranking).all()
    chances = attention.astype(float) ** (1 / temperature)
    chances /= chances.sum()
    counts = np.bincount(ranking.argmax(1), minlength=PATCHES)
    assert (np.abs(counts - DRAWS * chances) < 5 * np.sqrt(DRAWS * chances * (1 - chances)) + 1).all()


def test_the_second_token_is_sampled_from_the_others(draws):
    """Without replacement: P(i, then j) = p_i p_j / (1 - p_i)."""
    attention, _, results = draws
    chances = attention.astype(float) / attention.sum()
    first, second = np.argsort(-results["sampled_cls_attention", 1.0][0], axis=1)[:, :2].T
    pairs = np.outer(chances / (1 - chances), chances) * (1 - np.eye(PATCHES))
    counts = np.bincount(first * PATCHES + second, minlength=PATCHES**2).reshape(PATCHES, PATCHES)
    assert (np.abs(counts - DRAWS * pairs) < 5 * np.sqrt(DRAWS * pairs) + 1).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mixing_ranks_the_drawn_images_by_noise_and_the_others_by_attention(draws, share):
    attention, noise, results = draws
    ranking = results["mixed_cls_attention", share][0]
    at_random = noise[:, PATCHES] < share
    assert abs(at_random.mean() - share) < 0.02
    assert np.array_equal(ranking[at_random], noise[at_random, :PATCHES])
    assert np.array_equal(ranking[~at_random], np.tile(attention, (DRAWS, 1))[~at_random])


@pytest.mark.parametrize("scorer", ["cls_attention", "cls_attention_value"])
def test_attention_scorers_weigh_the_fused_token_by_what_they_rank_by(scores, scorer):
    ranking, weights = scores[1][scorer]
    assert np.array_equal(weights, ranking)


def test_inverse_cls_attention_weighs_the_fused_token_by_attention(scores):
    inputs, results, _ = scores
    expected = attention_rows(inputs).mean(axis=1)[:, 1 : 1 + PATCHES]
    np.testing.assert_allclose(results["inverse_cls_attention"][1], expected, rtol=1e-5)


@pytest.mark.parametrize("scorer", ["random", "grid"])
def test_scorers_without_a_score_weigh_the_bypassed_equally(scores, scorer):
    weights = scores[1][scorer][1]
    assert (weights == weights[0, 0]).all() and weights[0, 0] > 0
