"""Swin Transformers: numbers against published ones; windows, forwards and gradients against NumPy's, dense and along
routes."""

import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from skipvit.models import windows
from skipvit.models.arithmetic import forward_macs, forward_parts, training_macs
from skipvit.models.registry import model_spec
from skipvit.models.swin_spec import SwinSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from support.gradients import assert_equal_to_numpy, with_weights_that_count
from support.swin import Swin

# Windows of 3 shift by 1: cells of 1, 2, 2 and 4; stages of 12, 6 and 3 tokens a side.
SMALL = SwinSpec((1, 3, 1), (1, 2, 4), 2, 24, 0.0, 8, 3, 5)
BATCH = 2


@pytest.mark.parametrize(
    "size, parameters, gmacs", [("tiny", 28_288_354, 4.491), ("small", 49_606_258, 8.741), ("base", 87_768_224, 15.431)]
)
def test_parameters_and_macs_are_the_published_ones(size, parameters, gmacs):
    spec = model_spec(f"swin_{size}_patch4_window7_224")
    assert spec.parameters() == parameters
    assert forward_macs(spec, compile_program(spec)) / 1e9 == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize("size, blocks, gain", [("small", 14, 1.461), ("tiny", 4, 1.213), ("base", 14, 1.461)])
def test_ideal_gains_of_routes_in_the_third_stage(size, blocks, gain):
    spec = model_spec(f"swin_{size}_patch4_window7_224")
    route = Route(start=1, end=1 + blocks, keep_ratio=0.45, scorer="magnitude")
    dense, routed = compile_program(spec), compile_program(spec, [route], "routed")
    biases = 2 * forward_parts(spec, routed)["biases of kept tokens"]
    assert training_macs(spec, dense) / (training_macs(spec, routed) - biases) == pytest.approx(gain, abs=1e-3)
    assert 0.002 < biases / training_macs(spec, routed) < 0.015
    (select,) = routed.selections
    assert (select.before.patches, select.after.patches, select.counts) == (196, 88, (4, 5, 6, 7) * 4)


def test_shapes_are_those_of_the_cell_in_its_order():
    with no_init_parameters():
        network = SMALL.network()
    assert [(p.name, p.shape) for p in network.trainable_params()] == list(SMALL.shapes().items())
    assert SMALL.parameters() == sum(p.size for p in network.get_parameters())


def test_weights_go_to_timms_layout_and_back_bit_by_bit():
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SMALL.shapes().items()}
    theirs = SMALL.to_timm(arrays)
    assert {name: value.shape for name, value in theirs.items()} == SMALL.timm_shapes()
    assert {"layers.1.downsample.reduction.weight", "layers.1.blocks.2.attn.qkv.bias", "head.fc.weight"} < set(theirs)
    back = SMALL.from_timm(theirs)
    assert set(back) == set(arrays) and all(np.array_equal(back[name], arrays[name]) for name in arrays)
    other = SwinSpec((1, 1, 1), (1, 1, 1), 2, 24, 0.0, 4, 3, 2)
    assert other.like(SMALL.shapes()) == other.like(SMALL.timm_shapes()) == SMALL


@pytest.mark.parametrize("grid, window", [(14, 7), (56, 7), (12, 3), (6, 3), (8, 4), (7, 7), (10, 5)])
def test_windows_are_permutations_that_share_the_same_cells(grid, window):
    order, shift = windows.order(grid, window), windows.shift_of(grid, window)
    y, x = order // grid, order % grid
    assert sorted(order) == list(range(grid * grid))
    plain = (y // window) * grid + x // window
    assert all(len(set(part)) == 1 for part in plain.reshape(-1, window**2))
    if not shift:
        return
    found = windows.shifted(grid, window)
    assert np.array_equal(found.index[found.inverse], np.arange(grid * grid))
    y, x = (y[found.index] - shift) % grid, (x[found.index] - shift) % grid
    moved = (y // window) * grid + x // window
    assert all(len(set(part)) == 1 for part in moved.reshape(-1, window**2))
    sizes = windows.cell_sizes(grid, window)
    assert sizes[:4] == (shift**2, shift * (window - shift), shift * (window - shift), (window - shift) ** 2)


ROUTES = {
    "dense": [],
    "received": [{"start": 1, "end": 3, "keep_ratio": 0.45, "scorer": "attention_received"}],
    "change": [{"start": 1, "end": 2, "keep_ratio": 0.6, "scorer": "change"}],
    "from the stage's first block": [{"start": 0, "end": 3, "keep_ratio": 0.3, "scorer": "magnitude"}],
    "MLP only": [{"start": 1, "end": 2, "keep_ratio": 0.5, "scorer": "attention_received", "at": "mlp"}],
}
QUICK = ("received",)


@pytest.fixture(scope="module")
def network():
    return with_weights_that_count(SMALL)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(4).normal(size=(BATCH, 24, 24, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ROUTES]
)
def test_logits_kept_tokens_and_gradients_are_those_of_numpy(network, images, name):
    routes, first = ROUTES[name], SMALL.depths[0]
    program = compile_program(SMALL, [Route(**route) for route in routes], "routed")
    planned = [
        (first + r["start"], first + r["end"], r["keep_ratio"], r["scorer"], r.get("at", "block")) for r in routes
    ]

    def reference(params):
        return Swin(SMALL, params).forward(images, planned)

    formulations = ("gather", "matmul") if routes else ("gather",)
    assert_equal_to_numpy(network, program, images, reference, list(ROUTES).index(name) % 3, formulations)


@pytest.mark.slow
def test_a_route_that_keeps_everything_is_the_dense_network_bit_for_bit(network, images):
    route = Route(start=1, end=3, keep_ratio=1.0, scorer="magnitude")
    dense = Forward(network, compile_program(SMALL))(Tensor(images)).asnumpy()
    whole = Forward(network, compile_program(SMALL, [route], "routed"))(Tensor(images)).asnumpy()
    assert np.array_equal(dense, whole)
