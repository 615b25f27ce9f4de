"""The network, dense and along every kind of route, against a NumPy float64 reference and itself.

All parameters are random and large: at initialisation the head is zero and attention flat, which would hide mistakes.
Each case is one graph, of both formulations.
"""

from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program, kept_positions
from skipvit.routing.spec import Route
from support.reference import forward, stable_best
from support.weights import drawn, load

BATCH, PATCH, DEPTH, TOKENS = 3, 4, 5, 16
LAST = DEPTH - 1
NUMBERS = {"width": 16, "depth": DEPTH, "heads": 2, "patch": PATCH, "image_size": 16, "num_classes": 7}
FORMULATIONS = ("gather", "matmul")


@dataclass
class Case:
    """A network and a route through it, and what is asked of them."""

    routes: list = field(default_factory=list)
    uint8: bool = False
    gelu: str = "tanh"
    fused_kernels: bool = False
    training: bool = False
    drop_path: float = 0.0
    gradients: bool = False


def route(start, end, keep_ratio, scorer="cls_attention", **keys):
    return Route(start=start, end=end, keep_ratio=keep_ratio, scorer=scorer, **keys)


DENSE = {
    "float": Case(drop_path=0.6, gradients=True),  # no effect outside training
    "uint8, erf GELU": Case(uint8=True, gelu="erf"),
    "fused kernels": Case(fused_kernels=True, gradients=True),
    "drop path": Case(training=True, drop_path=0.6),
}
GONE = {"restore": False}
# Every scorer, way of carrying and place at least once; the published methods are in test_methods.py.
ROUTED = {
    "random": Case([route(0, 4, 0.3, "random")], gradients=True),
    "sampled, then mixed": Case(
        [
            route(1, 2, 0.5, "sampled_cls_attention", temperature=0.7),
            route(2, 4, 0.6, "mixed_cls_attention", fuse=True, random_share=0.4),
        ],
        uint8=True, training=True, drop_path=0.3,
    ),
    "adjacent after two blocks": Case(
        [
            route(1, 3, 0.45, fuse=True),
            route(3, 4, 0.6, "cls_attention_value"),
            route(4, 5, 0.5, "attention_received", **GONE),
        ]
    ),
    "gone, back, back, gone": Case(
        [
            route(0, 2, 0.75, fuse=True, at="mlp", **GONE),
            route(2, 3, 0.6, "cls_attention_value", fuse=True, at="mlp"),
            route(3, 4, 0.5, "inverse_cls_attention"),
            route(4, 5, 0.5, "random", fuse=True, **GONE),
        ],
        gradients=True,
    ),
}  # fmt: skip
CASES = DENSE | ROUTED
DIFFERENTIATED = [name for name, case in CASES.items() if case.gradients]
ROUTED_DIFFERENTIATED = [name for name in ROUTED if name in DIFFERENTIATED]


def without_last_block(values):
    """The same parameters, but the last block adds nothing: its output shows what returned from a route before it."""
    silent = [f"blocks.{LAST}.{part}.{kind}" for part in ("attn.proj", "mlp.fc2") for kind in ("weight", "bias")]
    return {name: np.zeros_like(value) if name in silent else value for name, value in values.items()}


class Objective(nn.Cell):
    """sum(w_logits * logits) + sum(w_tokens * output of the last block), and everything that the program makes."""

    def __init__(self, made):
        super().__init__(auto_prefix=False)
        self.made = made
        self.logits, self.last = made.outputs.index("logits"), made.outputs.index(f"blocks.{LAST}")

    def construct(self, images, noise, w_logits, w_tokens):
        everything = self.made(images, noise)
        return (everything[self.logits] * w_logits).sum() + (everything[self.last] * w_tokens).sum(), everything


class Together(nn.Cell):
    """Objectives, and their gradients by the parameters if asked for. A cell: `jit(value_and_grad(...))` misses later
    `set_data`.
    """

    def __init__(self, objectives, parameters):
        super().__init__(auto_prefix=False)
        parameters = ms.ParameterTuple(parameters) if parameters else None
        self.functions = objectives
        if parameters:
            self.functions = [ms.value_and_grad(objective, None, parameters, has_aux=True) for objective in objectives]

    def construct(self, images, noise, w_logits, w_tokens):
        results = ()
        for function in self.functions:
            results = results + (function(images, noise, w_logits, w_tokens),)
        return results


class Network:
    """A case compiled once, in the formulations that it has; runs with any parameter values and inputs."""

    def __init__(self, case):
        self.case = case
        self.spec = ViTSpec(**NUMBERS, drop_path=case.drop_path, gelu=case.gelu)
        self.program = compile_program(self.spec, case.routes, "case")
        self.network = self.spec.network(case.fused_kernels)
        self.parameters = self.network.trainable_params()
        self.formulations = FORMULATIONS if case.routes else FORMULATIONS[:1]
        forwards = [Forward(self.network, self.program, form, self.program.makes) for form in self.formulations]
        objectives = [Objective(each).set_train(case.training) for each in forwards]
        self.function = Together(objectives, self.parameters if case.gradients else ())

    def inputs(self, seed=0):
        """(images, noise) of a batch."""
        rng = np.random.default_rng(100 + seed)
        images = rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
        if not self.case.uint8:
            images = rng.normal(size=images.shape).astype(np.float32)
        return images, rng.random((BATCH, self.program.noise_width)).astype(np.float32)

    def loss_weights(self, seed=0):
        """(w_logits, w_tokens) of the objective."""
        rng = np.random.default_rng(200 + seed)
        length = self.program.of_kind("norm")[0].before.length
        shapes = (BATCH, self.spec.num_classes), (BATCH, length, self.spec.width)
        return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def run(self, values, inputs, loss_weights):
        """{formulation: ({value: array}, {parameter: gradient} (empty unless the case asks for gradients))}."""
        load(self.network, values)
        results = {}
        for formulation, result in zip(
            self.formulations, self.function(*(Tensor(array) for array in (*inputs, *loss_weights)))
        ):
            gradients = {}
            if self.case.gradients:
                result, gradient = result
                gradients = {p.name: g.asnumpy() for p, g in zip(self.parameters, gradient)}
            made = {name: array.asnumpy() for name, array in zip(self.program.makes, result[1])}
            results[formulation] = made, gradients
        return results

    def reference(self, values, inputs, scores=None):
        case, spec = self.case, self.spec
        return forward(
            values, *inputs, depth=DEPTH, heads=spec.heads, patch=PATCH, routes=case.routes, drop_path=case.drop_path,
            training=case.training, exact_gelu=case.gelu == "erf", scores=scores,
        )  # fmt: skip


@dataclass
class Run:
    """One run of a network and of the reference on the same values."""

    network: Network
    values: dict
    inputs: tuple
    loss_weights: tuple
    results: dict
    expected: object

    def made(self, formulation="gather"):
        return self.results[formulation][0]

    def gradients(self, formulation="gather"):
        return self.results[formulation][1]


@pytest.fixture(scope="module")
def run_of():
    """run_of(case name): compiled and run on first use."""
    runs = {}

    def get(name):
        if name not in runs:
            network = Network(CASES[name])
            values, inputs, weights = drawn(network.spec.shapes(), 22), network.inputs(), network.loss_weights()
            results, expected = network.run(values, inputs, weights), network.reference(values, inputs)
            runs[name] = Run(network, values, inputs, weights, results, expected)
        return runs[name]

    return get


def assert_close(actual, expected, what):
    """Float32 against float64, after up to five blocks on values of about one (seen: differences of 3e-6)."""
    assert actual.shape == expected.shape, what
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5, err_msg=what)


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_value_equals_the_reference(run_of, name):
    run = run_of(name)
    for made, _ in run.results.values():
        for each in ("logits", "embed", "norm"):
            assert_close(made[each], getattr(run.expected, each), each)
        for i in range(DEPTH):
            assert_close(made[f"blocks.{i}"], run.expected.blocks[i], f"blocks.{i}")
            assert_close(made[f"blocks.{i}.cls_attention"], run.expected.cls_attention[i], f"blocks.{i}.cls_attention")


@pytest.mark.parametrize("name", ROUTED)
def test_rankings_kept_positions_and_slots_equal_the_reference(run_of, name):
    run = run_of(name)
    program, scorers = run.network.program, [step.scorer for step in run.network.program.of_kind("score")]
    assert len(program.selections) == len(run.expected.kept)
    for made, _ in run.results.values():
        for r, kept in enumerate(run.expected.kept):
            if scorers[r].reads:  # the others rank by exact numbers
                assert run.expected.margins[r].min() > 1e-3, "a near tie: float32 may rightly choose otherwise"
            np.testing.assert_allclose(made[f"routes.{r}.ranking"], run.expected.rankings[r], rtol=1e-4)
            slots = made[f"routes.{r}.slots"]
            assert np.array_equal(slots, run.expected.slots[r])
            assert np.array_equal(kept_positions(slots, program.selections[r].after), kept)


@pytest.mark.parametrize("name", ROUTED)
def test_formulations_are_bit_identical(run_of, name):
    (made, gradients), (other, other_gradients) = run_of(name).results.values()
    for each in made:
        assert np.array_equal(made[each], other[each]), each
    for each in gradients:
        assert np.array_equal(gradients[each], other_gradients[each]), each


def test_drop_path_of_the_case_both_drops_and_keeps(run_of):
    """So that the comparison above means something."""
    run = run_of("drop path")
    rates = np.linspace(0, run.network.case.drop_path, DEPTH).repeat(2)
    dropped = run.inputs[1][:, : 2 * DEPTH] < rates
    assert 0 < dropped[:, 2:].sum() < dropped[:, 2:].size
    assert not dropped[:, :2].any()


@pytest.mark.parametrize("name", ["uint8, erf GELU", "drop path"])
def test_the_network_itself_is_the_dense_forward_bit_for_bit(run_of, name):
    run = run_of(name)
    load(run.network.network, run.values)
    run.network.network.set_train(run.network.case.training)
    logits = run.network.network(*(Tensor(array) for array in run.inputs)).asnumpy()
    assert np.array_equal(logits, run.made()["logits"])


# ---------------------------------------------------------------------------------------------------------------------
# The bypass
# ---------------------------------------------------------------------------------------------------------------------


def test_bypassed_tokens_come_out_of_the_network_bit_for_bit_and_kept_ones_as_the_span_left_them(run_of):
    """`random` over blocks 0 to 3, then a block that adds nothing."""
    run = run_of("random")
    for seen, _ in run.network.run(without_last_block(run.values), run.inputs, run.loss_weights).values():
        for b in range(BATCH):
            kept = 1 + run.expected.kept[0][b]
            bypassed = np.setdiff1d(np.arange(1, 1 + TOKENS), kept)
            before, after = seen["embed"][b, bypassed], seen["blocks.4"][b, bypassed]
            assert len(bypassed) == TOKENS - 5
            assert np.array_equal(before.view(np.uint32), after.view(np.uint32))
            assert np.array_equal(seen["blocks.4"][b, np.append(0, kept)], seen["blocks.3"][b])


def test_other_noise_keeps_others_and_the_same_noise_repeats_the_step_exactly(run_of):
    run = run_of("random")
    other = run.network.inputs(seed=1)[1]
    seen = run.network.run(run.values, (run.inputs[0], other), run.loss_weights)
    again = run.network.run(run.values, run.inputs, run.loss_weights)
    for formulation in FORMULATIONS:
        slots = seen[formulation][0]["routes.0.slots"]
        assert not np.array_equal(slots, run.made(formulation)["routes.0.slots"])
        for row, noise in zip(slots, other):
            assert np.array_equal(np.flatnonzero(row >= 0), stable_best(noise[2 * DEPTH :], 5))
        made, gradients = again[formulation]
        assert np.array_equal(made["logits"], run.made(formulation)["logits"])
        assert all(np.array_equal(gradients[name], run.gradients(formulation)[name]) for name in gradients)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients: directional derivatives of the float64 reference, scores held fixed
# ---------------------------------------------------------------------------------------------------------------------

STEP = 1e-5


def slope(run, direction, scores=None):
    """Central difference of the reference's objective along {parameter: direction}; nan if the kept set changes."""

    def value(step):
        values = {name: x + step * direction[name] if name in direction else x for name, x in wide.items()}
        trace = run.network.reference(values, run.inputs, scores)
        w_logits, w_tokens = run.loss_weights
        same = all(np.array_equal(a, b) for a, b in zip(trace.kept, run.expected.kept))
        return (trace.logits * w_logits).sum() + (trace.blocks[-1] * w_tokens).sum() if same else np.nan

    wide = {name: x.astype(np.float64) for name, x in run.values.items()}
    return (value(STEP) - value(-STEP)) / (2 * STEP)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_of_single_parameters_equal_finite_differences(run_of, name):
    """One random direction a parameter, for every third: a gradient that is wrong anywhere in it shows (seen: 1e-4)."""
    run = run_of(name)
    rng = np.random.default_rng(4)
    for parameter in list(run.gradients())[DIFFERENTIATED.index(name) % 3 :: 3]:
        gradient = run.gradients()[parameter].astype(np.float64)
        direction = rng.normal(size=gradient.shape)
        expected = slope(run, {parameter: direction}, run.expected.scores)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-3), parameter


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_whole_gradient_equals_finite_differences(run_of, name):
    """Random directions over all parameters at once (seen: differences of 3e-4 in slopes of hundreds)."""
    run = run_of(name)
    rng = np.random.default_rng(5)
    for _ in range(5):
        direction = {parameter: rng.normal(size=g.shape) for parameter, g in run.gradients().items()}
        expected = slope(run, direction, run.expected.scores)
        actual = sum((g.astype(np.float64) * direction[parameter]).sum() for parameter, g in run.gradients().items())
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_no_gradient_flows_through_the_weights_of_a_fused_token(run_of):
    """A key projection that a scorer reads would have another slope if the scores moved with it."""
    run = run_of("gone, back, back, gone")
    parameter = "blocks.0.attn.k.weight"
    gradient = run.gradients()[parameter].astype(np.float64)
    direction = np.random.default_rng(6).normal(size=gradient.shape)
    with_fixed_scores = slope(run, {parameter: direction}, run.expected.scores)
    with_live_scores = slope(run, {parameter: direction})
    assert abs(with_live_scores - with_fixed_scores) > 0.1 * abs(with_fixed_scores)
    assert (gradient * direction).sum() == pytest.approx(with_fixed_scores, rel=1e-4)


def test_the_bypass_carries_the_gradient_unchanged_and_past_the_blocks_of_the_span(run_of):
    """Gradients of a loss that reads bypassed tokens only, right after the route.

    The route is `random`, from block 0, and the block behind it adds nothing: between the embedding and the loss a
    bypassed token meets no arithmetic at all.
    """
    run = run_of("random")
    bypassed = np.ones((BATCH, 1 + TOKENS, 1), np.float32)
    bypassed[:, 0] = 0
    for b, kept in enumerate(run.expected.kept[0]):
        bypassed[b, 1 + kept] = 0
    # Whole numbers, so that a sum over the batch is exact in any order.
    weights = np.random.default_rng(7).integers(1, 9, (BATCH, 1 + TOKENS, 16)).astype(np.float32) * bypassed
    nothing = np.zeros((BATCH, 7), np.float32)
    results = run.network.run(without_last_block(run.values), run.inputs, (nothing, weights))
    assert weights.any()
    for _, gradients in results.values():
        assert np.array_equal(gradients["pos_embed"], weights.sum(axis=0, keepdims=True))
        for name, gradient in gradients.items():
            if name.startswith("blocks.") and not name.startswith(f"blocks.{LAST}."):
                assert not gradient.any(), name


# ---------------------------------------------------------------------------------------------------------------------
# What can be asked of a forward
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocks.9", "routes.1.slots", "nonsense"])
def test_a_value_that_is_not_made_is_refused(name):
    spec = ViTSpec(**NUMBERS)
    program = compile_program(spec, [route(1, 3, 0.5)])
    with pytest.raises(ValueError, match=f"value '{name}' is not made here; there are embed, .*, logits$"):
        Forward(None, program, outputs=[name])


def test_values_come_by_name_in_the_order_asked_and_without_noise_alike_for_all_images(run_of):
    run = run_of("random")
    load(run.network.network, run.values)
    names = ("routes.0.slots", "embed")
    run.network.network.set_train()
    # Another forward over the same network, which has never trained, leaves the network training.
    seen = Forward(run.network.network, run.network.program, "matmul", names, seed=5).by_name(run.inputs[0])
    assert tuple(seen) == names and all(cell.training for _, cell in run.network.network.cells_and_names())
    assert_close(seen["embed"], run.expected.embed, "embed")
    noise = np.random.default_rng(5).random((1, run.network.program.noise_width), np.float32)
    for row in seen["routes.0.slots"]:
        assert np.array_equal(np.flatnonzero(row >= 0), stable_best(noise[0, 2 * DEPTH :], 5))


def test_a_forward_has_no_parameters_of_its_own():
    spec = ViTSpec(**NUMBERS)
    network = spec.network()
    before = {p.name for p in network.get_parameters()}
    made = Forward(network, compile_program(spec, [route(1, 3, 0.5, fuse=True)]), "matmul")
    assert {p.name for p in made.get_parameters()} == before == set(spec.shapes())
