"""Pyramid Vision Transformers: numbers against published ones; forwards and gradients against NumPy's, dense and along
routes."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from skipvit.models.arithmetic import forward_macs, forward_parts, training_macs
from skipvit.models.pvt_spec import PVTSpec
from skipvit.models.registry import model_spec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from support.gradients import assert_equal_to_numpy, with_weights_that_count
from support.pvt import PVT

V2 = PVTSpec((1, 3, 1), (1, 2, 2), 2, 32, 0.0, (8, 12, 16), (2, 2, 1), (4, 2, 1), 2, False, 5)
SPECS = {"v1": replace(V2, version=1), "v2": V2}

PUBLISHED = [
    ("pvt_tiny", 13.23, 1.933), ("pvt_small", 24.49, 3.816), ("pvt_medium", 44.21, 6.659), ("pvt_large", 61.37, 9.814),
    ("pvt_v2_b0", 3.67, 0.566), ("pvt_v2_b1", 14.01, 2.108), ("pvt_v2_b2", 25.36, 4.027),
    ("pvt_v2_b2_li", 22.55, 3.889), ("pvt_v2_b3", 45.24, 6.897), ("pvt_v2_b4", 62.56, 10.101),
    ("pvt_v2_b5", 81.96, 11.717),
]  # fmt: skip


@pytest.mark.parametrize("name, millions, gmacs", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name, millions, gmacs):
    spec = model_spec(name)
    assert round(spec.parameters() / 1e6, 2) == millions
    assert round(forward_macs(spec, compile_program(spec)) / 1e9, 3) == gmacs


@pytest.mark.parametrize(
    "name, blocks, gain",
    [("pvt_medium", 16, 1.465), ("pvt_v2_b3", 16, 1.443), ("pvt_small", 4, 1.161), ("pvt_v2_b2", 4, 1.152)],
)
def test_ideal_gains_of_routes_in_the_third_stage(name, blocks, gain):
    spec = model_spec(name)
    route = Route(start=1, end=1 + blocks, keep_ratio=0.45, scorer="magnitude")
    routed = compile_program(spec, [route], "routed")
    canvas = forward_parts(spec, routed).get("depthwise convolution", 0)  # goes over the places of all tokens
    assert canvas == forward_parts(spec, compile_program(spec)).get("depthwise convolution", 0)
    assert training_macs(spec, compile_program(spec)) / training_macs(spec, routed) == pytest.approx(gain, abs=1e-3)
    (select,) = routed.selections
    assert (select.before.patches, select.after.patches, select.cells.unit) == (196, 88, 4)


@pytest.mark.parametrize("spec", [*SPECS.values(), model_spec("pvt_v2_b2_li", num_classes=7)], ids=[*SPECS, "linear"])
def test_shapes_are_those_of_the_cell_and_weights_go_to_the_published_layout_and_back(spec):
    with no_init_parameters():
        network = spec.network()
    assert [(p.name, p.shape) for p in network.trainable_params()] == list(spec.shapes().items())
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in spec.shapes().items()}
    theirs = spec.to_timm(arrays)
    assert {name: value.shape for name, value in theirs.items()} == spec.timm_shapes()
    back = spec.from_timm(theirs)
    assert set(back) == set(arrays) and all(np.array_equal(back[name], arrays[name]) for name in arrays)
    other = replace(spec, depths=(1,) * len(spec.depths), num_classes=2, widths=tuple(8 * h for h in spec.heads))
    assert other.like(spec.shapes()) == other.like(spec.timm_shapes()) == spec


ROUTES = {
    "dense": [],
    "received": [{"start": 1, "end": 3, "keep_ratio": 0.45, "scorer": "attention_received"}],
    "change": [{"start": 1, "end": 2, "keep_ratio": 0.6, "scorer": "change"}],
    "from the stage's first block": [{"start": 0, "end": 3, "keep_ratio": 0.3, "scorer": "magnitude"}],
}
MARKS = {("v2", "received"): []} | {("v1", name): [pytest.mark.slow, pytest.mark.long] for name in list(ROUTES)[2:]}


@pytest.fixture(scope="module")
def networks():
    return {name: with_weights_that_count(spec) for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "version, name",
    [
        pytest.param(version, name, marks=MARKS.get((version, name), [pytest.mark.slow]))
        for version in SPECS
        for name in ROUTES
    ],
)
def test_logits_kept_tokens_and_gradients_are_those_of_numpy(networks, images, version, name):
    spec, routes = SPECS[version], ROUTES[name]
    program = compile_program(spec, [Route(**route) for route in routes], "routed")
    first = spec.depths[0]
    planned = [(first + r["start"], first + r["end"], r["keep_ratio"], r["scorer"]) for r in routes]

    def reference(params):
        return PVT(spec, params).forward(images, planned)

    formulations = ("gather", "matmul") if name != "dense" else ("gather",)
    assert_equal_to_numpy(networks[version], program, images, reference, list(ROUTES).index(name) % 3, formulations)


@pytest.mark.slow
@pytest.mark.parametrize("version", SPECS)
def test_a_route_that_keeps_everything_is_the_dense_network_bit_for_bit(networks, images, version):
    spec, route = SPECS[version], Route(start=1, end=3, keep_ratio=1.0, scorer="magnitude")
    dense = Forward(networks[version], compile_program(spec))(Tensor(images)).asnumpy()
    whole = Forward(networks[version], compile_program(spec, [route], "routed"))(Tensor(images)).asnumpy()
    assert np.array_equal(dense, whole)
