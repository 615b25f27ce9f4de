"""AdamW (arXiv 1711.05101) and its learning-rate schedule."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops


def learning_rates(steps: int, warmup_steps: int, peak: float, final: float) -> np.ndarray:
    """Linear warm-up to `peak`, then a half cosine to `final`: float64 (steps,), the rate of each step.

    Step t of the warm-up has peak * (t + 1) / warmup_steps; the last step of a run that goes on beyond it by two or
    more has `final`.
    """
    warmup = peak * (np.arange(warmup_steps) + 1) / max(1, warmup_steps)
    progress = np.linspace(0, 1, max(0, steps - warmup_steps))
    return np.concatenate([warmup, final + (peak - final) * 0.5 * (1 + np.cos(np.pi * progress))])[:steps]


_update = ops.MultitypeFuncGraph("update")
_decay = ops.MultitypeFuncGraph("decay")


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _(power, scale, size, beta1, beta2, epsilon, p, moment1, moment2, gradient):
    return ops.Adam()(p, moment1, moment2, power, power, size, beta1, beta2, epsilon, gradient * scale)


@_update.register(
    "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Number", "Tensor", "Tensor", "Tensor", "Tensor"
)
def _(power, scale, size, beta1, beta2, epsilon, multiplier, p, moment1, moment2, gradient):
    return ops.Adam()(p, moment1, moment2, power, power, size * multiplier, beta1, beta2, epsilon, gradient * scale)


@_decay.register("Tensor", "Tensor")
def _(rest, p):
    return ops.Assign()(p, p * rest)


@_decay.register("Tensor", "Number", "Tensor")
def _(lost, multiplier, p):
    return ops.Assign()(p, p * (1.0 - lost * multiplier))


class AdamW(nn.Cell):
    """Adam with bias correction and decoupled weight decay, what decays by lr * weight_decay.

    The bias corrections depend on the step alone; they are folded, in float64, into a table of step sizes and epsilons:
    m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) = (sqrt(1 - b2^t) / (1 - b1^t)) m / (sqrt(v) + eps sqrt(1 - b2^t)).

    Args:
        parameters: what to train.
        rates: float64 (steps,), learning rate of each step; beyond it the last one holds.
        multipliers: of each parameter's learning rate, and so of its decay; None: all 1.
        decayed: which parameters weight decay applies to; None: the matrices.

    Its own parameters, `optimizer.*`, belong to a checkpoint: moments and step.
    """

    def __init__(
        self,
        parameters,
        rates: np.ndarray,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        multipliers: tuple[float, ...] | None = None,
        decayed: tuple[bool, ...] | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.moment1 = self.parameters.clone(prefix="optimizer.moment1", init="zeros")
        self.moment2 = self.parameters.clone(prefix="optimizer.moment2", init="zeros")
        self.step = Parameter(Tensor(0, ms.int32), name="optimizer.step", requires_grad=False)
        t = np.arange(1, len(rates) + 1)
        correction1, correction2 = 1 - beta1**t, np.sqrt(1 - beta2**t)
        self.rates = Tensor(rates.astype(np.float32))
        self.step_sizes = Tensor((rates * correction2 / correction1).astype(np.float32))
        self.epsilons = Tensor((epsilon * correction2).astype(np.float32))
        self.last = len(rates) - 1
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
        self.no_power = Tensor(0.0, ms.float32)  # the correction is in the table already
        self.decay = Tensor(weight_decay, ms.float32)
        decayed = decayed or tuple(p.ndim == 2 for p in self.parameters)
        matrices = [p for p, decays in zip(self.parameters, decayed) if decays]
        self.matrices = ParameterTuple(matrices) if weight_decay and matrices else ()
        # Without, the graph has no trace of them.
        self.multipliers = multipliers if multipliers and any(multiplier != 1 for multiplier in multipliers) else None
        self.of_matrices = tuple(m for m, decays in zip(self.multipliers or (), decayed) if decays)

    def construct(self, gradients, scale):
        """Update with gradients * scale (a float32 scalar); returns the learning rate used, float32 scalar."""
        at = ops.Minimum()(self.step, self.last)
        rate = ops.Gather()(self.rates, at, 0)
        size = ops.Gather()(self.step_sizes, at, 0)
        epsilon = ops.Gather()(self.epsilons, at, 0)
        # Maps: a loop over hundreds of parameters is unrolled into calls that nest too deep for MindSpore.
        update = ops.Partial()(_update, self.no_power, scale, size, self.beta1, self.beta2, epsilon)
        lost = rate * self.decay
        if self.multipliers is None:
            if self.matrices:
                ops.HyperMap()(ops.Partial()(_decay, 1.0 - lost), self.matrices)
            ops.HyperMap()(update, self.parameters, self.moment1, self.moment2, gradients)
        else:
            if self.matrices:
                ops.HyperMap()(ops.Partial()(_decay, lost), self.of_matrices, self.matrices)
            ops.HyperMap()(update, self.multipliers, self.parameters, self.moment1, self.moment2, gradients)
        ops.AssignAdd()(self.step, 1)
        return rate
