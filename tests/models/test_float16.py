"""A routed network with float16 products against the same in float32: forward, gradients, number formats, training."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from skipvit.engine.objectives import CrossEntropy
from skipvit.engine.optim import AdamW, learning_rates
from skipvit.engine.state import TrainingState
from skipvit.engine.step import TrainStep
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from support.graphs import exported

BATCH, CLASSES, DEPTH = 4, 7, 2
SPEC = ViTSpec(width=24, depth=DEPTH, heads=2, patch=4, image_size=16, num_classes=CLASSES)
ROUTES = [
    Route(start=0, end=1, keep_ratio=0.5, scorer="random", fuse=True),
    Route(start=1, keep_ratio=0.5, scorer="cls_attention_value", fuse=True),
]
PROGRAMS = {False: compile_program(SPEC), True: compile_program(SPEC, ROUTES, "routed")}
FLOAT, HALF = 1, 10  # MindIR's names of the number formats
# float16 rounds by up to 2^-11 of a value. A logit has some ten roundings behind it: products, biases, weights and
# inputs of two blocks, relative to values of about its own size. Most of them cancel.
TOLERANCE = 10 * 2**-11


def make_network(dtype, fused_kernels=False, seed=5):
    """Random weights, the same for all, large enough that attention is far from flat."""
    network = SPEC.network(fused_kernels, dtype)
    rng = np.random.default_rng(seed)
    for name, parameter in network.parameters_dict().items():
        scale = parameter.shape[-1] ** -0.5 if name.endswith("weight") and parameter.ndim == 2 else 0.3
        values = rng.normal(size=parameter.shape) * scale + (parameter.ndim == 1 and name.endswith("weight"))
        parameter.set_data(Tensor(values.astype(np.float32)))
    return network.set_train(False)


def make_batch(samples: int = BATCH):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (samples, 16, 16, 3)).astype(np.uint8)
    return Tensor(images), Tensor(rng.random((samples, PROGRAMS[True].noise_width)).astype(np.float32))


class Objective(nn.Cell):
    """sum(weights * logits), and all that a forward makes."""

    def __init__(self, forward):
        super().__init__(auto_prefix=False)
        self.forward, self.logits = forward, forward.outputs.index("logits")

    def construct(self, images, noise, weights):
        everything = self.forward(images, noise)
        return (ops.Cast()(everything[self.logits], ms.float32) * weights).sum(), everything


class ObjectiveAndGradients(nn.Cell):
    def __init__(self, forward):
        super().__init__(auto_prefix=False)
        parameters = ms.ParameterTuple(forward.network.trainable_params())
        self.function = ms.value_and_grad(Objective(forward), None, parameters, has_aux=True)

    def construct(self, images, noise, weights):
        return self.function(images, noise, weights)


class Compiled:
    """A network with its gradients, compiled once; runs with any parameter values."""

    def __init__(self, dtype, formulation="gather"):
        self.network, program = make_network(dtype), PROGRAMS[True]
        self.cell = ObjectiveAndGradients(Forward(self.network, program, formulation, program.makes).set_train(False))
        self.names = program.makes

    def __call__(self, values=None):
        """Values and gradients by name."""
        before = {p.name: p.asnumpy().copy() for p in self.network.trainable_params()}
        for name, value in (values or {}).items():
            ops.assign(self.network.parameters_dict()[name], Tensor(value.astype(np.float32)))
        weights = np.random.default_rng(4).normal(size=(BATCH, CLASSES)).astype(np.float32)
        (_, everything), gradients = self.cell(*make_batch(), Tensor(weights))
        for name in values or {}:
            ops.assign(self.network.parameters_dict()[name], Tensor(before[name]))
        return dict(zip(self.names, everything)), dict(zip(before, gradients))


@pytest.fixture(scope="module")
def compiled():
    cells = {}

    def get(dtype, formulation="gather"):
        key = (str(dtype), formulation)
        if key not in cells:
            cells[key] = Compiled(dtype, formulation)
        return cells[key]

    return get


def asnumpy(tensors):
    return {name: tensor.asnumpy() for name, tensor in tensors.items()}


def cosine(a, b) -> float:
    a, b = (np.concatenate([np.ravel(x[name]).astype(np.float64) for name in sorted(x)]) for x in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_logits_and_gradients_are_close_to_those_of_float32(compiled):
    (exact, exact_gradients), (half, gradients) = (compiled(dtype)() for dtype in (ms.float32, ms.float16))
    exact, half, exact_gradients, gradients = (asnumpy(x) for x in (exact, half, exact_gradients, gradients))
    for name in exact:
        if name.endswith("slots"):
            assert np.array_equal(half[name], exact[name]), name  # else it is another computation
    distance = np.abs(half["logits"] - exact["logits"]).max()
    assert 0 < distance < TOLERANCE * np.abs(exact["logits"]).max()
    assert cosine(gradients, exact_gradients) > 0.999
    assert cosine(gradients, exact_gradients) < 1 - 1e-9  # they are computed in float16
    for name in gradients:
        if not name.endswith("attn.k.bias"):  # whose gradient is zero: it shifts all logits of a row alike
            assert cosine({"": gradients[name]}, {"": exact_gradients[name]}) > 0.99, name


def test_parameters_gradients_and_the_residual_stream_are_float32(compiled):
    half = compiled(ms.float16)
    activations, gradients = half()
    assert all(p.dtype == ms.float32 for p in half.network.get_parameters())
    assert len(gradients) == len(half.network.trainable_params())
    assert all(gradient.dtype == ms.float32 for gradient in gradients.values())
    for name in ("embed", *(f"blocks.{i}" for i in range(DEPTH)), "norm"):
        values = activations[name].asnumpy()
        assert values.dtype == np.float32, name
        assert not np.array_equal(values, values.astype(np.float16)), name  # nor rounded on the way


def test_gather_and_matmul_formulations_agree(compiled):
    (a, a_gradients), (b, b_gradients) = (compiled(ms.float16, name)() for name in ("gather", "matmul"))
    for name in a:
        assert np.array_equal(a[name].asnumpy(), b[name].asnumpy()), name
    for name, gradient in a_gradients.items():  # sums of the same numbers in another order
        assert np.allclose(gradient.asnumpy(), b_gradients[name].asnumpy(), rtol=1e-2, atol=1e-3), name


def test_values_beyond_float16_inside_norm_softmax_and_gelu(compiled):
    """Squares of these tokens and hidden values, and exponentials of these attention logits, are over 65504."""
    parameters = {p.name: p.asnumpy() for p in compiled(ms.float32).network.trainable_params()}
    values = {"pos_embed": 1000 * parameters["pos_embed"]}
    for i in range(DEPTH):
        values[f"blocks.{i}.mlp.fc1.bias"] = 5000 * parameters[f"blocks.{i}.mlp.fc1.bias"]
        for part in "qk":  # q . k / sqrt(12) is about 12 * 100^2 / sqrt(12) = 34600 for all pairs
            values[f"blocks.{i}.attn.{part}.bias"] = parameters[f"blocks.{i}.attn.{part}.bias"] + 100
    (exact, _), (half, gradients) = (compiled(dtype)(values) for dtype in (ms.float32, ms.float16))
    assert max(np.abs(exact[f"blocks.{i}"].asnumpy()).max() for i in range(DEPTH)) > 256  # the square is too large
    for name in half:
        assert np.isfinite(half[name].asnumpy()).all(), name
    for name in gradients:
        assert np.isfinite(gradients[name].asnumpy()).all(), name
    # A square that overflows in the GELU gives a slope that is no number; in the norm, rows of zeros.
    rows = (half["norm"].asnumpy() - parameters["norm.bias"]) / parameters["norm.weight"]
    assert np.allclose(rows.std(-1), 1, atol=1e-3)


@pytest.mark.parametrize("fused_kernels", [False, True])
def test_number_formats_in_the_graph(fused_kernels):
    """Products are float16, layer norm and softmax float32."""
    forward = Forward(make_network(ms.float16, fused_kernels), PROGRAMS[False]).set_train(False)
    model = exported(forward, *(tensor.asnumpy() for tensor in make_batch()))
    formats = {}
    for node in model.graph.node:
        kind = node.op_type.split("::")[-1].split(":")[0]
        for attribute in node.attribute:
            if attribute.name == "shape" and attribute.tensors:
                formats.setdefault(kind, []).append(attribute.tensors[0].data_type)
    norms = 2 * DEPTH + 1
    assert formats["MatMul"].count(HALF) == 2 + 6 * DEPTH  # patches, head; q, k, v, proj, fc1, fc2
    assert formats["MatMul"].count(FLOAT) == (0 if fused_kernels else norms)  # deviation times weight
    assert formats["BatchMatMul"] == [HALF] * (2 * DEPTH)
    assert formats["Softmax"] == [FLOAT] * DEPTH
    if fused_kernels:
        assert formats["TupleGetItem"] == [FLOAT] * norms  # the first of a layer norm's three results
        assert formats["Add"] == [FLOAT] * norms  # the position embedding and the residual branches
    else:
        assert formats["Rsqrt"] == [FLOAT] * norms
        assert formats["Sigmoid"] == [FLOAT] * DEPTH


def train(dtype, loss_scale):
    """Twenty routed steps on one batch: the reports, by column."""
    network = make_network(dtype)
    optimizer = AdamW(network.trainable_params(), learning_rates(20, 2, 2e-3, 1e-3), 0.9, 0.999, 1e-8, 0.05)
    state = TrainingState(optimizer.parameters, loss_scale=loss_scale)
    step = TrainStep(CrossEntropy(Forward(network, PROGRAMS[True]), 0.1), optimizer, state, 1.0).set_train()
    images, noise = make_batch(8)
    batch = images, Tensor(np.arange(8, dtype=np.int32) % CLASSES), noise, Tensor(np.zeros(6, np.float32))
    first = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    reports, skipped_changed = [], False
    for _ in range(30):
        reports.append(step(*batch).asnumpy())
        if reports[-1][5]:  # an overflow
            skipped_changed |= any(not np.array_equal(first[p.name], p.asnumpy()) for p in optimizer.get_parameters())
        if int(optimizer.step.asnumpy()) == 20:
            break
    return np.array(reports), skipped_changed


def test_training_with_a_dynamic_scale_lowers_the_loss_as_float32_does():
    """The scale begins far too high: the first updates are skipped until the gradients fit."""
    exact, _ = train(ms.float32, None)
    half, changed = train(ms.float16, 2.0**24)
    skipped = int(half[-1, 4])
    assert 0 < skipped < 12 and not changed
    assert (half[:skipped, 5] == np.arange(1, skipped + 1)).all() and (half[skipped:, 5] == 0).all()
    assert (half[skipped:, 3] == 2.0 ** (24 - skipped)).all()
    assert len(exact) == 20 and len(half) == 20 + skipped
    assert exact[-1, 0] < exact[0, 0] / 2
    # Step for step, to 2 % of the first loss.
    assert np.abs(half[skipped:, 0] - exact[:, 0]).max() < 0.02 * exact[0, 0]
