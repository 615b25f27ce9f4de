"""Parts of a training step as cells of their own, to be timed."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.engine.step import TrainStep, move_average
from skipvit.models.vit import ViT
from skipvit.routing.routing import Router


class ForwardBackward(nn.Cell):
    """Loss and gradients of a training step's network; returns the loss when the gradients are there."""

    def __init__(self, step: TrainStep):
        super().__init__(auto_prefix=False)
        self.value_and_gradient = ms.value_and_grad(step.loss, grad_position=None, weights=step.weights)

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
    """All that a router does to a sequence, without the blocks: score, select, enter and leave."""

    def __init__(self, router: Router):
        super().__init__(auto_prefix=False)
        self.router = router

    def construct(self, q, k, v, x, noise):
        ranking, weights = self.router.score(q, k, v, noise)
        mask = self.router.mask(ranking)
        inside = self.router.enter(x, mask, weights)
        return self.router.leave(inside, x, mask) if self.router.restores else inside


class Routing(nn.Cell):
    """The routers of a network alone, forward and backward, on `routing_inputs`; returns each one's gradient by its
    tokens."""

    def __init__(self, network: ViT):
        super().__init__(auto_prefix=False)
        self.routes = nn.CellList([RouteAlone(router) for router in network.routers])
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, noise, *inputs):
        gradients = ()
        for r in range(len(self.routes)):
            q, k, v, x, sensitivity = inputs[5 * r : 5 * r + 5]
            gradients = gradients + (self.gradient(self.routes[r])(q, k, v, x, noise, sensitivity)[3],)
        return gradients


def routing_inputs(network: ViT, batch: int, heads: int, dtype: ms.Type) -> list[Tensor]:
    """What `Routing` takes, random, of the shapes that the network's routers see.

    Returns:
        noise float32 (B, noise_width), and for each route in turn q, k, v (B, heads, sequence, d) of the compute dtype,
        the tokens float32 (B, sequence, D) and the gradients from behind, float32 (B, sequence after the route, D).
    """
    rng, width = np.random.default_rng(0), network.width

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((batch, *shape), np.float32)

    result = [Tensor(rng.random((batch, network.noise_width), np.float32))]
    for span in network.spans:
        before = 1 + span.tokens + span.extras
        after = before if span.restore else span.sequence
        result += [Tensor(draw(heads, before, width // heads), dtype) for _ in "qkv"]
        result += [Tensor(draw(before, width)), Tensor(draw(after, width))]
    return result
