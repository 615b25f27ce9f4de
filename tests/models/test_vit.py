"""The network, dense and along every kind of route, against a NumPy float64 reference, published sizes and itself.

All parameters are random and large: at initialisation the head is zero and attention flat, which would hide mistakes.
"""

from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from skipvit.models.sizes import SIZES, Size
from skipvit.models.vit import Activations, LayerNorm, ViT, activation_names
from skipvit.routing.routing import Route
from support.reference import forward, stable_best

BATCH, IMAGE, PATCH, CLASSES = 3, 16, 4, 7
TOKENS = (IMAGE // PATCH) ** 2
SIZE = Size(width=16, depth=5, heads=2)
LAST = SIZE.depth - 1
FORMULATIONS = ("gather", "matmul")


@dataclass
class Case:
    """One compiled network: what it is and what is asked of it."""

    routes: list = field(default_factory=list)
    routed: bool = True
    uint8: bool = False
    exact_gelu: bool = False
    fused_kernels: bool = False
    training: bool = False
    drop_path: float = 0.0
    gradients: bool = False


DENSE = {
    "float": Case(drop_path=0.6, gradients=True),  # no effect outside training
    "uint8, erf GELU": Case(uint8=True, exact_gelu=True),
    "fused kernels": Case(fused_kernels=True, gradients=True),
    "drop path, routes off": Case([Route(1, 3, 0.5, "random")], routed=False, training=True, drop_path=0.6),
}
GONE = {"restore": False}
ROUTED = {
    "cls_attention": Case([Route(2, 4, 0.45)]),
    "random": Case([Route(0, 4, 0.3, "random")], gradients=True),
    "grid": Case([Route(0, 3, 0.4, "grid")]),
    "inverse_cls_attention, fuse": Case([Route(1, 3, 0.5, "inverse_cls_attention", fuse=True)]),
    "cls_attention_value, fuse, gone": Case([Route(2, 5, 0.5, "cls_attention_value", fuse=True, **GONE)], uint8=True),
    "EViT": Case([Route(b, b + 1, 0.7, fuse=True, at="mlp", **GONE) for b in (1, 2, 4)]),
    "PatchDropout": Case([Route(0, 5, 0.5, "random", **GONE)], training=True, drop_path=0.5),
    "random-LTD": Case([Route(b, b + 1, 0.5, "random") for b in (1, 2, 3)], training=True, drop_path=0.5),
    "IdleViT": Case([Route(b, b + 1, 0.5) for b in (1, 2, 3)]),
    "sampled, then mixed": Case(
        [
            Route(1, 2, 0.5, "sampled_cls_attention", temperature=0.7),
            Route(2, 4, 0.6, "mixed_cls_attention", fuse=True, random_share=0.4),
        ],
        training=True,
    ),
    "adjacent after two blocks": Case([Route(1, 3, 0.45, fuse=True), Route(3, 4, 0.6, "cls_attention_value")]),
    "gone, back, back, gone": Case(
        [
            Route(0, 2, 0.75, fuse=True, at="mlp", **GONE),
            Route(2, 3, 0.6, "cls_attention_value", fuse=True, at="mlp"),
            Route(3, 4, 0.5, "inverse_cls_attention"),
            Route(4, 5, 0.5, "random", fuse=True, **GONE),
        ],
        gradients=True,
    ),
}
CASES = DENSE | ROUTED
DIFFERENTIATED = [name for name, case in CASES.items() if case.gradients]
ROUTED_DIFFERENTIATED = [name for name in ROUTED if name in DIFFERENTIATED]


def random_parameters(vit, seed=17):
    """Values for every parameter, float32, large enough that attention is far from flat.

    With this seed every selection of every case is clear: see the margins in the test of kept positions.
    """
    rng = np.random.default_rng(seed)
    values = {}
    for name, parameter in vit.parameters_dict().items():
        scale, centre = 0.3, 0.0
        if name.endswith("weight") and parameter.ndim == 2:
            scale = (1.2 if ".q." in name or ".k." in name else 0.6) * parameter.shape[1] ** -0.5
        elif name.endswith("weight"):
            centre = 1.0
        elif name in ("cls_token", "pos_embed"):
            scale = 1.0
        values[name] = (centre + scale * rng.normal(size=parameter.shape)).astype(np.float32)
    return values


def without_last_block(values):
    """The same parameters, but the last block adds nothing: its output shows what returned from a route before it."""
    silent = [f"blocks.{LAST}.{part}.{kind}" for part in ("attn.proj", "mlp.fc2") for kind in ("weight", "bias")]
    return {name: np.zeros_like(value) if name in silent else value for name, value in values.items()}


class Objective(nn.Cell):
    """sum(w_logits * logits) + sum(w_tokens * output of the last block), and all activations."""

    def __init__(self, activations, last):
        super().__init__(auto_prefix=False)
        self.activations, self.last = activations, last

    def construct(self, images, noise, w_logits, w_tokens):
        everything = self.activations(images, noise)
        return (everything[0] * w_logits).sum() + (everything[self.last] * w_tokens).sum(), everything


class ObjectiveAndGradients(nn.Cell):
    """The objective and its gradients by the parameters. A cell: `jit(value_and_grad(...))` misses later `set_data`."""

    def __init__(self, objective, parameters):
        super().__init__(auto_prefix=False)
        self.function = ms.value_and_grad(objective, None, ms.ParameterTuple(parameters), has_aux=True)

    def construct(self, images, noise, w_logits, w_tokens):
        return self.function(images, noise, w_logits, w_tokens)


class Network:
    """A case compiled once in one formulation; runs with any parameter values and inputs."""

    def __init__(self, case, formulation):
        self.case = case
        self.vit = ViT(
            SIZE,
            IMAGE,
            PATCH,
            CLASSES,
            case.routes,
            formulation,
            drop_path=case.drop_path,
            exact_gelu=case.exact_gelu,
            fused_kernels=case.fused_kernels,
        )
        self.vit.set_train(case.training)
        self.names = activation_names(self.vit, case.routed)
        activations = Activations(self.vit, self.names, case.routed)
        self.parameters = self.vit.trainable_params()
        objective = Objective(activations, self.names.index(f"blocks.{LAST}"))
        self.function = ObjectiveAndGradients(objective, self.parameters) if case.gradients else objective

    def inputs(self, seed=0):
        """(images, noise) of a batch."""
        rng = np.random.default_rng(100 + seed)
        images = rng.integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)
        if not self.case.uint8:
            images = rng.normal(size=images.shape).astype(np.float32)
        return images, rng.random((BATCH, self.vit.noise_width)).astype(np.float32)

    def loss_weights(self, seed=0):
        """(w_logits, w_tokens) of the objective."""
        rng = np.random.default_rng(200 + seed)
        spans = self.vit.spans if self.case.routed else ()
        length = spans[-1].sequence if spans and not spans[-1].restore else 1 + TOKENS
        shapes = (BATCH, CLASSES), (BATCH, length, SIZE.width)
        return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

    def run(self, values, inputs, loss_weights):
        """{activation: array} and {parameter: gradient} (empty unless the case asks for gradients)."""
        for parameter in self.parameters:
            parameter.set_data(Tensor(values[parameter.name]))
        result = self.function(*(Tensor(array) for array in (*inputs, *loss_weights)))
        gradients = {}
        if self.case.gradients:
            result, gradient = result
            gradients = {p.name: g.asnumpy() for p, g in zip(self.parameters, gradient)}
        return {name: a.asnumpy() for name, a in zip(self.names, result[1])}, gradients

    def reference(self, values, inputs, scores=None):
        case = self.case
        return forward(
            values,
            *inputs,
            depth=SIZE.depth,
            heads=SIZE.heads,
            patch=PATCH,
            routes=case.routes if case.routed else (),
            drop_path=case.drop_path,
            training=case.training,
            exact_gelu=case.exact_gelu,
            scores=scores,
        )


@dataclass
class Run:
    """One run of a network and of the reference on the same values."""

    network: Network
    values: dict
    inputs: tuple
    loss_weights: tuple
    activations: dict
    gradients: dict
    expected: object


@pytest.fixture(scope="module")
def run_of():
    """run_of(case name, formulation): compiled and run on first use."""
    runs = {}

    def get(name, formulation="gather"):
        if (name, formulation) not in runs:
            network = Network(CASES[name], formulation)
            values, inputs, weights = random_parameters(network.vit), network.inputs(), network.loss_weights()
            activations, gradients = network.run(values, inputs, weights)
            expected = network.reference(values, inputs)
            runs[name, formulation] = Run(network, values, inputs, weights, activations, gradients, expected)
        return runs[name, formulation]

    return get


def assert_close(actual, expected, what):
    """Float32 against float64, after up to five blocks on values of about one (seen: differences of 3e-6)."""
    assert actual.shape == expected.shape, what
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5, err_msg=what)


# ---------------------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------------------

DENSE_RUNS = [(name, "gather") for name in DENSE]
ROUTED_RUNS = [(name, formulation) for name in ROUTED for formulation in FORMULATIONS]
ALL_RUNS = DENSE_RUNS + ROUTED_RUNS


@pytest.mark.parametrize("name, formulation", ALL_RUNS)
def test_logits_equal_the_reference(run_of, name, formulation):
    run = run_of(name, formulation)
    assert_close(run.activations["logits"], run.expected.logits, "logits")


@pytest.mark.parametrize("name, formulation", ALL_RUNS)
def test_every_token_after_every_block_equals_the_reference(run_of, name, formulation):
    run = run_of(name, formulation)
    assert_close(run.activations["embed"], run.expected.embed, "embed")
    for i, expected in enumerate(run.expected.blocks):
        assert_close(run.activations[f"blocks.{i}"], expected, f"blocks.{i}")
    assert_close(run.activations["norm"], run.expected.norm, "norm")
    assert_close(run.activations["cls_attention"], run.expected.cls_attention, "cls_attention")


@pytest.mark.parametrize("name, formulation", ROUTED_RUNS)
def test_kept_positions_equal_the_reference(run_of, name, formulation):
    run = run_of(name, formulation)
    for r, expected in enumerate(run.expected.kept):
        if "attention" in run.network.case.routes[r].scorer:  # the others rank by exact numbers
            assert run.expected.margins[r].min() > 1e-3, "a near tie: float32 may rightly choose otherwise"
        kept = run.activations[f"routes.{r}.kept"]
        assert kept.dtype == np.int32
        assert np.array_equal(kept, expected)


@pytest.mark.parametrize("name, formulation", ROUTED_RUNS)
def test_rankings_equal_the_reference(run_of, name, formulation):
    run = run_of(name, formulation)
    for r, expected in enumerate(run.expected.rankings):
        ranking = run.activations[f"routes.{r}.ranking"]
        np.testing.assert_allclose(ranking, expected, rtol=1e-4, err_msg=f"routes.{r}.ranking")


def test_drop_path_of_the_case_both_drops_and_keeps(run_of):
    """So that the comparison above means something."""
    run = run_of("drop path, routes off")
    rates = np.linspace(0, run.network.case.drop_path, SIZE.depth).repeat(2)
    dropped = run.inputs[1][:, : 2 * SIZE.depth] < rates
    assert 0 < dropped[:, 2:].sum() < dropped[:, 2:].size
    assert not dropped[:, :2].any()


# ---------------------------------------------------------------------------------------------------------------------
# The bypass
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silent_end(run_of):
    """silent_end(formulation): `cls_attention` over blocks 2 and 3, then a block that adds nothing; activations."""
    return lambda formulation: _silent(run_of("cls_attention", formulation))


def _silent(run):
    return run.network.run(without_last_block(run.values), run.inputs, run.loss_weights)[0]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_bypassed_tokens_come_out_of_the_network_bit_for_bit(silent_end, formulation):
    seen = silent_end(formulation)
    for b in range(BATCH):
        bypassed = 1 + np.setdiff1d(np.arange(TOKENS), seen["routes.0.kept"][b])
        before, after = seen["blocks.1"][b, bypassed], seen["blocks.4"][b, bypassed]
        assert len(bypassed) == TOKENS - 7
        assert np.array_equal(before.view(np.uint32), after.view(np.uint32))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_kept_tokens_come_out_as_the_span_left_them(silent_end, formulation):
    seen = silent_end(formulation)
    for b in range(BATCH):
        kept = np.append(0, 1 + seen["routes.0.kept"][b])
        assert np.array_equal(seen["blocks.4"][b, kept], seen["blocks.3"][b])


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_random_keeps_the_largest_noise(run_of, formulation):
    run = run_of("random", formulation)
    for kept, noise in zip(run.activations["routes.0.kept"], run.inputs[1]):
        assert np.array_equal(kept, stable_best(noise[2 * SIZE.depth :], 5))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_random_keeps_others_for_other_noise(run_of, formulation):
    run = run_of("random", formulation)
    other = run.network.inputs(seed=1)[1]
    seen, _ = run.network.run(run.values, (run.inputs[0], other), run.loss_weights)
    assert not np.array_equal(seen["routes.0.kept"], run.activations["routes.0.kept"])
    for kept, noise in zip(seen["routes.0.kept"], other):
        assert np.array_equal(kept, stable_best(noise[2 * SIZE.depth :], 5))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_same_noise_repeats_the_step_exactly(run_of, formulation):
    run = run_of("random", formulation)
    run.network.run(run.values, run.network.inputs(seed=1), run.loss_weights)
    activations, gradients = run.network.run(run.values, run.inputs, run.loss_weights)
    assert np.array_equal(activations["logits"], run.activations["logits"])
    assert all(np.array_equal(gradients[name], run.gradients[name]) for name in gradients)


# ---------------------------------------------------------------------------------------------------------------------
# gather against matmul
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTED)
def test_formulations_are_bit_identical(run_of, name):
    gather, matmul = run_of(name, "gather"), run_of(name, "matmul")
    for activation in gather.activations:
        assert np.array_equal(gather.activations[activation], matmul.activations[activation]), activation


@pytest.mark.parametrize("name", ROUTED_DIFFERENTIATED)
def test_gradients_of_the_formulations_are_equal(run_of, name):
    gather, matmul = run_of(name, "gather"), run_of(name, "matmul")
    for parameter in gather.gradients:
        assert np.array_equal(gather.gradients[parameter], matmul.gradients[parameter]), parameter


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
    for parameter in list(run.gradients)[DIFFERENTIATED.index(name) % 3 :: 3]:
        gradient = run.gradients[parameter].astype(np.float64)
        direction = rng.normal(size=gradient.shape)
        expected = slope(run, {parameter: direction}, run.expected.scores)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-3), parameter


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_whole_gradient_equals_finite_differences(run_of, name):
    """Random directions over all parameters at once (seen: differences of 3e-4 in slopes of hundreds)."""
    run = run_of(name)
    rng = np.random.default_rng(5)
    for _ in range(5):
        direction = {parameter: rng.normal(size=g.shape) for parameter, g in run.gradients.items()}
        expected = slope(run, direction, run.expected.scores)
        actual = sum((g.astype(np.float64) * direction[parameter]).sum() for parameter, g in run.gradients.items())
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_no_gradient_flows_through_the_weights_of_a_fused_token(run_of):
    """A key projection that a scorer reads would have another slope if the scores moved with it."""
    run = run_of("gone, back, back, gone")
    parameter = "blocks.0.attn.k.weight"
    gradient = run.gradients[parameter].astype(np.float64)
    direction = np.random.default_rng(6).normal(size=gradient.shape)
    with_fixed_scores = slope(run, {parameter: direction}, run.expected.scores)
    with_live_scores = slope(run, {parameter: direction})
    assert abs(with_live_scores - with_fixed_scores) > 0.1 * abs(with_fixed_scores)
    assert (gradient * direction).sum() == pytest.approx(with_fixed_scores, rel=1e-4)


@pytest.fixture(scope="module")
def bypass_gradients(run_of):
    """bypass_gradients(formulation): gradients of a loss that reads bypassed tokens only, right after the route.

    The route is `random`, from block 0, and the block behind it adds nothing: between the embedding and the loss a
    bypassed token meets no arithmetic at all. Returns (gradients, weights of the loss).
    """

    def get(formulation):
        run = run_of("random", formulation)
        bypassed = np.ones((BATCH, 1 + TOKENS, 1), np.float32)
        bypassed[:, 0] = 0
        for b, kept in enumerate(run.expected.kept[0]):
            bypassed[b, 1 + kept] = 0
        # Whole numbers, so that a sum over the batch is exact in any order.
        weights = np.random.default_rng(7).integers(1, 9, (BATCH, 1 + TOKENS, SIZE.width)).astype(np.float32) * bypassed
        nothing = np.zeros((BATCH, CLASSES), np.float32)
        return run.network.run(without_last_block(run.values), run.inputs, (nothing, weights))[1], weights

    return get


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_bypass_carries_the_gradient_unchanged(bypass_gradients, formulation):
    gradients, weights = bypass_gradients(formulation)
    assert weights.any()
    assert np.array_equal(gradients["pos_embed"], weights.sum(axis=0, keepdims=True))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_bypassed_tokens_give_no_gradient_to_the_blocks_of_the_span(bypass_gradients, formulation):
    gradients, _ = bypass_gradients(formulation)
    for name, gradient in gradients.items():
        if name.startswith("blocks.") and not name.startswith(f"blocks.{LAST}."):
            assert not gradient.any(), name


# ---------------------------------------------------------------------------------------------------------------------
# Layer normalisation of rows that hardly vary, where the epsilon counts
# ---------------------------------------------------------------------------------------------------------------------

WIDTH = 24


def layer_norm(x, weight, bias):
    """The textbook's, float64, on rows (rows, D)."""
    rows = [(row - row.mean()) / np.sqrt(row.var() + 1e-6) for row in x]
    return np.stack(rows) * weight + bias


class WeightedNorm(nn.Cell):
    """sum(w * LayerNorm(x)), and LayerNorm(x)."""

    def __init__(self, norm):
        super().__init__(auto_prefix=False)
        self.norm = norm

    def construct(self, x, w):
        y = self.norm(x)
        return (y * w).sum(), y


@pytest.fixture(scope="module", params=[False, True], ids=["written out", "fused kernel"])
def low_variance_norm(request):
    """x (rows, D), weight, bias, w, LayerNorm(x), and the gradient of sum(w * LayerNorm(x)) by x."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(6, WIDTH)) * np.array([[1e-4], [1e-3], [1e-2], [1], [10], [0]])
    norm = LayerNorm(WIDTH, request.param)
    arrays = [a.astype(np.float32) for a in (x, *rng.normal(size=(2, WIDTH)), rng.normal(size=x.shape))]
    x, weight, bias, w = arrays
    norm.weight.set_data(Tensor(weight))
    norm.bias.set_data(Tensor(bias))
    (_, y), gradient = ms.jit(ms.value_and_grad(WeightedNorm(norm), 0, has_aux=True))(Tensor(x), Tensor(w))
    return (*(a.astype(float) for a in arrays), y.asnumpy(), gradient.asnumpy())


def test_layer_norm_of_rows_of_any_size(low_variance_norm):
    x, weight, bias, _, y, _ = low_variance_norm
    np.testing.assert_allclose(y, layer_norm(x, weight, bias), rtol=1e-5, atol=2e-6)


def test_layer_norm_gradient_of_rows_of_any_size(low_variance_norm):
    """Against central differences, relative to the largest gradient of the row."""
    x, weight, bias, w, _, gradient = low_variance_norm
    for row in range(len(x)):
        expected = np.empty(WIDTH)
        for column in range(WIDTH):
            step = np.zeros_like(x[row])
            step[column] = 1e-7
            ahead, behind = (layer_norm(x[row : row + 1] + s, weight, bias) for s in (step, -step))
            expected[column] = ((ahead - behind)[0] @ w[row]) / 2e-7
        np.testing.assert_allclose(gradient[row], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, parameters, errors
# ---------------------------------------------------------------------------------------------------------------------

# The parameters that DeiT and timm publish for patch 16, 224 pixels and 1000 classes.
PUBLISHED = {"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656, "large": 304_326_632}


def counted(vit):
    return sum(int(np.prod(parameter.shape)) for parameter in vit.trainable_params())


def by_formula(width, depth, tokens, patch, classes):
    """Weights and biases of every part of a ViT with an MLP four times as wide."""
    dense = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
    block = sum((inputs + 1) * outputs for inputs, outputs in dense.values()) + 2 * 2 * width
    embedding = (3 * patch**2 + 1) * width + width + (tokens + 1) * width
    return embedding + depth * block + 2 * width + (width + 1) * classes


@pytest.mark.parametrize("name, published", PUBLISHED.items())
def test_parameters_are_as_many_as_published(name, published):
    with no_init_parameters():
        assert counted(ViT(SIZES[name], 224, 16, 1000)) == published


@pytest.mark.parametrize("size", [SIZE, Size(24, 1, 3)])
def test_parameters_are_as_many_as_the_formula_says(size):
    with no_init_parameters():
        vit = ViT(size, 32, 8, 11)
    assert counted(vit) == by_formula(size.width, size.depth, tokens=16, patch=8, classes=11)


def test_routes_add_no_parameter():
    with no_init_parameters():
        routed = ViT(SIZES["small"], 224, 16, 1000, [Route(4, 11, fuse=True)], "matmul", drop_path=0.1)
    assert counted(routed) == PUBLISHED["small"]
    assert len(routed.parameters_dict()) == len(routed.trainable_params())


def test_every_size_has_heads_of_64_and_a_known_width_and_depth():
    """Table 1 of DeiT and of ViT."""
    assert {name: (size.width, size.depth) for name, size in SIZES.items()} == {
        "tiny": (192, 12),
        "small": (384, 12),
        "base": (768, 12),
        "large": (1024, 24),
    }
    assert all(size.width == 64 * size.heads for size in SIZES.values())


def test_noise_has_two_columns_a_block_and_one_a_token_of_each_random_route():
    routes = [Route(0, 1, 0.5, "random"), Route(1, 2, 0.5, restore=False), Route(2, 4, 0.5, "random")]
    assert ViT(Size(16, 5, 2), 16, 4, 5, routes).noise_width == 2 * 5 + 16 + 8


@pytest.mark.parametrize("arguments, key", [((SIZE, 30, 4), "model.patch"), ((Size(20, 2, 3), 16, 4), "model.heads")])
def test_a_shape_that_cannot_work_is_refused_by_name(arguments, key):
    with pytest.raises(ValueError) as refusal:
        ViT(*arguments, 5)
    message = str(refusal.value)
    assert message.startswith(f"{key}:")
    assert "\n" not in message


@pytest.mark.parametrize("name, routed", [("blocks.9", True), ("routes.0.kept", False), ("nonsense", True)])
def test_an_activation_that_does_not_exist_is_refused(name, routed):
    vit = ViT(SIZE, IMAGE, PATCH, CLASSES, [Route(1, 3)])
    with pytest.raises(ValueError, match=repr(name)):
        Activations(vit, [name], routed)


def test_activations_come_by_name_in_the_order_asked(run_of):
    run = run_of("grid")
    names = ["routes.0.kept", "embed"]
    seen = Activations(run.network.vit, names).by_name(*(Tensor(array) for array in run.inputs))
    assert list(seen) == names
    assert np.array_equal(seen["routes.0.kept"], run.expected.kept[0])
    assert_close(seen["embed"], run.expected.embed, "embed")


def test_the_head_starts_at_zero():
    vit = ViT(SIZE, IMAGE, PATCH, CLASSES)
    assert not vit.head.weight.asnumpy().any() and not vit.head.bias.asnumpy().any()
