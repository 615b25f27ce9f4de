"""AdamW and its schedule against NumPy."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from skipvit.config.config import Config
from skipvit.engine.build import build_optimizer
from skipvit.engine.optim import AdamW, learning_rates
from skipvit.models.vit_spec import ViTSpec


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


@pytest.mark.parametrize(
    "multipliers, decayed",
    [(None, None), ((0.3, 1.0, 0.05), None), (None, (False, False, True)), ((0.3, 1.0, 0.05), (True, True, False))],
)
def test_adamw_matches_numpy_over_20_steps_and_decays_what_it_is_told(multipliers, decayed):
    """Reference: Algorithm 2 of arXiv 1711.05101, in float64, each parameter with a rate of its own. The schedule ends
    after 15 steps: the last rate holds."""
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(5, 4)), "bias": rng.normal(size=4), "cls_token": rng.normal(size=(1, 1, 4))}
    parameters = [Parameter(Tensor(value, ms.float32), name=name) for name, value in start.items()]
    rates = learning_rates(15, 4, 1e-2, 1e-4)
    optimizer = AdamW(parameters, rates, 0.9, 0.95, 1e-6, 0.1, multipliers, decayed)
    own = dict(zip(start, multipliers or (1, 1, 1)))
    decays = dict(zip(start, decayed or (True, False, False)))  # not told: the matrix
    expected = {name: value.copy() for name, value in start.items()}
    m = {name: np.zeros_like(value) for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in start.items()}
    for t in range(1, 21):
        gradients = {name: rng.normal(size=value.shape) * 10.0 ** rng.integers(-4, 1) for name, value in start.items()}
        scale = rng.uniform(0.1, 1)
        # Mutable, else it is a constant, and compiled each time.
        tensors = ms.mutable(tuple(Tensor(g, ms.float32) for g in gradients.values()))
        used = optimizer(tensors, Tensor(scale, ms.float32))
        rate = rates[min(t - 1, 14)]
        assert np.isclose(float(used.asnumpy()), rate)
        for name, g in gradients.items():
            g = g * scale
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            if decays[name]:
                expected[name] *= 1 - rate * own[name] * 0.1
            m_hat, v_hat = m[name] / (1 - 0.9 ** min(t, 15)), v[name] / (1 - 0.95 ** min(t, 15))
            expected[name] -= rate * own[name] * m_hat / (np.sqrt(v_hat) + 1e-6)
    for p in parameters:
        assert np.allclose(p.asnumpy(), expected[p.name], rtol=2e-5, atol=2e-6), p.name
    assert int(optimizer.step.asnumpy()) == 20


TINY = {"width": 16, "depth": 12, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}


def optimizer_of(**optim):
    """The optimizer of a configuration, with what it does to each parameter by name."""
    config = Config(model=TINY, optim={"epochs": 2, "warmup_epochs": 0} | optim)
    optimizer = build_optimizer(config, config.model.spec().network(), 5)
    names = [p.name for p in optimizer.parameters]
    return dict(zip(names, optimizer.multipliers or [1.0] * len(names))), {p.name for p in optimizer.matrices}


def test_layers_learn_slower_the_lower_they_are():
    """MAE's fine-tuning of a ViT-B (arXiv 2111.06377, 0.65 a layer): layer k of 13 has 0.65 ** (13 - k), the head and
    the last norm 1."""
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
    multipliers, _ = optimizer_of(layer_decay=0.65)
    for name, layer in layers.items():
        assert np.isclose(multipliers[name], 0.65 ** (13 - layer), rtol=1e-12), name
    assert set(optimizer_of(layer_decay=1.0)[0].values()) == {1.0}


def test_a_run_of_equal_layers_has_no_trace_of_multipliers():
    parameter = Parameter(Tensor(np.zeros((2, 2)), ms.float32), name="blocks.0.attn.q.weight")
    rates = learning_rates(5, 0, 1e-3, 1e-5)
    assert AdamW([parameter], rates, 0.9, 0.99, 1e-8, 0.1, (1.0,)).multipliers is None
    assert AdamW([parameter], rates, 0.9, 0.99, 1e-8, 0.1, (0.5,)).multipliers == (0.5,)


def test_decay_spares_biases_norms_cls_and_position():
    _, decayed = optimizer_of()
    products = ("q", "k", "v", "proj", "fc1", "fc2")
    expected = {f"blocks.{i}.{'mlp' if p.startswith('fc') else 'attn'}.{p}.weight" for i in range(12) for p in products}
    assert decayed == expected | {"patch_embed.proj.weight", "head.weight"}
    assert not ViTSpec(16, 2, 2).decays("cls_token", 3) and ViTSpec(16, 2, 2).decays("head.weight", 2)


@pytest.mark.parametrize(
    "devices, batch, accumulate, reference", [(1, 128, 1, None), (8, 128, 2, 512), (1, 64, 1, 1024)]
)
def test_every_rate_of_a_run_follows_the_linear_scaling_rule(devices, batch, accumulate, reference):
    """arXiv 1706.02677: the peak grows with the images of an update; without a reference it is taken as it stands."""
    config = Config(
        model=TINY,
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
