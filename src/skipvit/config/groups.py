"""The groups of a run's configuration: every key with its type, limits, default and meaning.

`config.Config` puts them together, reads them and checks them against each other.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from skipvit.models.registry import model_spec
from skipvit.routing.spec import Route

MOST_ACCUMULATION = 1024
LARGEST_IMAGE = 10_000  # side, pixels. Like the other limits of sizes: what is larger is a slip, and nothing would end


MOST_STAGES = 16


def _numbers(value: Any, most: int = 100_000) -> Any:
    """A whole number, or a list of them."""
    each = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in each)
    if not whole or not 0 < len(each) <= MOST_STAGES or not all(0 < number <= most for number in each):
        raise PydanticCustomError(
            "numbers", "input should be a whole number from 1 to {most}, or a list of them, one a stage", {"most": most}
        )
    numbers = list(each)
    return numbers if len(numbers) > 1 else numbers[0]  # a command line makes a list of one number, too


Numbers = Annotated[int | list[int], BeforeValidator(_numbers)]
Depths = Annotated[int | list[int], BeforeValidator(partial(_numbers, most=1000))]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Group):
    """The network."""

    name: str = "vit_small_patch16_224"
    """of the model, as in timm, e.g. vit_tiny_patch16_224, vit_base_patch16_384 (`skipvit.list_models()`)"""
    width: Numbers | None = None
    """token width, if not the model's own; of a PVT a list, one a stage; of a Swin the first stage's"""
    depth: Depths | None = None
    """number of blocks, if not the model's own; of a network of stages a list, e.g. [2, 2, 6, 2]"""
    heads: Numbers | None = None
    """attention heads, if not the model's own; of a network of stages a list"""
    window: int | None = Field(default=None, gt=0, le=LARGEST_IMAGE)
    """side of a Swin's windows, tokens, if not the model's own"""
    reduction: Numbers | None = None
    """side of the squares of a PVT's tokens that become one key, a list, if not the model's own"""
    mlp_ratio: Numbers | None = None
    """how many times wider a PVT's MLP is inside, a list, if not the model's own"""
    patch: int | None = Field(default=None, gt=0, le=LARGEST_IMAGE)
    """side of a patch, pixels, if not the model's own; divides image_size"""
    image_size: int | None = Field(default=None, gt=0, le=LARGEST_IMAGE)
    """side of the square images, pixels, if not the model's own"""
    num_classes: int = Field(default=1000, gt=1, le=10_000_000)
    """number of classes"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """stochastic depth of the last block, linear from 0 at the first"""
    gelu: Literal["tanh", "erf"] | None = None
    """tanh (a ViT's, if not given) is several times faster on CPU; erf is for weights trained with it (timm, DeiT)"""

    @property
    def side(self) -> int:
        """Side of the images, pixels: `image_size`, or the model's own."""
        return self.image_size or self.spec().image_size

    def spec(self) -> Any:
        """The model's numbers, see `models.vit_spec.ViTSpec`. Raises ValueError, one line, if there is no such
        network."""
        values = self.model_dump()
        return model_spec(values.pop("name"), **values)


class InitConfig(Group):
    """Weights to start from, instead of drawn ones."""

    weights: str | None = None
    """a run's folder (its best checkpoint, else the newest), a checkpoint (.ckpt) or timm/DeiT weights (.safetensors);
    null: drawn from the seed"""
    averaged: bool = True
    """take a checkpoint's averaged weights, if it has any"""
    head: Literal["auto", "new"] = "auto"
    """auto: the head is new if it has other classes, as far as they are known (number; names, of a run), else it comes
    along; new: it is new"""


def _epochs_or_share(value: Any) -> Any:
    """Epochs as a whole number, or as it is written if it is a share of the run such as 5%."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return text
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", text):
        raise PydanticCustomError("epochs", "input should be a whole number of epochs, or a share of all such as 5%")
    return int(text)


Epochs = Annotated[int | str, BeforeValidator(_epochs_or_share)]


class PhaseConfig(Group):
    """A stretch of epochs, and what differs from the run in it."""

    name: str | None = None
    """what the log calls it; null: the forward that it trains"""
    epochs: Epochs | None = None
    """how long, or a share of the run, e.g. 5%, rounded to epochs, at least one; null: what the other phases leave"""
    routes: list[Route] | None = None
    """instead of the run's; []: dense"""
    image_size: int | None = Field(default=None, gt=0, le=LARGEST_IMAGE)
    """side of the images, pixels, instead of the model's; the position embedding is resized in the graph"""
    augment: dict[str, Any] = {}
    """keys of `augment` that differ"""


class DataConfig(Group):
    """Images and labels."""

    kind: Literal["shapes", "image_folder", "mindrecord", "cifar10", "cifar100"] = "shapes"
    """shapes: built in, generated from the seed, 32 x 32; image_folder: train/<class>/* and val/<class>/*; mindrecord:
    what `skipvit mindrecord` made of such folders; cifar10, cifar100: the official binary files"""
    path: str | None = None
    """folder of the data set (all kinds but shapes)"""
    batch_size: int = Field(default=128, gt=0, le=1_000_000)
    """images a step on each device"""
    train_size: int = Field(default=6000, gt=0, le=1_000_000)
    """images generated for training (shapes)"""
    val_size: int = Field(default=1000, gt=0, le=1_000_000)
    """images generated for validation (shapes)"""
    eval_crop: float = Field(default=0.875, gt=0, le=1)
    """share of the resized image's side that validation keeps"""
    workers: int = Field(default=1, gt=0, le=512)
    """threads on each device that read, decode and augment"""
    broken_share: float = Field(default=0.01, ge=0, le=1)
    """share of a split's images that may be broken: they are listed and left out; 0 stops at the first"""
    sink: Literal["auto", "on", "off"] = "auto"
    """MindSpore's data sink: the device fetches whole epochs by itself; auto: on ascend (CPU has none)"""


class AugmentConfig(Group):
    """What training does to the images."""

    crop: Literal["none", "pad", "random_resized"] = "none"
    """pad: shift by up to an eighth over black; random_resized: the ImageNet standard"""
    crop_min: float = Field(default=0.08, gt=0, le=1)
    """smallest area of a random resized crop, share of the image"""
    hflip: float = Field(default=0.0, ge=0, le=1)
    """probability of a left-right flip"""
    rand_augment: float = Field(default=0.0, ge=0, le=10)
    """magnitude of RandAugment; 9 is timm's rand-m9-mstd0.5-inc1; 0: off"""
    rand_augment_ops: int = Field(default=2, ge=1, le=15)
    """operations an image"""
    rand_augment_std: float = Field(default=0.5, ge=0, le=10)
    """standard deviation of the magnitude"""
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """brightness, contrast and saturation change by up to this share"""
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    """probability that a rectangle is replaced by noise"""
    repeats: int = Field(default=1, ge=1, le=16)
    """repeated augmentation: copies of an image within an epoch of unchanged length (DeiT: 3)"""
    mixup: float = Field(default=0.0, ge=0, le=100)
    """alpha of mixup; 0: off"""
    cutmix: float = Field(default=0.0, ge=0, le=100)
    """alpha of CutMix; 0: off"""
    mix_prob: float = Field(default=1.0, ge=0, le=1)
    """share of the batches that are mixed, where mixup or CutMix is on"""
    mix_switch_prob: float = Field(default=0.5, ge=0, le=1)
    """share of mixed batches that use CutMix, where both are on"""

    @property
    def mixes(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


class OptimConfig(Group):
    """AdamW, linear warm-up and cosine learning rate."""

    epochs: int = Field(default=300, gt=0, le=100_000)
    """passes over the training images"""
    lr: float = Field(default=5e-4, gt=0)
    """peak learning rate"""
    reference_batch: int | None = Field(default=None, gt=0)
    """images an update that lr is meant for: it is scaled by devices x batch_size x accumulate / this; null: not
    scaled"""
    accumulate: int = Field(default=1, gt=0, le=MOST_ACCUMULATION)
    """batches whose gradients make one update"""
    min_lr: float = Field(default=1e-5, ge=0)
    """learning rate at the end"""
    warmup_epochs: float = Field(default=5, ge=0)
    """epochs of linear learning-rate warm-up"""
    weight_decay: float = Field(default=0.05, ge=0)
    """decoupled; none on biases, norms, [CLS] and position embedding"""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """decay of the first moment"""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """decay of the second moment"""
    epsilon: float = Field(default=1e-8, gt=0)
    """added to the root of the second moment"""
    clip_norm: float = Field(default=1.0, ge=0)
    """largest global gradient norm; 0 does not clip"""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """share of the target spread over all classes"""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """each layer learns at this times the rate of the one above it, from the head down to the embeddings; 1: all
    alike"""
    train: Literal["all", "head"] = "all"
    """head: all else stays as init.weights has it: no gradients, moments or averages, and no backward through the
    blocks"""


class AmpConfig(Group):
    """Number formats and loss scaling."""

    dtype: Literal["auto", "float32", "float16"] = "auto"
    """of the matrix products; auto: float16 on ascend, float32 on cpu"""
    loss_scale: float = Field(default=65536.0, ge=1, le=2**40)
    """first loss scale (float16); an overflow halves it"""
    loss_scale_window: int = Field(default=2000, gt=0)
    """updates without overflow after which the loss scale doubles"""
    max_overflows: int = Field(default=50, gt=0)
    """updates skipped in a row that stop the run"""


class EmaConfig(Group):
    """Exponential moving average of the weights."""

    decay: float = Field(default=0.0, ge=0, lt=1)
    """a step's decay, smaller in the first steps; 0: no average"""


class EvalConfig(Group):
    """Evaluation during training, and which forward counts."""

    main: str = "auto"
    """the forward whose accuracy counts; auto: the one that the last phase trains; dense: for routes that are meant for
    training only"""
    forwards: Literal["auto"] | list[str] = "auto"
    """names of the forwards to evaluate; auto: dense, routed (if the run has routes) and the main one"""

    every: int = Field(default=1, gt=0)
    """epochs between evaluations; the last epoch is always evaluated"""


class CheckpointConfig(Group):
    """What is kept of a run."""

    every: int = Field(default=1, gt=0)
    """epochs between checkpoints; the last epoch is always saved"""
    minutes: float = Field(default=10.0, gt=0)
    """a checkpoint within the epoch too, if the last one is older than this"""
    keep: int = Field(default=3, gt=0)
    """newest checkpoints kept"""
    best: str = "auto"
    """whose top-1 decides about best.ckpt, e.g. dense or routed_ema; auto: of the forward that counts (eval.main),
    averaged weights if there are"""


class LogConfig(Group):
    """What is written down."""

    steps: int = Field(default=50, gt=0)
    """updates between lines of metrics.jsonl within an epoch"""
    tensorboard: bool = False
    """also write TensorBoard event files (needs `pip install tensorboardX`)"""
