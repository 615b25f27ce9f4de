"""From a configuration to the cells of a run."""

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
from mindspore import nn

from skipvit.config.config import Config
from skipvit.engine.objectives import CrossEntropy, Mixer
from skipvit.engine.optim import AdamW, learning_rates
from skipvit.engine.state import TrainingState
from skipvit.models.create import seed_weights
from skipvit.routing.forward import Forward
from skipvit.routing.program import Probe
from skipvit.routing.select import Formulation


def build_network(config: Config, device: str) -> nn.Cell:
    """The network, with weights drawn from the seed."""
    seed_weights(config.seed)
    dtype = ms.float16 if uses_float16(config, device) else ms.float32
    return config.model.spec().network(device == "ascend", dtype)


def build_forward(
    config: Config,
    device: str,
    network: nn.Cell,
    name: str,
    outputs: Iterable[str] = ("logits",),
    probes: Iterable[Probe] = (),
) -> Forward:
    """One of the run's forwards over a network, by name."""
    auto: Formulation = "matmul" if device == "ascend" else "gather"
    formulation = auto if config.routing == "auto" else config.routing
    return Forward(network, config.program(name, probes), formulation, outputs, config.seed)


def uses_float16(config: Config, device: str) -> bool:
    return config.amp.dtype == "float16" or config.amp.dtype == "auto" and device == "ascend"


def build_loss(config: Config, forward: nn.Cell, mixes: bool, image_size: int) -> CrossEntropy:
    """What a phase minimises; mixes: whether its batches are mixed."""
    return CrossEntropy(forward, config.optim.label_smoothing, Mixer(image_size) if mixes else None)


def build_optimizer(config: Config, network: nn.Cell, steps_per_epoch: int, world_size: int = 1) -> AdamW:
    """AdamW with the learning rates of the whole run; steps_per_epoch counts batches."""
    optim, spec = config.optim, config.model.spec()
    updates, peak = steps_per_epoch // optim.accumulate, config.peak_lr(world_size)
    warmup = round(optim.warmup_epochs * updates)
    rates = learning_rates(optim.epochs * updates, warmup, peak, min(optim.min_lr, peak))
    # Of all others no gradient is ever asked for, so the graph has no backward to them.
    parameters = [p for p in network.trainable_params() if optim.train == "all" or p.name.startswith("head.")]
    multipliers = tuple(optim.layer_decay ** (spec.depth + 1 - spec.layer(p.name)) for p in parameters)
    decayed = tuple(spec.decays(p.name, p.ndim) for p in parameters)
    return AdamW(parameters, rates, optim.beta1, optim.beta2, optim.epsilon, optim.weight_decay, multipliers, decayed)


def build_state(config: Config, optimizer: AdamW, device: str) -> TrainingState:
    amp = config.amp
    scale = amp.loss_scale if uses_float16(config, device) else None
    return TrainingState(optimizer.parameters, config.ema.decay, scale, amp.loss_scale_window, config.optim.accumulate)
