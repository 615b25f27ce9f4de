"""From a configuration to the objects of a run."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from skipvit.config.config import Config
from skipvit.engine.optim import AdamW, layer_multipliers, learning_rates
from skipvit.engine.state import TrainingState
from skipvit.engine.step import Mixer
from skipvit.models.vit import ViT


def build_network(config: Config, device: str) -> ViT:
    """The network, with weights drawn from the seed."""
    formulation = config.routing
    if formulation == "auto":
        formulation = "matmul" if device == "ascend" else "gather"
    ms.set_seed(config.seed)
    np.random.seed(config.seed)  # MindSpore draws initial weights with NumPy's global generator
    model = config.model
    return ViT(
        model.shape(),
        model.image_size,
        model.patch,
        model.num_classes,
        config.routes,
        formulation,
        model.drop_path,
        exact_gelu=model.gelu == "erf",
        fused_kernels=device == "ascend",
        dtype=ms.float16 if uses_float16(config, device) else ms.float32,
    )


def uses_float16(config: Config, device: str) -> bool:
    return config.amp.dtype == "float16" or config.amp.dtype == "auto" and device == "ascend"


def trained(config: Config, network: nn.Cell) -> list[Parameter]:
    """The parameters that a run trains; of all others no gradient is ever asked for, so the graph has no backward to them."""
    return [p for p in network.trainable_params() if config.optim.train == "all" or p.name.startswith("head.")]


def build_optimizer(config: Config, network: nn.Cell, steps_per_epoch: int, devices: int = 1) -> AdamW:
    """AdamW with the learning rates of the whole run; steps_per_epoch counts batches."""
    optim = config.optim
    updates, peak = steps_per_epoch // optim.accumulate, config.peak_lr(devices)
    rates = learning_rates(optim.epochs * updates, round(optim.warmup_epochs * updates), peak, min(optim.min_lr, peak))
    parameters = trained(config, network)
    multipliers = layer_multipliers((p.name for p in parameters), config.model.shape().depth, optim.layer_decay)
    return AdamW(parameters, rates, optim.beta1, optim.beta2, optim.epsilon, optim.weight_decay, multipliers)


def build_state(config: Config, optimizer: AdamW, device: str) -> TrainingState:
    amp = config.amp
    scale = amp.loss_scale if uses_float16(config, device) else None
    return TrainingState(optimizer.parameters, config.ema.decay, scale, amp.loss_scale_window, config.optim.accumulate)


def build_mixer(config: Config) -> Mixer | None:
    return Mixer(config.model.image_size) if config.augment.mixes else None
