"""A network's values and gradients against a forward in NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from skipvit.routing.forward import Forward
from skipvit.routing.program import kept_positions, routed_stage


class Objective(nn.Cell):
    """A weighted sum of the logits, and everything that the forward gives."""

    def __init__(self, forward, weights):
        super().__init__(auto_prefix=False)
        self.forward, self.weights = forward, Tensor(weights)

    def construct(self, images):
        found = self.forward(images)
        return (found[0] * self.weights).sum(), found


def with_weights_that_count(spec, seed=3):
    """A network of a specification in which every part matters."""
    rng, cell = np.random.default_rng(seed), spec.network()
    for p in cell.get_parameters():
        spread = 1.0 if "bias_table" in p.name else 0.3 if p.ndim == 1 else 1 / np.sqrt(np.prod(p.shape[1:]))
        p.set_data(Tensor((p.asnumpy() + rng.normal(size=p.shape) * spread).astype(np.float32)))
    return cell


def assert_equal_to_numpy(network, program, images, reference, third, formulations=("gather", "matmul")):
    """Logits, kept tokens, and every sixth parameter's gradient along a random direction equal those of NumPy, all
    formulations' bit for bit.

    Args:
        reference: of params, float64 by name: logits, and kept row-major positions of each image and route.
        third: where to begin among them.
    """
    spec, outputs = network.spec, ["logits", "norm", *(f"routes.{step.route}.slots" for step in program.selections)]
    weights = np.random.default_rng(5).normal(size=(len(images), spec.num_classes)).astype(np.float32)
    params = {p.name: p.asnumpy().astype(np.float64) for p in network.get_parameters()}
    logits, kept = reference(params)
    results = []
    for formulation in formulations:
        objective = Objective(Forward(network, program, formulation, outputs), weights)
        take = ms.value_and_grad(objective, None, network.trainable_params(), has_aux=True)
        (_, found), gradients = take(Tensor(images))
        results.append([*(value.asnumpy() for value in found), *(g.asnumpy() for g in gradients)])
        np.testing.assert_allclose(results[-1][0], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
        for step, slots in zip(program.selections, results[-1][2:]):
            order = np.array(routed_stage(spec, program.image_size).order)
            stay = np.sort(order[kept_positions(slots, step.after)], 1)
            assert np.array_equal(stay, np.array(kept)[:, step.route])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))
    rng, step, gradients = np.random.default_rng(6), 1e-5, results[0][-len(params) :]
    for p, gradient in list(zip(network.trainable_params(), gradients))[third::6]:
        direction = rng.normal(size=p.shape)
        ends = []
        for sign in (1, -1):
            there = params | {p.name: params[p.name] + sign * step * direction}
            ends.append((reference(there)[0] * weights).sum())
        expected = (ends[0] - ends[1]) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-3, abs=3e-4), p.name
