"""The ONNX graph in ONNX Runtime against the NumPy reference in float64, along every kind of route; no MindSpore runs here."""

import numpy as np
import pytest

from skipvit.models.sizes import Size
from skipvit.routing.routing import Route, resolve
from skipvit.routing.scorers import SCORERS
from skipvit.weights.onnx_graph import INPUT, VitGraph
from support.reference import forward
from support.weights import random_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE, PATCH, IMAGE, CLASSES, BATCH = Size(16, 5, 2), 4, 16, 7, 3
GONE = {"restore": False}
CASES = {
    "dense": [],
    "one route": [Route(2, 4, 0.45)],
    "three with fuse": [Route(1, 2, 0.7, fuse=True), Route(2, 3, 0.5, fuse=True), Route(3, 4, 0.6, fuse=True)],
    "three with fuse, gone": [Route(b, b + 1, 0.7, fuse=True, **GONE) for b in (1, 2, 3)],
    "values, inverse": [
        Route(1, 3, 0.5, "cls_attention_value", fuse=True),
        Route(3, 4, 0.6, "inverse_cls_attention", fuse=True),
    ],
    "adjacent": [Route(1, 3, 0.45), Route(3, 4, 0.6, "cls_attention_value")],
    "sampled, mixed": [Route(1, 2, 0.5, "sampled_cls_attention"), Route(3, 4, 0.6, "mixed_cls_attention", fuse=True)],
    "EViT": [Route(b, b + 1, 0.7, fuse=True, at="mlp", **GONE) for b in (1, 2, 4)],
    "MLP, back": [Route(1, 2, 0.6, at="mlp"), Route(2, 4, 0.5, fuse=True), Route(4, 5, 0.5, at="mlp", **GONE)],
    "MLP, longer": [Route(0, 2, 0.6, "cls_attention_value", at="mlp"), Route(2, 4, 0.5)],
    "after a mixed one": [Route(1, 2, 0.5, "mixed_cls_attention"), Route(2, 4, 0.4, "random", fuse=True)],
    "random": [Route(0, 2, 0.5, "random"), Route(2, 4, 0.4, "random", fuse=True)],
    "grid": [Route(0, 3, 0.4, "grid", fuse=True, **GONE), Route(3, 5, 0.5, **GONE)],
}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def both(weights, routes, images, erf=False):
    """Probabilities of ONNX Runtime and of the reference, and the reference's smallest margin of a selection."""
    rng = np.random.default_rng(3)
    spans = resolve(routes, SIZE.depth, (IMAGE // PATCH) ** 2)
    columns = sum(SCORERS[span.scorer].noise_columns(span.tokens) for span in spans)
    noise = rng.random(2 * SIZE.depth + columns).astype(np.float32)
    model = VitGraph(weights, SIZE, PATCH, IMAGE, erf, spans, noise, len(images)).model(images.dtype == np.uint8)
    onnx.checker.check_model(model, full_check=True)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {INPUT: images})
    noises = np.tile(noise, (len(images), 1))
    trace = forward(
        weights, images, noises, depth=SIZE.depth, heads=SIZE.heads, patch=PATCH, routes=routes, exact_gelu=erf
    )
    return found, softmax(trace.logits), min((margin.min() for margin in trace.margins), default=np.inf)


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_reference(name):
    weights = random_weights(*SIZE[:2], PATCH, IMAGE // PATCH, CLASSES, seed=5)
    images = np.random.default_rng(1).integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)
    found, expected, margin = both(weights, CASES[name], images)
    assert margin > 1e-4 or "random" in name or name in ("grid", "after a mixed one"), (
        "a near tie: float32 may rightly choose otherwise"
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.02  # images differ


@pytest.mark.parametrize("erf", [False, True])
def test_images_that_are_normalised_already(erf):
    weights = random_weights(*SIZE[:2], PATCH, IMAGE // PATCH, CLASSES, seed=5)
    images = np.random.default_rng(1).normal(size=(1, IMAGE, IMAGE, 3)).astype(np.float32)
    found, expected, _ = both(weights, CASES["one route"], images, erf)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scorer", ["cls_attention", "inverse_cls_attention"])
def test_of_equal_scores_the_earlier_position_wins(scorer):
    """Keys that are all zero: [CLS] attends to all alike, and which tokens are kept shows in the logits."""
    weights = random_weights(*SIZE[:2], PATCH, IMAGE // PATCH, CLASSES, seed=5)
    for part in ("weight", "bias"):
        weights[f"blocks.1.attn.k.{part}"][:] = 0
    images = np.random.default_rng(1).integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)
    found, expected, margin = both(weights, [Route(2, 4, 0.45, scorer)], images)
    assert margin == 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    _, others, _ = both(weights, [Route(2, 4, 0.45, "grid")], images)
    assert np.abs(others - expected).max() > 1e-3  # it does matter which are kept
