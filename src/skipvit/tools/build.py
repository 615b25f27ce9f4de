"""From a configuration to the objects of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from skipvit.config import Config
from skipvit.data.builtin import CLASSES, generate
from skipvit.data.image_folder import open_split
from skipvit.data.pipeline import Arrays, Batches, Shard, Source
from skipvit.errors import RunError
from skipvit.models.vit import ViT
from skipvit.training.optim import AdamW, learning_rates


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
    )


def build_optimizer(config: Config, network: nn.Cell, steps_per_epoch: int) -> AdamW:
    optim = config.optim
    rates = learning_rates(
        optim.epochs * steps_per_epoch, round(optim.warmup_epochs * steps_per_epoch), optim.lr, optim.min_lr
    )
    return AdamW(network.trainable_params(), rates, optim.beta1, optim.beta2, optim.epsilon, optim.weight_decay)


def open_source(config: Config, split: str) -> Source:
    """Pictures of a split, `train` or `val`.

    Raises:
        UsageError, RunError: a folder that is missing or not as it should be, a wrong number of classes.
    """
    data = config.data
    if data.kind == "shapes":
        count = data.train_size if split == "train" else data.val_size
        pictures = generate(count, seed=config.seed, split=split)
        return Arrays(pictures.images, pictures.labels, CLASSES)
    source = open_split(Path(data.path), split)
    if len(source.classes) != config.model.num_classes:
        raise RunError(
            f"model.num_classes: {config.model.num_classes}, but {source.root} has {len(source.classes)} class folders; "
            f"set --model.num_classes {len(source.classes)}"
        )
    return source


def batches_of(
    config: Config, source: Source, noise_width: int, training: bool, shard: Shard, batch_size: int | None = None
) -> Callable[[int], Batches]:
    """A function that makes the batches of an epoch (validation ignores which)."""

    def make(epoch: int = 0) -> Batches:
        return Batches(
            source,
            batch_size=batch_size or config.data.batch_size,
            image_size=config.model.image_size,
            noise_width=noise_width,
            training=training,
            seed=config.seed,
            augment=config.data.augment,
            eval_crop=config.data.eval_crop,
            workers=config.data.workers,
            shard=shard,
            epoch=epoch,
        )

    return make
