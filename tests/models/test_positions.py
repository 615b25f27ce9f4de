"""Resized position embeddings against Keys' kernel written out and Pillow's BICUBIC; and within a compiled network."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

from skipvit.models.positions import resized_positions
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.spec import Route
from support.weights import drawn, load

WIDTH = 5


def positions(grid):
    return np.random.default_rng(0).normal(size=(1, 1 + grid * grid, WIDTH)).astype(np.float32)


def keys_weights(old, new):
    """Share of each of `old` samples in each of `new` ones over the same length: float64 (new, old), rows sum to 1.

    Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981), a = -1/2, as wide as a new sample where that is wider.
    Sample i lies at (i + 1/2) / count. Weights that would fall beyond the ends are spread over the row.
    """
    step = old / new
    x = np.abs((np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * step) / max(1.0, step))
    near, far = 1 - 2.5 * x**2 + 1.5 * x**3, 2 - 4 * x + 2.5 * x**2 - 0.5 * x**3
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


# 224 to 384 pixels in patches of 16, 32 to 48 in patches of 4, and smaller, by whole and by odd factors.
@pytest.mark.parametrize(
    ("old", "new"), [(14, 24), (8, 12), (24, 14), (12, 6), (16, 3), (7, 1), (1, 4), (2, 9), (5, 5)]
)
def test_patches_are_resized_by_keys_kernel_and_as_pillow_does_and_cls_stays(old, new):
    given = positions(old)
    resized = resized_positions(given, new)
    assert resized.dtype == np.float32 and resized.shape == (1, 1 + new * new, WIDTH)
    assert np.array_equal(resized[0, 0], given[0, 0])
    weights, found = keys_weights(old, new), resized[0, 1:].reshape(new, new, WIDTH)
    expected = np.einsum("io,jp,opd->ijd", weights, weights, given[0, 1:].reshape(old, old, WIDTH).astype(float))
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)
    for channel in range(WIDTH):
        image = Image.fromarray(given[0, 1:, channel].reshape(old, old))
        pillow = np.asarray(image.resize((new, new), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(found[:, :, channel], pillow, atol=2e-6, rtol=0)


def test_the_same_grid_is_the_same_to_the_last_bit_and_without_cls_all_are_resized():
    assert resized_positions(positions(6), 6).tobytes() == positions(6).tobytes()
    assert np.array_equal(
        resized_positions(positions(6)[:, 1:], 4, prefix=0), resized_positions(positions(6), 4)[:, 1:]
    )


# ---------------------------------------------------------------------------------------------------------------------
# In the graph: one set of weights for all image sizes
# ---------------------------------------------------------------------------------------------------------------------

SPEC = ViTSpec(width=16, depth=2, heads=2, patch=4, image_size=16, num_classes=7)
ROUTES = [Route(start=1, keep_ratio=0.5)]
OUTPUTS = ("embed", "routes.0.slots", "logits")


class Resized(nn.Cell):
    """At each size what a forward makes, and the gradient of its weighted embedded tokens by the position embedding."""

    def __init__(self, network, sizes):
        super().__init__(auto_prefix=False)
        programs = [compile_program(SPEC, ROUTES, image_size=size) for size in sizes]
        self.forwards = [Forward(network, program, "gather", OUTPUTS).set_train(False) for program in programs]
        self.embeds = [Embedded(forward.network) for forward in self.forwards]
        self.gradients = [ms.grad(embed, None, ms.ParameterTuple([network.pos_embed])) for embed in self.embeds]

    def construct(self, images, weights, noise):
        results = ()
        for i in range(len(images)):
            gradient = self.gradients[i](images[i], weights[i])
            results = results + ((self.forwards[i](images[i], noise), gradient[0]),)
        return results


class Embedded(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images, weights):
        return (self.network.embed(images) * weights).sum()


def test_a_forward_at_another_size_is_that_of_the_network_whose_embedding_was_resized_before():
    sizes, values, rng = (24, 8), drawn(SPEC.shapes(), 5), np.random.default_rng(1)
    network = SPEC.network()
    load(network, values)
    images = [rng.normal(size=(2, size, size, 3)).astype(np.float32) for size in sizes]
    weights = [rng.normal(size=(2, 1 + (size // 4) ** 2, 16)).astype(np.float32) for size in sizes]
    noise = Tensor(np.zeros((2, 4), np.float32))
    seen = Resized(network, sizes)(tuple(map(Tensor, images)), tuple(map(Tensor, weights)), noise)
    for size, image, weight, (found, gradient) in zip(sizes, images, weights, seen):
        other = SPEC.at_size(size)
        fitted = other.network()
        load(fitted, values | {"pos_embed": resized_positions(values["pos_embed"], size // 4)})
        expected = Forward(fitted, compile_program(other, ROUTES), "gather", OUTPUTS).by_name(image, noise.asnumpy())
        for name, value in zip(OUTPUTS, found):
            np.testing.assert_allclose(value.asnumpy(), expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        along = keys_weights(4, size // 4)
        own = np.concatenate([weight[:, :1], np.einsum("ij,bid->bjd", np.kron(along, along), weight[:, 1:])], 1)
        np.testing.assert_allclose(gradient.asnumpy(), own.sum(0, keepdims=True), rtol=1e-4, atol=1e-5)
