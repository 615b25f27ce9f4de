"""Gradients that are written out, against central differences of textbook formulas in float64 NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from skipvit.models.kernels import AddBias, Attend, AttendByHand, NormalizeRows, TanhGelu


def attention(q, k, v):
    logits = np.einsum("bhqd,bhkd->bhqk", q, k)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, weight, bias):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) * weight + bias


def plus(rows, bias):
    return rows + bias


class Weighted(nn.Cell):
    """sum(w * f(...)), and f(...)."""

    def __init__(self, function):
        super().__init__(auto_prefix=False)
        self.function = function

    def construct(self, w, *inputs):
        y = self.function(*inputs)
        return (y * w).sum(), y


# All that each gives is one tensor, so that no other result could be used whose gradient is not written out.
CASES = {
    "attention": (AttendByHand, attention, [(2, 2, 5, 4)] * 3),
    "attention by MindSpore": (Attend, attention, [(2, 2, 5, 4)] * 3),
    "gelu": (TanhGelu, gelu, [(7, 3)]),
    "layer norm": (NormalizeRows, layer_norm, [(5, 6), (6,), (6,)]),
    "bias": (AddBias, plus, [(5, 3), (3,)]),
}


@pytest.mark.parametrize("cell, textbook, shapes", CASES.values(), ids=CASES)
def test_value_and_gradient(cell, textbook, shapes):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 1.5, shape) for shape in shapes]
    w = rng.normal(size=textbook(*inputs).shape)
    positions = tuple(range(len(shapes) + 1))
    step = ms.jit(ms.value_and_grad(Weighted(cell()), positions, has_aux=True))
    (_, y), gradients = step(*(Tensor(a.astype(np.float32)) for a in (w, *inputs)))
    assert isinstance(y, Tensor)
    np.testing.assert_allclose(y.asnumpy(), textbook(*inputs), rtol=1e-5, atol=1e-5)
    for i, gradient in enumerate(gradients[1:]):
        np.testing.assert_allclose(gradient.asnumpy(), differences(textbook, inputs, i, w), rtol=1e-4, atol=1e-4)


def differences(function, inputs, i, w, step=1e-6):
    """d sum(w * function) / d inputs[i] by central differences."""
    result = np.empty(inputs[i].shape)
    for place in np.ndindex(result.shape):
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in inputs]
            moved[i][place] += sign * step
            ends.append((function(*moved) * w).sum())
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result
