"""A trained network ready to answer, for `skipvit predict` and `skipvit export`."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.cli.eval import checkpoint_of
from skipvit.config.config import Config, OneLineParser
from skipvit.data.augment import BrokenImage
from skipvit.data.builtin import CLASSES
from skipvit.data.image_folder import EXTENSIONS
from skipvit.data.pipeline import PADDING
from skipvit.engine import checkpoint
from skipvit.engine.build import batches_of, build_network, open_source
from skipvit.models.vit import ViT
from skipvit.runs.run_folder import RunFolder
from skipvit.util.errors import RunError, UsageError


class Predictor(nn.Cell):
    """Probabilities float32 (B, classes) of images (B, S, S, 3), uint8, or float32 that are normalised already.

    Nothing in it depends on the other images of a batch: a `random` route draws the same tokens for every image.
    """

    def __init__(self, network: ViT, routed: bool, seed: int):
        super().__init__(auto_prefix=False)
        self.network, self.routed = network, routed
        self.noise = Tensor(np.random.default_rng(seed).random((1, network.noise_width), np.float32))

    def construct(self, images):
        noise = ops.BroadcastTo((images.shape[0], self.noise.shape[1]))(self.noise)
        return ops.Softmax(-1)(ops.Cast()(self.network(images, noise, self.routed), ms.float32))


@dataclass(frozen=True)
class Trained:
    """A network with the weights of a checkpoint.

    Attributes:
        classes: their names, in the order of the network's outputs.
        averaged: the weights are the checkpoint's averaged ones.
        routed: the forward to run.
        run: the folder of the run, None if a config and a checkpoint were named instead.
    """

    config: Config
    network: ViT
    classes: tuple[str, ...]
    checkpoint: Path
    averaged: bool
    routed: bool
    run: RunFolder | None

    @property
    def forward(self) -> str:
        return "routed" if self.routed else "dense"

    def predictor(self) -> Predictor:
        return Predictor(self.network, self.routed, self.config.seed).set_train(False)

    def describe(self) -> str:
        """One line: which weights, which forward."""
        trained = " (trained last)" if self.network.spans and self.forward == self.config.trained() else ""
        return f"{self.checkpoint}: {'averaged' if self.averaged else 'last'} weights, {self.forward} forward{trained}"


def add_options(parser: OneLineParser) -> None:
    """What both commands take to name a network."""
    parser.add_argument("--config", metavar="FILE", help="YAML file, with --weights, instead of a run")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint, instead of the run's newest")
    parser.add_argument(
        "--last", action="store_true", help="the weights themselves where the run also has their average"
    )
    forward = parser.add_mutually_exclusive_group()
    forward.add_argument(
        "--dense", action="store_true", help="run the dense forward (default: the one that counts, see phases.evaluate)"
    )
    forward.add_argument("--routed", action="store_true", help="run the routed forward")


def load(config: Config, options: argparse.Namespace, device: str) -> Trained:
    """The network that the command line names.

    Raises:
        UsageError: no checkpoint, or --routed without routes.
        RunError: a checkpoint that is damaged or of another model.
    """
    if options.routed and not config.routes:
        raise UsageError("--routed: this network has no routes; leave it out, or give --routes")
    path = checkpoint_of(options)
    averaged = not options.last and checkpoint.has_average(path)
    network = build_network(config, device)
    checkpoint.restore_weights(path, network, averaged)
    network.set_train(False)
    run = RunFolder(Path(options.run), writes=False) if options.run else None
    routed = options.routed or not options.dense and config.main() == "routed"
    return Trained(config, network, class_names(config, run), path, averaged, routed, run)


def class_names(config: Config, run: RunFolder | None) -> tuple[str, ...]:
    """The names that the run has noted; of an older run those of its data set; without one, numbers and a warning."""
    count = config.model.num_classes
    if run is not None and run.classes.is_file():
        try:
            names = json.loads(run.classes.read_text(encoding="utf-8"))
        except ValueError:
            names = None
        if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise RunError(
                f"{run.classes}: not a list of {count} class names; mend it, or remove it to read them from the data set"
            )
        return tuple(names)
    try:
        return CLASSES if config.data.kind == "shapes" else tuple(open_source(config, "val").classes)
    except (UsageError, RunError, OSError) as error:
        print(f"warning: classes are numbered, their names are not known ({error})", file=sys.stderr)
        return tuple(f"class {i}" for i in range(count))


class Files:
    """Images of any folders as a source of batches; none has a label."""

    classes = ()

    def __init__(self, paths: list[str]):
        self.paths, self.labels = paths, np.zeros(len(paths), np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """The file's bytes. Raises BrokenImage if it cannot be read: a pipe or a device, which may never end, is not tried."""
        try:
            if not stat.S_ISREG(os.stat(self.paths[i]).st_mode):
                raise BrokenImage("not a file")
            with open(self.paths[i], "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BrokenImage(getattr(error, "strerror", None) or str(error)) from None

    def name(self, i: int) -> str:
        return self.paths[i]


class Bad:
    """What is wrong with which file (`reasons`); takes the place of the list of broken images that a run keeps."""

    def __init__(self, reasons: dict[str, str]):
        self.reasons = reasons

    def add(self, name: str, reason: str) -> None:
        self.reasons[name] = reason


def find_images(inputs: list[str]) -> tuple[list[str], dict[str, str]]:
    """Files as named, and the images in folders and folders below them, in order of their names.

    Returns:
        paths, and for each folder that has none or cannot be read, why.
    """
    paths, bad = [], {}
    for given in inputs:
        if not os.path.isdir(given):
            paths.append(given)
            continue
        errors: list[OSError] = []
        found = []
        for folder, folders, names in os.walk(given, onerror=errors.append):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            found += [
                os.path.join(folder, name)
                for name in sorted(names)
                if name[0] != "." and name.lower().endswith(EXTENSIONS)
            ]
        bad |= {str(error.filename): error.strerror or str(error) for error in errors}
        if not found and not errors:
            bad[given] = "no images in this folder"
        paths += found
    return paths, bad


def whole_images(config: Config) -> bool:
    """Whether nothing is cropped in validation: the kinds of data whose images are small squares."""
    return config.data.kind in ("shapes", "cifar10", "cifar100")


def batches(config: Config, source, batch_size: int, bad: Bad) -> Iterator[tuple[list[int], np.ndarray]]:
    """Images prepared as for validation, of a run's source or `Files`.

    Yields:
        places of the good ones in the batch, and uint8 (batch_size, S, S, 3), in which the others are black.
    """
    if whole_images(config):
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval_crop": 1.0})})
    for images, labels, _, _ in batches_of(config, source, 1, False, batch_size=batch_size, broken=bad)():
        yield np.flatnonzero(labels != PADDING).tolist(), images
