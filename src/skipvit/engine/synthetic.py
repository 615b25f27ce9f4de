"""A run's training step and a batch of random images: for what needs no data set."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from skipvit.config.config import Config
from skipvit.data.mixing import UNMIXED
from skipvit.data.order import Shard
from skipvit.engine.build import build_forward, build_loss, build_optimizer, build_state
from skipvit.engine.devices import gradient_average
from skipvit.engine.step import TrainStep

UPDATES_PER_EPOCH = 100  # only shapes the learning rate, which costs no time


def training_step(config: Config, device: str, network: nn.Cell, name: str, world_size: int = 1) -> TrainStep:
    """The training step of one of the run's forwards, with an optimizer and a state of its own.

    Args:
        name: of the forward.
        world_size: devices that average their gradients.
    """
    optimizer = build_optimizer(config, network, UPDATES_PER_EPOCH * config.optim.accumulate, world_size)
    forward, image_size = build_forward(config, device, network, name), config.forwards()[name].image_size
    mixes = any(phase.config.augment.mixes for phase in config.resolved_phases())
    loss = build_loss(config, forward, mixes, image_size)
    average = gradient_average(optimizer.parameters, Shard(0, world_size))
    state = build_state(config, optimizer, device)
    return TrainStep(loss, optimizer, state, config.optim.clip_norm, average, world_size).set_train()


def random_batch(config: Config, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the training step of a forward takes, `data.batch_size` images of no mixing. Returns images uint8 (B, S, S,
    3), labels int32 (B,), noise float32 (B, noise width), mixing float32 (6,)."""
    batch, size, rng = config.data.batch_size, config.forwards()[name].image_size, np.random.default_rng(config.seed)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    labels = rng.integers(0, config.model.num_classes, batch).astype(np.int32)
    noise = rng.random((batch, config.noise_width()), np.float32)
    return Tensor(images), Tensor(labels), Tensor(noise), Tensor(UNMIXED)
