"""The Vision Transformer as numbers (names, shapes, counts) against its cell and published figures; its layer norm.

What it computes is checked in tests/routing/test_forward.py.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from skipvit.models.layers import LayerNorm
from skipvit.models.registry import MODELS, list_models, model_spec, register_model
from skipvit.models.vit_spec import ViTSpec

# The parameters that DeiT (arXiv 2012.12877) and timm publish for patch 16, 224 pixels and 1000 classes.
PUBLISHED = {"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656, "large": 304_326_632}


def by_formula(width, depth, tokens, patch, classes):
    """Weights and biases of every part of a ViT with an MLP four times as wide."""
    dense = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
    block = sum((inputs + 1) * outputs for inputs, outputs in dense.values()) + 2 * 2 * width
    embedding = (3 * patch**2 + 1) * width + width + (tokens + 1) * width
    return embedding + depth * block + 2 * width + (width + 1) * classes


@pytest.mark.parametrize("size, published", PUBLISHED.items())
def test_parameters_are_as_many_as_published(size, published):
    assert model_spec(f"vit_{size}_patch16_224").parameters() == published


@pytest.mark.parametrize("spec", [ViTSpec(16, 3, 2, 8, 32, 10), ViTSpec(24, 1, 3, 4, 20, 7)])
def test_shapes_are_those_of_the_cell_in_its_order_and_counted_by_the_formula(spec):
    with no_init_parameters():
        network = spec.network()
    assert {p.name: p.shape for p in network.get_parameters()} == spec.shapes()
    assert [p.name for p in network.trainable_params()] == list(spec.shapes())
    expected = by_formula(spec.width, spec.depth, spec.grid() ** 2, spec.patch, spec.num_classes)
    assert spec.parameters() == expected == sum(p.size for p in network.get_parameters())


def test_every_name_says_patch_and_size_and_sizes_have_heads_of_64_and_a_known_width_and_depth():
    """Table 1 of DeiT and of ViT."""
    known = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}
    names = [name for name in list_models() if name.startswith("vit_")]
    assert len(names) >= 13
    for name in names:
        _, size, patch, image_size = name.split("_")
        spec = model_spec(name)
        assert (spec.width, spec.depth) == known[size] and spec.width == 64 * spec.heads
        assert (f"patch{spec.patch}", str(spec.image_size), spec.num_classes) == (patch, image_size, 1000)


def test_overrides_and_what_is_left_open():
    spec = model_spec("vit_tiny_patch16_224", width=16, heads=2, depth=None, gelu="erf", num_classes=5, drop_path=0.1)
    assert spec == ViTSpec(16, 12, 2, 16, 224, 5, 0.1, "erf")
    assert spec.at_size(32) == ViTSpec(16, 12, 2, 16, 32, 5, 0.1, "erf")


REFUSED = [
    (
        "vit_tinny_patch16_224",
        {},
        "model.name: 'vit_tinny_patch16_224' is not a model; did you mean vit_tiny_patch16_224?",
    ),
    ("resnet", {}, "model.name: 'resnet' is not a model; there are "),
    ("vit_tiny_patch16_224", {"patch": 15}, "model.patch: 15 does not divide image_size 224"),
    ("vit_tiny_patch16_224", {"heads": 5}, "model.heads: 5 does not divide the width 192"),
    ("own", {"patch": 8}, "model.patch: own has none; leave it out"),
]


@pytest.mark.parametrize("name, overrides, message", REFUSED)
def test_a_network_that_cannot_be_is_refused_in_one_line(monkeypatch, name, overrides, message):
    list_models()
    monkeypatch.setitem(MODELS, "own", lambda image_size=32, num_classes=10, drop_path=0.0: None)
    with pytest.raises(ValueError) as refusal:
        model_spec(name, **overrides)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_model_of_ones_own_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr("skipvit.models.registry.MODELS", dict(MODELS))

    @register_model("own")
    def own(**overrides):
        return ViTSpec(**({"width": 16, "depth": 2, "heads": 2} | overrides))

    assert "own" in list_models() and model_spec("own", image_size=32) == ViTSpec(16, 2, 2, image_size=32)


def test_what_is_drawn_at_the_start():
    """Zeros for head, [CLS], biases; ones for norms; Xavier for matrices; the deviation of the position embedding."""
    np.random.seed(0)
    for parameter in ViTSpec(64, 2, 2, 4, 32, 7).network().get_parameters():
        name, value = parameter.name, parameter.asnumpy()
        if name == "pos_embed":
            assert abs(value.std() * 8 - 1) < 0.05
        elif "norm" in name and name.endswith("weight"):
            assert (value == 1).all()
        elif name == "cls_token" or name.endswith("bias") or name.startswith("head."):
            assert not value.any(), name
        elif name.startswith("blocks."):
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.95 * bound < np.abs(value).max() <= bound and abs(value.mean()) < 0.05 * bound, name


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
