"""A trained network ready to answer, for `skipvit predict` and `skipvit export`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.cli.eval import checkpoint_of
from skipvit.config.config import Config, OneLineParser
from skipvit.data.open import open_source
from skipvit.data.sources.shapes import CLASSES
from skipvit.engine import checkpoint
from skipvit.engine.build import build_network
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
