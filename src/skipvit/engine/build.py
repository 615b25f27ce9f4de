"""From a configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from skipvit.config.config import Config
from skipvit.data.builtin import CLASSES, generate
from skipvit.data.cifar import open_cifar
from skipvit.data.image_folder import open_split
from skipvit.data.mindrecord import open_mindrecord
from skipvit.data.pipeline import Arrays, Batches, Broken, Shard, Source, Subset
from skipvit.engine.optim import AdamW, layer_multipliers, learning_rates
from skipvit.engine.state import TrainingState
from skipvit.engine.step import Mixer
from skipvit.models.vit import ViT
from skipvit.util.errors import RunError


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


def open_source(config: Config, split: str, index: Path | None = None) -> Source:
    """Images of a split, `train` or `val`.

    Args:
        index: folder in which the list of an image folder's files is kept for the next start, or None.

    Raises:
        UsageError, RunError: a folder that is missing or not as it should be, a wrong number of classes.
    """
    data = config.data
    if data.kind == "shapes":
        count = data.train_size if split == "train" else data.val_size
        images = generate(count, seed=config.seed, split=split)
        return Arrays(images.images, images.labels, CLASSES)
    if data.kind == "image_folder":
        source = open_split(Path(data.path), split, index)
    elif data.kind == "mindrecord":
        source = open_mindrecord(Path(data.path), split)
    else:
        source = open_cifar(Path(data.path), data.kind, split)
    if len(source.classes) != config.model.num_classes:
        raise RunError(
            f"model.num_classes: {config.model.num_classes}, but the {split} images in {data.path} have {len(source.classes)} classes; "
            f"set --model.num_classes {len(source.classes)}"
        )
    return source


def evenly_spaced(source: Source, count: int) -> np.ndarray:
    """Positions over a whole split: int (count or fewer,)."""
    return np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)


def sample(
    config: Config, source: Source, chosen: np.ndarray, noise_width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validation images by their positions: images, labels and noise, see `data.pipeline`. Those that cannot be decoded are black,
    and labelled as padding."""
    count = len(chosen)
    batches = batches_of(
        config, Subset(source, chosen.tolist()), noise_width, False, batch_size=count, broken=Broken(count, 1.0)
    )
    ((images, labels, noise, _),) = batches()
    return images, labels, noise


def batches_of(
    config: Config,
    source: Source,
    noise_width: int,
    training: bool,
    shard: Shard = Shard(),
    batch_size: int | None = None,
    listing: Path | None = None,
    broken: Broken | None = None,
) -> Callable[..., Batches]:
    """A function that makes the batches from an epoch and a step in it on (validation has but one epoch).

    Args:
        listing: text file for the broken images.
        broken: counts them instead of the limit and the list that a run has.
    """
    broken = broken or Broken(len(source), config.data.broken_share, listing)

    def make(epoch: int = 0, first_step: int = 0) -> Batches:
        return Batches(
            source,
            batch_size=batch_size or config.data.batch_size,
            image_size=config.model.image_size,
            noise_width=noise_width,
            training=training,
            seed=config.seed,
            augment=config.augment.images(),
            mix=config.augment.mix(),
            eval_crop=config.data.eval_crop,
            workers=config.data.workers,
            accumulate=config.optim.accumulate,
            repeats=config.augment.repeats,
            shard=shard,
            broken=broken,
            epoch=epoch,
            first_step=first_step,
        )

    return make
