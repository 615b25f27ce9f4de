"""A forward: a backbone's cell walked along a program. Read `models/vit.py` for what the blocks compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.routing.program import Program
from skipvit.routing.scorers import cls_row, of_patches
from skipvit.routing.select import SELECTORS, Formulation


class Forward(nn.Cell):
    """One forward of a network, unrolled into a static graph when it is compiled. Forwards share the network's
    parameters.

    All randomness comes in from outside as noise, so a step can be repeated exactly: uniform numbers in [0, 1), columns
    2 i and 2 i + 1 for the drop path of block i, then those of the routes' scorers.

    Args:
        network: a backbone's cell, e.g. `models.vit.ViT`.
        program: what to compute.
        formulation: of the selections, see `routing.select`.
        outputs: names of the values to return, of `program.makes`.
        seed: of the noise where none is given.

    Raises:
        ValueError: a name that the program does not make.
    """

    def __init__(
        self,
        network: nn.Cell,
        program: Program,
        formulation: Formulation = "gather",
        outputs: Iterable[str] = ("logits",),
        seed: int = 0,
    ):
        super().__init__(auto_prefix=False)
        self.network, self.program, self.formulation, self.outputs = network, program, formulation, tuple(outputs)
        for name in self.outputs:
            if name not in program.makes:
                raise ValueError(f"value {name!r} is not made here; there are {', '.join(program.makes)}")
        self.steps: tuple[Any, ...] = program.steps
        self.noise_width = program.noise_width
        self.selectors = nn.CellList([SELECTORS[formulation](step) for step in program.selections])
        # Nothing in an image's result depends on the other images of its batch.
        self.fixed_noise = Tensor(np.random.default_rng(seed).random((1, program.noise_width), np.float32))
        layouts = [step.after for step in program.steps if step.kind in ("embed", "downsample")]
        self.places = tuple(Tensor(np.arange(x.patches, dtype=np.float32)[None] + x.prefix) for x in layouts)

    def construct(self, images, noise=None):
        """What was asked for, by default the logits, float32 or float16 (B, classes).

        Args:
            images: (B, S, S, 3), uint8, or float that is normalised already.
            noise: float32 (B, at least noise_width); None: the same for every image.
        """
        if noise is None:
            noise = ops.BroadcastTo((images.shape[0], self.noise_width))(self.fixed_noise)
        seen = self.walk(images, noise)
        if len(self.outputs) == 1:
            return seen[self.outputs[0]]
        result = ()
        for name in self.outputs:
            result = result + (seen[name],)
        return result

    def walk(self, x, noise):
        """Every value that the program makes, by name. What a graph does not use is not computed."""
        seen, signals, stage, latest, where = {}, {}, 0, 0, None
        before, mask, entered, ranking, weights = x, x, x, x, x
        slots = self.in_place(0, x.shape[0])
        slots_before = slots
        for step in self.steps:
            if step.kind == "embed":
                x = self.network.embed(x)
                seen["embed"] = x
            elif step.kind == "downsample":
                stage, x = step.stage, self.network.to_stage(step.stage, x)
                slots = self.in_place(stage, x.shape[0])
            elif step.kind == "attend":
                entered, latest = x, step.block
                x, signals = self.network.blocks[step.block].attend(x, noise, where)
                if step.before.prefix:
                    row = ops.ReduceMean()(cls_row(signals, step.before), 1)
                    seen[f"blocks.{step.block}.cls_attention"] = row
            elif step.kind == "feed":
                x = self.network.blocks[step.block].feed(x, noise, where)
                seen[f"blocks.{step.block}"] = x
            elif step.kind == "score":
                told = self.told(step, latest, signals, entered, x)
                ranking, weights = self.score(step, told, noise)
                seen[step.name] = ranking
            elif step.kind == "select":
                select = self.selectors[step.route]
                before, slots_before, mask = x, slots, select.mask(ranking)
                x = step.carrier.enter(select, x, mask, weights)
                where = self.network.locate(select, mask)
                slots = moved(slots, step.carrier.places(select, mask))
                seen[f"routes.{step.route}.slots"] = slots
            elif step.kind == "rescore":
                # The next scorer ranks every token, so what it reads must cover those that bypassed this block too.
                entered = self.put_back(step, entered, before, mask)
                if step.asks_attention:
                    signals = self.network.blocks[step.block].signals_of(entered, signals, step.reads)
            elif step.kind == "restore":
                x, slots, where = self.put_back(step, x, before, mask), slots_before, None
            elif step.kind == "norm":
                x = self.network.norm(x)
                seen["norm"] = x
            elif step.kind == "head":
                seen["logits"] = self.network.classify(x)
        return seen

    def in_place(self, stage, batch):
        """The slots of a stage's patches where all are in their places: float32 (B, patches)."""
        places = self.places[stage]
        return ops.BroadcastTo((batch, places.shape[1]))(places)

    def told(self, step, latest, signals, entered, x):
        """What a scorer reads, by name, see `routing.scorers`; latest: the block before."""
        told = {}
        for name in step.scorer.reads:
            if name == "cls_row":
                told["cls_row"] = cls_row(signals, step.before)
            elif name == "received":
                told["received"] = self.network.blocks[latest].received(signals, step.before)
            elif name == "tokens":
                told["tokens"] = patches_of(x, step.before)
            elif name == "entered":
                told["entered"] = patches_of(entered, step.before)
            else:
                told[name] = of_patches(signals[name], step.before)
        return told

    def score(self, step, told, noise):
        """Ranking and weights, float32 (B, patches) each; no gradient flows back."""
        if step.noise_columns:
            noise = ops.Slice()(noise, (0, step.first_noise), (noise.shape[0], step.noise_columns))
        ranking, weights = step.scorer.score(step, told, noise, self.training)
        return ops.stop_gradient(ranking), ops.stop_gradient(weights)

    def put_back(self, step, inside, before, mask):
        """The tokens of a route's span among those that did not stay."""
        return step.carrier.leave(self.selectors[step.route], inside, before, mask)

    def by_name(self, images: np.ndarray, noise: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What was asked for, as arrays under its names; the network evaluates."""
        training = self.network.training  # other forwards share it
        self.set_train(False)
        found = self(Tensor(images), None if noise is None else Tensor(noise))
        self.set_train(training)
        values = (found,) if len(self.outputs) == 1 else found
        return {name: value.asnumpy() for name, value in zip(self.outputs, values)}


def patches_of(x, layout):
    """The patch tokens of a sequence (B, N, D): (B, patches, D)."""
    return ops.Slice()(x, (0, layout.prefix, 0), (x.shape[0], layout.patches, x.shape[2]))


def moved(slots, places):
    """Where each patch of the image is after a selection: float32 (B, patches), -1 for nowhere.

    Args:
        slots: where it was, the same.
        places: where each token of the sequence goes, float32 (B, sequence).
    """
    there = ops.GatherD()(places, 1, ops.Cast()(ops.Maximum()(slots, 0.0), ms.int32))
    return ops.Select()(ops.GreaterEqual()(slots, 0.0), there, slots)
