"""The ONNX graph in ONNX Runtime against the NumPy reference in float64, along every kind of route."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from skipvit.models.vit_onnx import ViTGraph
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.program import compile_program
from skipvit.routing.scorers import SCORERS, register_scorer
from skipvit.routing.spec import Route
from skipvit.util.errors import UsageError
from skipvit.weights.onnx import INPUT, model_of
from support.reference import forward
from support.weights import drawn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES, BATCH = 16, 5, 2, 4, 16, 7, 3
SPEC = ViTSpec(WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES)


def route(start, end=None, keep_ratio=0.45, scorer="cls_attention", **others):
    return Route(start=start, end=end, keep_ratio=keep_ratio, scorer=scorer, **others)


CASES = {
    "dense": [],
    "one route": [route(2, 4)],
    "three with fuse": [route(b, b + 1, 0.6, fuse=True) for b in (1, 2, 3)],
    "three with fuse, gone": [route(b, b + 1, 0.7, fuse=True, restore=False) for b in (1, 2, 3)],
    "values, inverse": [
        route(1, 3, 0.5, "cls_attention_value", fuse=True),
        route(3, 4, 0.6, "inverse_cls_attention", fuse=True),
    ],
    "received": [route(1, 3, 0.5, "attention_received", fuse=True), route(3, 4, 0.6, "attention_received")],
    "adjacent": [route(1, 3), route(3, 4, 0.6, "cls_attention_value")],
    "sampled, mixed": [route(1, 2, 0.5, "sampled_cls_attention"), route(3, 4, 0.6, "mixed_cls_attention", fuse=True)],
    "EViT": [route(b, b + 1, 0.7, fuse=True, at="mlp", restore=False) for b in (1, 2, 4)],
    "MLP, back": [route(1, 2, 0.6, at="mlp"), route(2, 4, 0.5, fuse=True), route(4, None, 0.5, at="mlp")],
    "MLP, longer": [route(0, 2, 0.6, "cls_attention_value", at="mlp"), route(2, 4, 0.5)],
    "after a mixed one": [route(1, 2, 0.5, "mixed_cls_attention"), route(2, 4, 0.4, "random", fuse=True)],
    "random": [route(0, 2, 0.5, "random"), route(2, 4, 0.4, "random", fuse=True)],
    "grid": [route(0, 3, 0.4, "grid", fuse=True, restore=False), route(3, None, 0.5)],
}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def runtime(spec, weights, routes, images, image_size=None):
    """Probabilities of ONNX Runtime, and the noise that random routes drew from."""
    program = compile_program(spec, routes, image_size=image_size)
    noise = np.random.default_rng(3).random(program.noise_width).astype(np.float32)
    model = model_of(spec, program, weights, noise, len(images), images.dtype == np.uint8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: images})[0], np.tile(noise, (len(images), 1))


def both(weights, routes, images, gelu="tanh"):
    """Probabilities of ONNX Runtime and of the reference, and the reference's smallest margin of a selection."""
    found, noise = runtime(ViTSpec(WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES, gelu=gelu), weights, routes, images)
    trace = forward(
        weights, images, noise, depth=DEPTH, heads=HEADS, patch=PATCH, routes=routes, exact_gelu=gelu == "erf"
    )
    return found, softmax(trace.logits), min((margin.min() for margin in trace.margins), default=np.inf)


@pytest.fixture
def weights():
    return drawn(SPEC.shapes(), seed=5)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_reference(name, weights, images):
    found, expected, margin = both(weights, CASES[name], images)
    drawn_or_placed = "random" in name or name in ("grid", "after a mixed one")
    assert margin > 1e-4 or drawn_or_placed, "a near tie: float32 may rightly choose otherwise"
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.02  # images differ


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_images_that_are_normalised_already(gelu, weights):
    images = np.random.default_rng(1).normal(size=(1, IMAGE, IMAGE, 3)).astype(np.float32)
    found, expected, _ = both(weights, CASES["one route"], images, gelu)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scorer", ["cls_attention", "inverse_cls_attention"])
def test_of_equal_scores_the_earlier_position_wins(scorer, weights, images):
    """Keys that are all zero: [CLS] attends to all alike, and which tokens are kept shows in the logits."""
    for part in ("weight", "bias"):
        weights[f"blocks.1.attn.k.{part}"][:] = 0
    found, expected, margin = both(weights, [route(2, 4, 0.45, scorer)], images)
    assert margin == 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    _, others, _ = both(weights, [route(2, 4, 0.45, "grid")], images)
    assert np.abs(others - expected).max() > 1e-3  # it does matter which are kept


def test_a_forward_on_other_images_has_their_positions(weights):
    """The position embedding resized by Pillow, four patches a side to six."""
    images = np.random.default_rng(1).integers(0, 256, (2, 24, 24, 3), np.uint8)
    found, noise = runtime(SPEC, weights, CASES["one route"], images, image_size=24)
    positions = weights["pos_embed"][0]
    planes = [Image.fromarray(plane) for plane in positions[1:].reshape(4, 4, WIDTH).transpose(2, 0, 1)]
    resized = np.stack([np.asarray(plane.resize((6, 6), Image.Resampling.BICUBIC)) for plane in planes], -1)
    larger = weights | {"pos_embed": np.concatenate([positions[:1], resized.reshape(36, WIDTH)])[None]}
    logits = forward(larger, images, noise, depth=DEPTH, heads=HEADS, patch=PATCH, routes=CASES["one route"]).logits
    np.testing.assert_allclose(found, softmax(logits), atol=1e-5)


# A backbone and a scorer of somebody else's, in their own file.


class PooledGraph(ViTGraph):
    """The head reads the mean of the patches."""

    def classify(self, x):
        return self.dense("head", self.op("ReduceMean", x, axes=[1], keepdims=0))


@dataclass(frozen=True)
class PooledSpec(ViTSpec):
    """A ViT without [CLS]."""

    prefix: int = 0

    def graph(self, builder):
        return PooledGraph(self, builder)


@pytest.fixture
def key_norm():
    """A scorer with a parameter: patches with large keys stay, each key's norm to a power."""

    def onnx(graph, step, signals, noise):
        norm = graph.op("ReduceMean", graph.op("ReduceL2", signals["k"], axes=[-1], keepdims=0), axes=[1], keepdims=0)
        ranking = graph.op("Pow", norm, np.float32(step.knobs["power"]))
        return ranking, ranking

    register_scorer("key_norm", reads=("k",), knobs={"power": (1.0, -4, 4)}, onnx=onnx)(lambda *_: None)
    yield "key_norm"
    del SCORERS["key_norm"]


def test_a_backbone_without_cls_and_a_scorer_of_ones_own(key_norm, images):
    spec = PooledSpec(WIDTH, 3, HEADS, PATCH, IMAGE, CLASSES)
    weights = drawn(spec.shapes(), seed=5)
    found, _ = runtime(spec, weights, [route(1, 2, 0.5, key_norm, power=-1.0, fuse=True)], images)
    p = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def heads(x, name):
        return dense(x, name).reshape(-1, HEADS, WIDTH // HEADS).transpose(1, 0, 2)

    def block(i, x):
        y = norm(x, f"blocks.{i}.norm1")
        q, k, v = (heads(y, f"blocks.{i}.attn.{part}") for part in "qkv")
        mixed = softmax(q @ k.transpose(0, 2, 1) / (WIDTH // HEADS) ** 0.5) @ v
        x = x + dense(mixed.transpose(1, 0, 2).reshape(-1, WIDTH), f"blocks.{i}.attn.proj")
        hidden = dense(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        tanh = np.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3))
        return x + dense(0.5 * hidden * (1 + tanh), f"blocks.{i}.mlp.fc2"), np.linalg.norm(k, axis=2).mean(0)

    for image, probabilities in zip(images, found):
        pixels = (image - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
        cells = pixels.reshape(4, PATCH, 4, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
        x, keys = block(0, dense(cells, "patch_embed.proj") + p["pos_embed"][0])
        score = 1 / keys
        kept = np.sort(np.argsort(-score)[:8])
        gone = np.setdiff1d(np.arange(16), kept)
        fused = (score[gone] / score[gone].sum()) @ x[gone]
        inside, _ = block(1, np.concatenate([x[kept], fused[None]]))
        x[kept] = inside[:8]
        x, _ = block(2, x)
        np.testing.assert_allclose(probabilities, softmax(dense(norm(x, "norm").mean(0), "head")), atol=1e-5)


def test_a_scorer_that_is_not_written_for_onnx_is_refused_by_its_name(weights, images, key_norm):
    register_scorer(key_norm, reads=("k",))(lambda *_: None)
    with pytest.raises(UsageError, match="scorer key_norm is not written for ONNX"):
        runtime(SPEC, weights, [route(2, 4, scorer=key_norm)], images)
