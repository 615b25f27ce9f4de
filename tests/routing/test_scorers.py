"""Scorers against NumPy, with and without training; the statistics of those that draw; one of a user's own."""

import math

import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from pydantic import ValidationError

from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.layout import Layout
from skipvit.routing.program import Score, compile_program, kept_positions
from skipvit.routing.scorers import SCORERS, Scorer, cls_row, mean_received, of_patches, register_scorer
from skipvit.routing.spec import Route
from support.reference import grid, stable_best

BATCH, HEADS, HEAD_WIDTH, PATCHES, STAY, OLD = 3, 2, 8, 10, 4, 2
SEQUENCE = Layout(1, PATCHES, OLD)


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


class Scores(nn.Cell):
    """(ranking, weights) of scorers with their knobs, on one set of signals; each reads its noise from the first
    column.
    """

    def __init__(self, scorers):
        super().__init__()
        self.steps = [
            Score(SEQUENCE, SEQUENCE, scorer=Scorer.named(name), kept=STAY, first_noise=0, name="ranking",
                  knobs=Scorer.named(name).settings(knobs))
            for name, knobs in scorers
        ]  # fmt: skip

    def construct(self, q, k, v, noise, tokens, entered):
        signals = {"q": q, "k": k, "v": v}
        row = cls_row(signals, SEQUENCE)
        told = {
            "cls_row": row,
            "q": of_patches(q, SEQUENCE),
            "k": of_patches(k, SEQUENCE),
            "v": of_patches(v, SEQUENCE),
            "received": mean_received({"q": of_patches(q, SEQUENCE), "k": of_patches(k, SEQUENCE)}),
            "tokens": tokens,
            "entered": entered,
        }
        results = ()
        for step in self.steps:
            own = ops.Slice()(noise, (0, 0), (noise.shape[0], max(step.noise_columns, PATCHES)))
            results = results + (step.scorer.score(step, told, own, self.training),)
        return results, row


@pytest.fixture(scope="module")
def scores():
    """Inputs by name, {scorer: (ranking, weights)}, [CLS] rows (B, heads, patches)."""
    rng = np.random.default_rng(2)
    shape = (BATCH, HEADS, SEQUENCE.length, HEAD_WIDTH)
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name in "qkv"}
    inputs["noise"] = rng.random((BATCH, PATCHES + 3)).astype(np.float32)
    inputs |= {name: rng.normal(size=(BATCH, PATCHES, 6)).astype(np.float32) for name in ("tokens", "entered")}
    cell = Scores([(name, {}) for name in SCORERS]).set_train(False)
    results, rows = cell(*(Tensor(value) for value in inputs.values()))
    return inputs, {s: [r.asnumpy() for r in result] for s, result in zip(SCORERS, results)}, rows.asnumpy()


def attention_rows(inputs):
    """The [CLS] row of the full attention map, float64 (B, heads, patches)."""
    rows = np.empty((BATCH, HEADS, SEQUENCE.length))
    for b in range(BATCH):
        for h in range(HEADS):
            q, k = inputs["q"][b, h].astype(float), inputs["k"][b, h].astype(float)
            e = np.exp(q @ k.T / math.sqrt(HEAD_WIDTH))
            rows[b, h] = (e / e.sum(axis=1, keepdims=True))[0]
    return rows[:, :, 1 : 1 + PATCHES]


def test_cls_attention_is_the_first_row_of_the_attention_map(scores):
    inputs, results, rows = scores
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, attention_rows(inputs), rtol=1e-5)
    np.testing.assert_allclose(results["cls_attention"][0], attention_rows(inputs).mean(axis=1), rtol=1e-5)


def test_cls_attention_value_ranks_by_attention_times_the_norm_of_the_value(scores):
    inputs, results, _ = scores
    norms = np.sqrt((inputs["v"].astype(float) ** 2).sum(axis=-1))[:, :, 1 : 1 + PATCHES]
    np.testing.assert_allclose(
        results["cls_attention_value"][0], (attention_rows(inputs) * norms).mean(axis=1), rtol=1e-5
    )


def test_attention_received_is_the_mean_column_of_the_patches_own_attention(scores):
    inputs, results, _ = scores
    expected = np.zeros((BATCH, PATCHES))
    for b in range(BATCH):
        for h in range(HEADS):
            q, k = (inputs[name][b, h, 1 : 1 + PATCHES].astype(float) for name in "qk")
            e = np.exp(q @ k.T / math.sqrt(HEAD_WIDTH))
            expected[b] += (e / e.sum(axis=1, keepdims=True)).mean(axis=0) / HEADS
    np.testing.assert_allclose(results["attention_received"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(expected.sum(1), 1)


def test_magnitude_and_change_are_those_of_numpy(scores):
    inputs, found, _ = scores
    tokens, entered = inputs["tokens"].astype(float), inputs["entered"].astype(float)
    np.testing.assert_allclose(found["magnitude"][0], np.abs(tokens).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(found["change"][0], np.linalg.norm(tokens - entered, axis=-1), rtol=1e-5)


def test_inverse_cls_attention_puts_the_least_attended_first_and_weighs_by_attention(scores):
    inputs, results, _ = scores
    expected = attention_rows(inputs).mean(axis=1)
    assert np.array_equal(np.argsort(-results["inverse_cls_attention"][0]), np.argsort(expected))
    np.testing.assert_allclose(results["inverse_cls_attention"][1], expected, rtol=1e-5)


def test_random_ranks_by_its_noise_and_grid_the_evenly_spaced_first(scores):
    inputs, results, _ = scores
    assert np.array_equal(results["random"][0], inputs["noise"][:, :PATCHES])
    for row in results["grid"][0]:
        assert np.array_equal(stable_best(row, STAY), np.flatnonzero(grid(PATCHES, STAY)))


@pytest.mark.parametrize("scorer", ["sampled_cls_attention", "mixed_cls_attention"])
def test_outside_training_the_scorers_that_draw_rank_by_attention_bit_for_bit(scores, scorer):
    for drawn, plain in zip(scores[1][scorer], scores[1]["cls_attention"]):
        assert np.array_equal(bits(drawn), bits(plain))


def test_weights_of_the_fused_token(scores):
    """Attention scorers weigh by what they rank by, the others all alike."""
    for scorer in ("cls_attention", "cls_attention_value"):
        assert np.array_equal(*scores[1][scorer])
    for scorer in ("random", "grid"):
        weights = scores[1][scorer][1]
        assert (weights == weights[0, 0]).all() and weights[0, 0] > 0


GRIDS = [(16, 1), (16, 7), (16, 8), (16, 15), (16, 16), (49, 22), (196, 88), (196, 137), (1024, 461), (1, 1)]


@pytest.mark.parametrize("patches, kept", GRIDS)
def test_grid_is_the_line_of_bresenham(patches, kept):
    """Exactly as many as asked for; going round in a circle, the distances between neighbours differ by at most one."""
    whole = Layout(0, patches)
    step = Score(whole, whole, scorer=Scorer.named("grid"), kept=kept, first_noise=0, name="", knobs={})
    chosen = step.scorer.score(step, {}, Tensor(np.zeros((1, 0), np.float32)), False)[0].asnumpy()[0] > 0
    assert chosen.sum() == kept and np.array_equal(chosen, grid(patches, kept))
    gaps = np.diff(np.append(np.flatnonzero(chosen), np.flatnonzero(chosen)[0] + patches))
    assert gaps.max() - gaps.min() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Drawing, in training
# ---------------------------------------------------------------------------------------------------------------------

DRAWS = 20_000
TEMPERATURES, SHARES = (0.0, 0.5, 1.0, 1000.0), (0.0, 0.25, 1.0)
DRAWN = [("sampled_cls_attention", {"temperature": t}) for t in TEMPERATURES]
DRAWN += [("mixed_cls_attention", {"random_share": share}) for share in SHARES]
DRAWN += [("sampled_cls_attention", {}), ("mixed_cls_attention", {})]


@pytest.fixture(scope="module")
def draws():
    """Attention of one image (PATCHES,), noise of many steps, {(scorer, knob): ranking of every step}."""
    rng = np.random.default_rng(3)
    q, k, v = (
        np.repeat(rng.normal(size=(1, HEADS, SEQUENCE.length, HEAD_WIDTH)), DRAWS, 0).astype(np.float32) for _ in "qkv"
    )
    noise = rng.random((DRAWS, PATCHES + 1), np.float32)
    noise[0, 0] = 0.0  # its logarithm must not spoil the ranking
    tokens = np.zeros((len(q), PATCHES, 1), np.float32)
    results, row = Scores(DRAWN).set_train()(*(Tensor(value) for value in (q, k, v, noise, tokens, tokens)))
    rankings = {(name, *knobs.values()): ranking.asnumpy() for (name, knobs), (ranking, _) in zip(DRAWN, results)}
    return row.asnumpy().mean(1)[0], noise, rankings


def test_sampling_at_temperature_0_is_the_attention(draws):
    attention, _, results = draws
    np.testing.assert_allclose(results["sampled_cls_attention", 0.0], np.tile(attention, (DRAWS, 1)), rtol=1e-6)


def test_what_is_not_given_is_as_documented(draws):
    assert np.array_equal(draws[2]["sampled_cls_attention",], draws[2]["sampled_cls_attention", 1.0])
    drawn, noise = draws[2]["mixed_cls_attention",], draws[1]
    assert np.array_equal((drawn == noise[:, :PATCHES]).all(1), noise[:, PATCHES] < 0.5)


@pytest.mark.parametrize("temperature", TEMPERATURES[1:])
def test_the_first_token_is_sampled_in_proportion_to_attention_to_the_inverse_temperature(draws, temperature):
    """Within five standard deviations of the binomial distribution."""
    attention, _, results = draws
    ranking = results["sampled_cls_attention", temperature]
    assert np.isfinite(ranking).all()
    chances = attention.astype(float) ** (1 / temperature)
    chances /= chances.sum()
    counts = np.bincount(ranking.argmax(1), minlength=PATCHES)
    assert (np.abs(counts - DRAWS * chances) < 5 * np.sqrt(DRAWS * chances * (1 - chances)) + 1).all()


def test_the_second_token_is_sampled_from_the_others(draws):
    """Without replacement: P(i, then j) = p_i p_j / (1 - p_i)."""
    attention, _, results = draws
    chances = attention.astype(float) / attention.sum()
    first, second = np.argsort(-results["sampled_cls_attention", 1.0], axis=1)[:, :2].T
    pairs = np.outer(chances / (1 - chances), chances) * (1 - np.eye(PATCHES))
    counts = np.bincount(first * PATCHES + second, minlength=PATCHES**2).reshape(PATCHES, PATCHES)
    assert (np.abs(counts - DRAWS * pairs) < 5 * np.sqrt(DRAWS * pairs) + 1).all()


@pytest.mark.parametrize("share", SHARES)
def test_mixing_ranks_the_drawn_images_by_noise_and_the_others_by_attention(draws, share):
    attention, noise, results = draws
    ranking, at_random = results["mixed_cls_attention", share], noise[:, PATCHES] < share
    assert abs(at_random.mean() - share) < 0.02
    assert np.array_equal(ranking[at_random], noise[at_random, :PATCHES])
    np.testing.assert_allclose(ranking[~at_random], np.tile(attention, (DRAWS, 1))[~at_random], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# One's own
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    """A scorer with a parameter and noise, registered as a user does; gone afterwards."""

    @register_scorer("tilted_keys", reads=("k", "cls_row"), noise=(1, 1), knobs={"tilt": (2.0, -5, 5)})
    def tilted_keys(step, signals, noise, training):
        """Length of the key, plus noise of the image's own size, plus the position times a tilt."""
        batch, patches = noise.shape[0], step.before.patches
        length = ops.ReduceMean()(ops.Sqrt()(ops.ReduceSum()(ops.Square()(signals["k"]), -1)), 1)
        each = ops.Slice()(noise, (0, 0), (batch, patches)) * ops.Slice()(noise, (0, patches), (batch, 1))
        places = Tensor(np.arange(16, dtype=np.float32))
        return length + each + places * step.knobs["tilt"], ops.ReduceMean()(signals["cls_row"], 1)

    yield tilted_keys
    del SCORERS["tilted_keys"]


def test_a_scorer_of_ones_own_with_a_parameter_routes(own):
    spec = ViTSpec(width=16, depth=3, heads=2, patch=4, image_size=16, num_classes=5)
    routes = [
        Route(start=1, end=2, scorer="tilted_keys", keep_ratio=0.5),
        Route(start=2, scorer="tilted_keys", keep_ratio=0.5, tilt=-1.5, fuse=True),
    ]
    program = compile_program(spec, routes, "routed")
    assert [(s.first_noise, s.knobs) for s in program.of_kind("score")] == [(6, {"tilt": 2.0}), (23, {"tilt": -1.5})]
    assert program.noise_width == 40
    outputs = ("routes.0.ranking", "routes.0.slots", "routes.1.ranking", "routes.1.slots")
    network = spec.network()
    for parameter in network.get_parameters():
        if ".k." in parameter.name:  # keys that are all zero: rankings are then noise and tilt
            parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
    noise = np.random.default_rng(0).random((2, 40)).astype(np.float32)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    seen = Forward(network, program, "gather", outputs).by_name(images, noise)
    for number, first, tilt in ((0, 6, 2.0), (1, 23, -1.5)):
        expected = noise[:, first : first + 16] * noise[:, [first + 16]] + tilt * np.arange(16)
        np.testing.assert_allclose(seen[f"routes.{number}.ranking"], expected, rtol=1e-5, atol=1e-6)
        kept = kept_positions(seen[f"routes.{number}.slots"], program.selections[number].after)
        assert np.array_equal(kept, [stable_best(row, 8) for row in expected])


def test_its_parameter_is_checked_like_the_others(own):
    with pytest.raises(ValidationError, match="tilt: 6 is outside -5 to 5"):
        Route(start=1, scorer="tilted_keys", tilt=6)
    with pytest.raises(ValidationError, match="tilt: cls_attention has none; it belongs to tilted_keys"):
        Route(start=1, tilt=1)


def test_a_signal_that_no_block_gives_is_refused():
    with pytest.raises(ValueError, match="^scorer x: 'logits' is not a signal; there are cls_row, received, "):
        register_scorer("x", reads=("logits",))
    assert "x" not in SCORERS


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'randon' is not one of cls_attention, .*; did you mean random?"):
        Scorer.named("randon")
