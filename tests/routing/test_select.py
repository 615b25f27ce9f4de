"""Selectors and carriers against NumPy: who is kept, where each token goes, that a bypassed one returns untouched."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from skipvit.routing.carry import Bypass, Carrier, Fuse, FuseBypass, carrier_of
from skipvit.routing.forward import moved
from skipvit.routing.layout import Cells, Layout
from skipvit.routing.program import Select
from skipvit.routing.select import SELECTORS
from support.reference import stable_best

FORMULATIONS = ("gather", "matmul")


def selector(formulation, before, kept, carrier):
    after = Layout(before.prefix, kept, before.suffix + carrier.adds)
    return SELECTORS[formulation](
        Select(before, after, route=0, carrier=carrier, cells=Cells((before.patches,)), counts=(kept,))
    )


def bits(x):
    """The bit patterns of a float32 array: equal only if every bit is."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


# ---------------------------------------------------------------------------------------------------------------------
# Who is kept
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
    """Mask, and positions or selection matrix, of the same rows for each formulation and number of kept tokens."""

    def __init__(self):
        super().__init__()
        before = Layout(1, TOKENS, EXTRAS)
        self.gather = nn.CellList([selector("gather", before, kept, Bypass()) for kept in KEPT])
        self.matmul = nn.CellList([selector("matmul", before, kept, Bypass()) for kept in KEPT])

    def construct(self, ranking):
        results = ()
        for select in self.gather:
            mask = select.mask(ranking)
            results = results + ((mask, select.index(mask)),)
        for select in self.matmul:
            mask = select.mask(ranking)
            results = results + ((mask, select.matrix(mask)),)
        return results


@pytest.fixture(scope="module")
def masks():
    """{(formulation, kept): (mask, index or matrix)} of all rows, and the rows by name."""
    rows = {name: np.asarray(values, np.float32) for name, values in rankings().items()}
    results = Masks()(Tensor(np.concatenate(list(rows.values()))))
    cases = [(formulation, kept) for formulation in FORMULATIONS for kept in KEPT]
    return {case: [r.asnumpy() for r in result] for case, result in zip(cases, results)}, rows


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("difficulty", rankings().keys())
def test_kept_set_is_the_stable_argsort(masks, difficulty, formulation):
    results, rows = masks
    first = sum(len(rows[name]) for name in list(rows)[: list(rows).index(difficulty)])
    for kept in KEPT:
        for row, ranking in enumerate(rows[difficulty], start=first):
            chosen = np.flatnonzero(results[formulation, kept][0][row, 1 : 1 + TOKENS])
            assert np.array_equal(chosen, stable_best(ranking, kept)), kept


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_mask_is_zero_or_one_and_one_for_cls_and_extras(masks, formulation, kept):
    mask = masks[0][formulation, kept][0]
    assert mask.dtype == np.float32 and mask.shape[1] == 1 + TOKENS + EXTRAS
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert (mask[:, 0] == 1).all() and (mask[:, -EXTRAS:] == 1).all()


@pytest.mark.parametrize("kept", KEPT)
def test_index_and_matrix_have_the_ones_of_the_mask_ascending(masks, kept):
    mask, index = masks[0]["gather", kept]
    assert index.dtype == np.int32
    for row in range(len(mask)):
        assert np.array_equal(index[row], np.flatnonzero(mask[row]))
    mask, matrix = masks[0]["matmul", kept]
    for row in range(len(mask)):
        assert np.array_equal(matrix[row], np.eye(mask.shape[1])[mask[row] == 1])


# ---------------------------------------------------------------------------------------------------------------------
# Leaving and returning
# ---------------------------------------------------------------------------------------------------------------------

ROWS, PATCHES, STAY, OLD, WIDTH = 12, 10, 4, 2, 5
CARRIERS = {"gone": Carrier(), "back": Bypass(), "fused": Fuse(), "fused, back": FuseBypass()}
VARIANTS = [(formulation, name) for formulation in FORMULATIONS for name in CARRIERS]


def test_a_carrier_for_each_way():
    ways = {(restore, fuse): carrier_of(restore, fuse) for restore in (False, True) for fuse in (False, True)}
    assert ways == {
        (False, False): Carrier(), (True, False): Bypass(), (False, True): Fuse(), (True, True): FuseBypass(),
    }  # fmt: skip


class RoundTrip(nn.Cell):
    """Tokens enter each variant of a route, and given values leave it in their place; the sum of what comes out,
    weighted.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        before = Layout(1, PATCHES, OLD)
        self.carriers = [CARRIERS[name] for _, name in VARIANTS]
        self.selectors = nn.CellList([selector(form, before, STAY, CARRIERS[name]) for form, name in VARIANTS])

    def construct(self, x, processed, ranking, weights, slots, loss_weight):
        total, results = 0.0, ()
        for i in range(len(self.carriers)):
            carrier, select = self.carriers[i], self.selectors[i]
            mask = select.mask(ranking)
            inside = carrier.enter(select, x, mask, weights)
            outside = inside
            if carrier.returns:
                outside = carrier.leave(select, processed[:, : inside.shape[1]], x, mask)
                total = total + (outside * loss_weight).sum()
            results = results + ((inside, outside, moved(slots, carrier.places(select, mask))),)
        return total, results


class Entering(nn.Cell):
    """The weighted sum of the tokens that enter one variant."""

    def __init__(self, formulation, name):
        super().__init__(auto_prefix=False)
        self.carrier = CARRIERS[name]
        self.select = selector(formulation, Layout(1, PATCHES, OLD), STAY, self.carrier)

    def construct(self, x, ranking, weights, loss_weight):
        return (self.carrier.enter(self.select, x, self.select.mask(ranking), weights) * loss_weight).sum()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    sequence = 1 + PATCHES + OLD
    # Values of all sizes, subnormal ones and both zeros: whatever arithmetic would touch.
    x = rng.normal(size=(ROWS, sequence, WIDTH)) * 10.0 ** rng.integers(-30, 30, (ROWS, sequence, WIDTH))
    x = x.astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -0.0
    x[rng.random(x.shape) < 0.1] = 1e-42
    # Of an image of 15 patches that came here in 10 tokens; some of them went into the extra tokens, others are
    # nowhere.
    slots = np.stack([rng.permutation([*range(1, 1 + PATCHES), 11, 12, 12, -1, -1]) for _ in range(ROWS)])
    return {
        "x": x,
        "processed": rng.normal(size=(ROWS, 1 + STAY + OLD + 1, WIDTH)).astype(np.float32),
        "ranking": rng.random((ROWS, PATCHES)).astype(np.float32),
        "weights": rng.random((ROWS, PATCHES)).astype(np.float32),
        "slots": slots.astype(np.float32),
        "loss_weight": rng.normal(size=x.shape).astype(np.float32),
    }


@pytest.fixture(scope="module")
def round_trip(inputs):
    """{variant: (inside, outside, slots)}, and the gradients of the sum by x and by the processed values."""
    both = ms.jit(ms.value_and_grad(RoundTrip(), (0, 1), has_aux=True))
    (_, results), gradients = both(*(Tensor(value) for value in inputs.values()))
    results = {variant: [r.asnumpy() for r in result] for variant, result in zip(VARIANTS, results)}
    return results, [gradient.asnumpy() for gradient in gradients]


def stays(inputs, row):
    """Boolean mask over the sequence of a row: [CLS], the best patches, the extras."""
    best = set(stable_best(inputs["ranking"][row], STAY))
    return np.array([True] + [p in best for p in range(PATCHES)] + [True] * OLD)


@pytest.mark.parametrize("formulation, name", VARIANTS)
def test_the_kept_tokens_enter_in_order(inputs, round_trip, formulation, name):
    inside = round_trip[0][formulation, name][0]
    assert inside.shape == (ROWS, 1 + STAY + OLD + ("fused" in name), WIDTH)
    for row in range(ROWS):
        expected = inputs["x"][row][stays(inputs, row)]
        if formulation == "matmul":  # a matrix product may take a subnormal number for zero
            expected = np.where(np.abs(expected) < np.finfo(np.float32).tiny, 0, expected)
        assert np.array_equal(inside[row, : 1 + STAY + OLD], expected)


@pytest.mark.parametrize("name", ["back", "fused, back"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_bypassed_tokens_return_bit_for_bit_and_processed_ones_to_their_places(inputs, round_trip, formulation, name):
    outside = round_trip[0][formulation, name][1]
    for row in range(ROWS):
        stayed = stays(inputs, row)
        assert np.array_equal(bits(outside[row][~stayed]), bits(inputs["x"][row][~stayed]))
        assert np.array_equal(outside[row][stayed], inputs["processed"][row, : 1 + STAY + OLD])


@pytest.mark.parametrize("name", ["fused", "fused, back"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_fused_token_is_the_weighted_mean_of_the_bypassed(inputs, round_trip, formulation, name):
    fused = round_trip[0][formulation, name][0][:, -1]
    for row in range(ROWS):
        bypassed = [p for p in range(PATCHES) if not stays(inputs, row)[1 + p]]
        weights = [float(inputs["weights"][row, p]) for p in bypassed]
        values = [inputs["x"][row, 1 + p].astype(float) for p in bypassed]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        scale = np.abs(values).max(axis=0)
        assert np.all(np.abs(fused[row] - expected) <= 1e-6 * scale + 1e-37)


@pytest.mark.parametrize("formulation, name", VARIANTS)
def test_every_patch_of_the_image_is_found_where_it_went(inputs, round_trip, formulation, name):
    """Kept: in order behind [CLS]; in an extra token: behind those; bypassed: in the fused token, or nowhere."""
    slots = round_trip[0][formulation, name][2]
    for row in range(ROWS):
        stayed = stays(inputs, row)
        went = {old: new for new, old in enumerate(np.flatnonzero(stayed))}
        elsewhere = 1 + STAY + OLD if "fused" in name else -1
        expected = [went.get(int(s), elsewhere) if s >= 0 else -1 for s in inputs["slots"][row]]
        assert slots[row].tolist() == expected


def test_gradients_of_the_return_are_a_copy_of_each_token(inputs, round_trip):
    """Of x where it bypassed, of the processed values where they returned, of a fused token that ends there nothing;
    four variants.
    """
    of_x, of_processed = round_trip[1]
    for row in range(ROWS):
        stayed, weight = stays(inputs, row), inputs["loss_weight"][row]
        assert np.array_equal(of_x[row], np.where(stayed[:, None], 0, 4 * weight))
        assert np.array_equal(of_processed[row, : 1 + STAY + OLD], 4 * weight[stayed])
    assert not of_processed[:, 1 + STAY + OLD :].any()


@pytest.mark.parametrize("name", ["gone", "fused"])
def test_gradients_of_the_entrance_are_those_of_numpy_and_of_both_formulations(inputs, name):
    length = 1 + STAY + OLD + CARRIERS[name].adds
    weight = np.random.default_rng(4).normal(size=(ROWS, length, WIDTH)).astype(np.float32)
    found = []
    for formulation in FORMULATIONS:
        gradient = ms.jit(ms.grad(Entering(formulation, name), 0))
        arrays = (inputs["x"], inputs["ranking"], inputs["weights"], weight)
        found.append(gradient(*(Tensor(array) for array in arrays)).asnumpy())
    assert np.array_equal(*found)
    for row in range(ROWS):
        stayed = stays(inputs, row)
        expected = np.zeros((len(stayed), WIDTH))
        expected[stayed] = weight[row, : 1 + STAY + OLD]
        if name == "fused":
            shares = np.append(0, np.append(inputs["weights"][row], [0, 0])) * ~stayed
            expected += np.outer(shares / shares.sum(), weight[row, -1].astype(float))
        np.testing.assert_allclose(found[0][row], expected, rtol=1e-5, atol=1e-7)


def test_a_sequence_without_cls_and_extras():
    ranking = np.random.default_rng(5).random((ROWS, PATCHES)).astype(np.float32)
    x = np.random.default_rng(6).normal(size=(ROWS, PATCHES, WIDTH)).astype(np.float32)

    class Bare(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.selectors = nn.CellList(
                [selector(form, Layout(0, PATCHES), STAY, FuseBypass()) for form in FORMULATIONS]
            )
            self.carrier = FuseBypass()

        def construct(self, x, ranking):
            results = ()
            for select in self.selectors:
                mask = select.mask(ranking)
                inside = self.carrier.enter(select, x, mask, ranking)
                results = results + ((inside, self.carrier.leave(select, inside * 2, x, mask)),)
            return results

    for inside, outside in Bare()(Tensor(x), Tensor(ranking)):
        for row in range(ROWS):
            best = stable_best(ranking[row], STAY)
            assert np.array_equal(inside[row, :STAY].asnumpy(), x[row, best])
            expected = x[row].copy()
            expected[best] *= 2
            assert np.array_equal(outside[row].asnumpy(), expected)
