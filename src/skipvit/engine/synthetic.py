"""A run's training step and a batch of random images: for what needs no data set."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from skipvit.config.config import Config
from skipvit.engine.build import build_mixer, build_optimizer, build_state
from skipvit.engine.step import TrainingLoss, TrainStep

UPDATES_PER_EPOCH = 100  # only shapes the learning rate, which costs no time


def training_step(config: Config, device: str, network: nn.Cell, routed: bool) -> TrainStep:
    """The training step of one device as the config says, with the optimizer and the state that belong to it."""
    optimizer = build_optimizer(config, network, UPDATES_PER_EPOCH * config.optim.accumulate)
    loss = TrainingLoss(network, routed, config.optim.label_smoothing, build_mixer(config))
    return TrainStep(loss, optimizer, build_state(config, optimizer, device), config.optim.clip_norm).set_train()


def random_batch(config: Config, noise_width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a training step takes, `data.batch_size` images of no mixing.

    Returns:
        images uint8 (B, S, S, 3), labels int32 (B,), noise float32 (B, noise_width), mixing float32 (6,).
    """
    model, rng = config.model, np.random.default_rng(config.seed)
    batch = config.data.batch_size
    images = rng.integers(0, 256, (batch, model.image_size, model.image_size, 3), np.uint8)
    labels = rng.integers(0, model.num_classes, batch).astype(np.int32)
    noise = rng.random((batch, noise_width), np.float32)
    unmixed = np.array([1, 0, 0, 0, 0, 1], np.float32)
    return Tensor(images), Tensor(labels), Tensor(noise), Tensor(unmixed)
