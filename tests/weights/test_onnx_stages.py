"""Swin and PVT as ONNX graphs, dense and along routes, in ONNX Runtime against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from skipvit.models.pvt_spec import PVTSpec
from skipvit.models.swin_spec import SwinSpec
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from skipvit.weights.onnx import INPUT, model_of
from support.pvt import PVT
from support.swin import Swin

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SWIN = SwinSpec((1, 3, 1), (1, 2, 4), 2, 24, 0.0, 8, 3, 5)
V2 = PVTSpec((1, 3, 1), (1, 2, 2), 2, 32, 0.0, (8, 12, 16), (2, 2, 1), (4, 2, 1), 2, False, 5)
SPECS = {"swin": SWIN, "v1": replace(V2, version=1), "v2": V2}
ROUTES = {
    "dense": [],
    "received": [{"start": 1, "end": 3, "keep_ratio": 0.45, "scorer": "attention_received"}],
    "change": [{"start": 1, "end": 2, "keep_ratio": 0.6, "scorer": "change"}],
    "from the first block": [{"start": 0, "end": 3, "keep_ratio": 0.3, "scorer": "magnitude"}],
}


def drawn(spec):
    rng, weights = np.random.default_rng(3), {}
    for name, shape in spec.shapes().items():
        spread = 0.3 if len(shape) == 1 else 1.0 if "bias_table" in name else 1.5 / np.sqrt(np.prod(shape[1:]))
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[name] = (middle + rng.normal(size=shape) * spread).astype(np.float32)
    return weights


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", ROUTES)
def test_probabilities_are_those_of_numpy(kind, name):
    spec, routes = SPECS[kind], ROUTES[name]
    weights, first = drawn(spec), spec.depths[0]
    images = np.random.default_rng(4).normal(size=(2, spec.image_size, spec.image_size, 3)).astype(np.float32)
    planned = [(first + r["start"], first + r["end"], r["keep_ratio"], r["scorer"]) for r in routes]
    params = {key: value.astype(np.float64) for key, value in weights.items()}
    if kind == "swin":
        model = Swin(spec, params)
        planned = [(*route, "block") for route in planned]
    else:
        model = PVT(spec, params)
    program = compile_program(spec, [Route(**route) for route in routes], "routed")
    made = model_of(spec, program, weights, np.zeros(program.noise_width, np.float32), 2, False)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {INPUT: images})[0]
    expected = softmax(model.forward(images, planned)[0], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # images differ
