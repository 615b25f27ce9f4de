"""What a training step changes besides weights and moments: loss scale, weight average, accumulated gradients,
counters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops

REPORT = ("loss", "gradient_norm", "lr", "loss_scale", "overflows", "overflows_in_a_row")

_assign = ops.MultitypeFuncGraph("assign")


@_assign.register("Tensor", "Tensor")
def _(target, source):
    return ops.Assign()(target, source)


class Copy(nn.Cell):
    """Copies parameters to others of the same shapes."""

    def __init__(self, sources: ParameterTuple, targets: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.sources, self.targets = sources, targets

    def construct(self):
        ops.HyperMap()(_assign, self.targets, self.sources)
        return 0


class Clear(nn.Cell):
    """Sets parameters to zero. `set_data` would not do: a compiled graph with branches may not see it."""

    def __init__(self, parameters: tuple[Parameter, ...]):
        super().__init__(auto_prefix=False)
        self.targets = ParameterTuple(parameters)

    def construct(self):
        for target in self.targets:
            ops.Assign()(target, ops.ZerosLike()(target))
        return 0


class ForgetOverflow(nn.Cell):
    """On Ascend 910A reading the overflow register clears it; elsewhere this does nothing."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.zero = Tensor(0.0, ms.float32)

    def construct(self):
        return amp.all_finite((self.zero,))


class TrainingState(nn.Cell):
    """Parameters that the training steps of all phases share.

    All but `spare` and, since checkpoints are made between updates, the gathered gradients belong to a checkpoint.

    Args:
        weights: what is trained.
        ema_decay: of the exponential moving average of the weights (`ema.*`); 0 keeps none.
        loss_scale: first factor of the loss where it is dynamic; None: always 1 (float32 needs none).
        window: steps without overflow after which the loss scale doubles; an overflow halves it.
        accumulate: batches whose gradients make one update.
    """

    def __init__(
        self,
        weights: ParameterTuple,
        ema_decay: float = 0.0,
        loss_scale: float | None = None,
        window: int = 2000,
        accumulate: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.weights, self.decay, self.accumulate = weights, ema_decay, accumulate
        self.dynamic, self.window = loss_scale is not None, window
        self.loss_scale = Parameter(
            Tensor(float(loss_scale or 1), ms.float32), name="trainer.loss_scale", requires_grad=False
        )
        self.good_steps = _counter("good_steps", ms.int32)  # since the loss scale changed
        self.ema = weights.clone(prefix="ema", init="same") if ema_decay else None
        self.spare = weights.clone(prefix="spare", init="zeros") if ema_decay else None
        self.gradients = weights.clone(prefix="gradients", init="zeros") if accumulate > 1 else None
        self.gathered = _counter("gathered", ms.int32)  # batches whose gradients wait for their update
        self.loss_sum = _counter("loss_sum", ms.float32)  # of the finite losses of this epoch
        self.losses = _counter("losses", ms.float32)  # how many those are
        self.overflows = _counter("overflows", ms.float32)  # updates skipped since the run began
        self.overflows_in_a_row = _counter("overflows_in_a_row", ms.float32)
        self.gradient_norm = _counter("gradient_norm", ms.float32)  # of the latest update, before clipping
        self.rate = _counter("rate", ms.float32)
        self.clear = Clear((self.loss_sum, self.losses))  # as an epoch begins
        self.forget_overflow = ForgetOverflow()
        if ema_decay:
            self.put_aside, self.put_back = Copy(weights, self.spare), Copy(self.spare, weights)
            self.put_average = Copy(self.ema, weights)

    def adjust(self, finite):
        """Dynamic loss scale (arXiv 1710.03740): half of it after an overflow, twice after `window` updates without.

        MindSpore's `amp.DynamicLossScaler` does the same with operators that Ascend 910A has no AI Core kernels for.

        Args:
            finite: float32 scalar, 1 if the gradients are, else 0.
        """
        due = ops.Cast()(ops.Equal()(self.good_steps, self.window - 1), ms.float32)
        larger = ops.Minimum()(self.loss_scale * (1.0 + due), 2.0**127)
        smaller = ops.Maximum()(self.loss_scale * 0.5, 1.0)
        ops.Assign()(self.loss_scale, larger * finite + smaller * (1.0 - finite))
        ops.Assign()(self.good_steps, (self.good_steps + 1) * ops.Cast()(finite * (1.0 - due), ms.int32))
        return 0

    def saved(self) -> list[Parameter]:
        """Its own parameters that belong to a checkpoint."""
        prefixes = ("ema.", "trainer.")
        return [p for p in self.get_parameters() if p.name.startswith(prefixes)]

    def mean_loss(self) -> float | None:
        """Mean loss of the epoch so far; None if no step's was finite."""
        count = float(self.losses.asnumpy())
        return float(self.loss_sum.asnumpy()) / count if count else None

    def record(self) -> dict[str, float | None]:
        """Mean loss of the epoch so far, and all else of `REPORT` as the latest update left it; a checkpoint holds
        it."""
        latest = (self.gradient_norm, self.rate, self.loss_scale, self.overflows, self.overflows_in_a_row)
        return {"train_loss": self.mean_loss()} | dict(zip(REPORT[1:], (float(p.asnumpy()) for p in latest)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network has the averaged weights inside."""
        self.put_aside()
        self.put_average()
        try:
            yield
        finally:
            self.put_back()


def _counter(name: str, dtype: ms.Type) -> Parameter:
    return Parameter(Tensor(0, dtype), name=f"trainer.{name}", requires_grad=False)
