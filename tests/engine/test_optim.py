"""AdamW and its schedule against NumPy."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from skipvit.config.config import Config
from skipvit.engine.optim import AdamW, decays, layer_multipliers, learning_rates


def test_learning_rates_follow_the_formula():
    rates = learning_rates(steps=100, warmup_steps=10, peak=2e-3, final=1e-5)
    assert len(rates) == 100
    for t in range(10):
        assert np.isclose(rates[t], 2e-3 * (t + 1) / 10)
    for t in range(10, 100):
        expected = 1e-5 + (2e-3 - 1e-5) * (1 + np.cos(np.pi * (t - 10) / 89)) / 2
        assert np.isclose(rates[t], expected)
    assert np.isclose(rates[-1], 1e-5)


def test_learning_rates_without_warmup_and_with_nothing_but_warmup():
    assert np.isclose(learning_rates(5, 0, 1e-3, 1e-5)[0], 1e-3)
    assert np.allclose(learning_rates(4, 4, 1.0, 0.0), [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("multipliers", [None, (0.3, 1.0, 0.05)])
def test_adamw_matches_numpy_over_20_steps_and_decays_matrices_only(multipliers):
    """Reference: Algorithm 2 of arXiv 1711.05101, in float64, each parameter with a rate of its own. The schedule ends after 15 steps:
    the last rate holds."""
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(5, 4)), "bias": rng.normal(size=4), "cls_token": rng.normal(size=(1, 1, 4))}
    parameters = [Parameter(Tensor(value, ms.float32), name=name) for name, value in start.items()]
    rates = learning_rates(15, 4, 1e-2, 1e-4)
    optimizer = AdamW(parameters, rates, beta1=0.9, beta2=0.95, epsilon=1e-6, weight_decay=0.1, multipliers=multipliers)
    own = dict(zip(start, multipliers or (1, 1, 1)))
    expected = {name: value.copy() for name, value in start.items()}
    m = {name: np.zeros_like(value) for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in start.items()}
    for t in range(1, 21):
        gradients = {name: rng.normal(size=value.shape) * 10.0 ** rng.integers(-4, 1) for name, value in start.items()}
        scale = rng.uniform(0.1, 1)
        tensors = ms.mutable(
            tuple(Tensor(g, ms.float32) for g in gradients.values())
        )  # else a constant: compiled each time
        used = optimizer(tensors, Tensor(scale, ms.float32))
        rate = rates[min(t - 1, 14)]
        assert np.isclose(float(used.asnumpy()), rate)
        for name, g in gradients.items():
            g = g * scale
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            if name == "matrix":
                expected[name] *= 1 - rate * own[name] * 0.1
            m_hat, v_hat = m[name] / (1 - 0.9 ** min(t, 15)), v[name] / (1 - 0.95 ** min(t, 15))
            expected[name] -= rate * own[name] * m_hat / (np.sqrt(v_hat) + 1e-6)
    for p in parameters:
        assert np.allclose(p.asnumpy(), expected[p.name], rtol=2e-5, atol=2e-6), p.name
    assert int(optimizer.step.asnumpy()) == 20


def test_layers_learn_slower_the_lower_they_are():
    """MAE's fine-tuning of a ViT-B (arXiv 2111.06377, 0.65 a layer): layer k of 13 has 0.65 ** (13 - k), the head and the last norm 1."""
    layers = {
        "cls_token": 0,
        "pos_embed": 0,
        "patch_embed.proj.weight": 0,
        "blocks.0.attn.q.bias": 1,
        "blocks.3.norm1.weight": 4,
        "blocks.11.mlp.fc2.weight": 12,
        "norm.weight": 13,
        "head.weight": 13,
        "head.bias": 13,
    }
    expected = [0.65**13, 0.65**13, 0.65**13, 0.65**12, 0.65**9, 0.65, 1, 1, 1]
    assert np.allclose(layer_multipliers(layers, 12, 0.65), expected, rtol=1e-12)
    assert set(layer_multipliers(layers, 12, 1.0)) == {1.0}


def test_a_run_of_equal_layers_has_no_trace_of_multipliers():
    parameter = Parameter(Tensor(np.zeros((2, 2)), ms.float32), name="blocks.0.attn.q.weight")
    rates = learning_rates(5, 0, 1e-3, 1e-5)
    assert AdamW([parameter], rates, 0.9, 0.99, 1e-8, 0.1, (1.0,)).multipliers is None
    assert AdamW([parameter], rates, 0.9, 0.99, 1e-8, 0.1, (0.5,)).multipliers == (0.5,)


def test_decay_spares_biases_norms_cls_and_position():
    shapes = {"blocks.0.norm1.weight": (8,), "head.bias": (8,), "cls_token": (1, 1, 8), "pos_embed": (1, 5, 8)}
    assert not any(decays(Parameter(Tensor(np.zeros(shape, np.float32)), name=name)) for name, shape in shapes.items())
    assert decays(Parameter(Tensor(np.zeros((8, 8), np.float32)), name="blocks.0.attn.q.weight"))


@pytest.mark.parametrize(
    "devices, batch, accumulate, reference", [(1, 128, 1, None), (8, 128, 2, 512), (1, 64, 1, 1024)]
)
def test_every_rate_of_a_run_follows_the_linear_scaling_rule(devices, batch, accumulate, reference):
    """arXiv 1706.02677: the peak grows with the images of an update; without a reference it is taken as it stands."""
    config = Config(
        data={"batch_size": batch},
        optim={"lr": 1e-3, "min_lr": 1e-5, "accumulate": accumulate, "reference_batch": reference},
    )
    peak = 1e-3 * devices * batch * accumulate / reference if reference else 1e-3
    assert np.isclose(config.peak_lr(devices), peak)
    steps, warmup = 50, 7
    rates = learning_rates(steps, warmup, config.peak_lr(devices), config.optim.min_lr)
    parameter = Parameter(Tensor(np.zeros(1), ms.float32), name="bias")
    optimizer = AdamW(
        [parameter], rates, config.optim.beta1, config.optim.beta2, config.optim.epsilon, config.optim.weight_decay
    )
    for t in range(steps):
        used = optimizer(ms.mutable((Tensor(np.ones(1), ms.float32),)), Tensor(1.0, ms.float32))
        cosine = (1 + math.cos(math.pi * (t - warmup) / (steps - 1 - warmup))) / 2
        expected = peak * (t + 1) / warmup if t < warmup else 1e-5 + (peak - 1e-5) * cosine
        assert np.isclose(float(used.asnumpy()), expected), t
