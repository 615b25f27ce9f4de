"""Parts of a training step as cells of their own, to be timed."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.engine.step import TrainStep, move_average
from skipvit.routing.forward import Forward


class ForwardBackward(nn.Cell):
    """Loss and gradients of a training step's network; returns the loss when the gradients are there."""

    def __init__(self, step: TrainStep):
        super().__init__(auto_prefix=False)
        self.value_and_gradient: Any = ms.value_and_grad(step.loss, grad_position=None, weights=step.weights)

    def construct(self, images, labels, noise, mix, scale):
        loss, gradients = self.value_and_gradient(images, labels, noise, mix, scale)
        return ops.Depend()(loss, gradients)  # nobody reads them, but they are computed


class Averaging(nn.Cell):
    """A training step's moving average of its weights, alone."""

    def __init__(self, step: TrainStep):
        super().__init__(auto_prefix=False)
        self.averages, self.weights, self.share = step.state.ema, step.weights, Tensor(0.001, ms.float32)

    def construct(self):
        ops.HyperMap()(ops.Partial()(move_average, self.share), self.averages, self.weights)
        return self.share


class RouteAlone(nn.Cell):
    """All that a route does to a sequence, without the blocks: the steps of its program that score, select, restore."""

    def __init__(self, forward: Forward, route: int):
        super().__init__(auto_prefix=False)
        self.whole, self.selector = forward, forward.selectors[route]
        self.steps: tuple[Any, ...] = tuple(step for step in forward.steps if step.route == route)
        select = forward.steps.index(next(step for step in self.steps if step.kind == "select"))
        self.block = next((step.block for step in forward.steps[select:] if step.block >= 0), 0)

    def construct(self, q, k, v, x, noise):
        before, mask, ranking, weights = x, x, x, x
        for step in self.steps:
            if step.kind == "score":
                told = self.whole.told(step, max(self.block - 1, 0), {"q": q, "k": k, "v": v}, x, x)
                ranking, weights = self.whole.score(step, told, noise)
            elif step.kind == "select":
                mask = self.selector.mask(ranking)
                x = step.carrier.enter(self.selector, x, mask, weights)
            elif step.kind == "restore":
                x = self.whole.put_back(step, x, before, mask)
        return x


class Routing(nn.Cell):
    """A forward's routes alone, forward and backward, on `routing_inputs`; gives the gradient by each one's tokens."""

    def __init__(self, forward: Forward):
        super().__init__(auto_prefix=False)
        self.routes = nn.CellList([RouteAlone(forward, step.route) for step in forward.program.selections])
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, noise, *inputs):
        gradients = ()
        for r in range(len(self.routes)):
            q, k, v, x, sensitivity = inputs[5 * r : 5 * r + 5]
            gradients = gradients + (self.gradient(self.routes[r])(q, k, v, x, noise, sensitivity)[3],)
        return gradients


def routing_inputs(forward: Forward, batch: int, dtype: ms.Type) -> list[Tensor]:
    """What `Routing` takes, random, of the shapes that the forward's routes see.

    Returns:
        noise float32 (B, noise_width), and for each route in turn q, k, v (B, heads, sequence, d) of the compute dtype,
        the tokens float32 (B, sequence, D) and the gradients from behind, float32 (B, sequence after the route, D).
    """
    rng, spec = np.random.default_rng(0), forward.network.spec

    def draw(*shape: int, dtype: ms.Type = ms.float32) -> Tensor:
        return Tensor(rng.standard_normal((batch, *shape), np.float32), dtype)

    result = [Tensor(rng.random((batch, forward.noise_width), np.float32))]
    for step in forward.program.selections:
        before = step.before.length
        after = before if step.carrier.returns else step.after.length
        result += [draw(spec.heads, before, spec.width // spec.heads, dtype=dtype) for _ in "qkv"]
        result += [draw(before, spec.width), draw(after, spec.width)]
    return result
