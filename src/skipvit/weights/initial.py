"""Weights to start a run from: those of another run, a checkpoint or timm's, fitted to the run's network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from skipvit.config.config import Config
from skipvit.models.positions import resized_positions
from skipvit.runs.run import Run, run_of
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded, read_json
from skipvit.weights.files import TIMM, Weights, read_weights
from skipvit.weights.layout import HEAD, check

TIMM_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Found:
    """Weights as they were found, in our layout.

    Attributes:
        spec: of the network that they are of; of its heads they tell nothing.
        file: what was in the file, for what is said of it.
        run: the run that trained them; None if it is not known.
    """

    path: Path
    weights: dict[str, np.ndarray]
    spec: Any
    file: Weights
    run: Run | None

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.run.classes if self.run else classes_of_card(self.path, self.spec.num_classes)


@dataclass(frozen=True)
class Initial:
    """Weights that fit a run's network; what is not among them stays as it was drawn.

    Attributes:
        line: what was loaded, resized, left new, frozen.
        warnings: what fits and may yet be wrong, a line each.
    """

    weights: dict[str, np.ndarray]
    line: str
    warnings: tuple[str, ...]

    def load(self, network: nn.Cell) -> None:
        """Put them into a network; before anything copies its weights (averages) or compiles it."""
        parameters = network.parameters_dict()
        for name, value in self.weights.items():
            parameters[name].set_data(Tensor(value))


def read_initial(config: Config, classes: tuple[str, ...] | None = None) -> Initial | None:
    """The weights that a configuration starts from; None if it draws them.

    Args:
        classes: names of the classes to train, if they are known.

    Raises:
        UsageError: nothing is there, or it is of another width, depth, heads or patch.
        RunError: a damaged file, or weights of something else than the configuration's kind of network.
    """
    if not config.init.weights:
        return None
    found = find(config, expanded(config.init.weights))
    refuse_other_network(config, found)
    return fitted(config, found, classes)


def find(config: Config, path: Path) -> Found:
    """Read a run's folder, a checkpoint or timm's weights. Raises as `read_initial`."""
    try:
        path = Run(path).checkpoint("best") if path.is_dir() else path
        file = read_weights(path, config.init.averaged)
    except UsageError as error:
        raise UsageError(f"init.weights: {error}") from None
    timm = path.suffix == TIMM
    spec = check(file.arrays, config.model.spec(), timm, path, headless=True)
    weights = spec.from_timm(file.arrays) if timm else file.arrays
    return Found(path, weights, spec, file, None if timm else run_of(path))


def classes_of_card(path: Path, count: int) -> tuple[str, ...] | None:
    """Names of the classes in the card that `skipvit export` wrote beside weights; None where it does not tell them."""
    card = read_json(path.with_name(f"{path.name}.json"))
    names = card.get("classes") if isinstance(card, dict) else None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if names != [f"class {i}" for i in range(count)] else None


def refuse_other_network(config: Config, found: Found) -> None:
    """Raises UsageError for what cannot be fitted, with both values; RunError for weights that are not finite."""
    here, there = config.model.spec(), found.spec
    if there.patch != here.patch:
        raise UsageError(
            f"{found.path}: its patches are {there.patch} pixels wide, model.patch is {here.patch}: the patch "
            f"projection has a weight for every pixel of a patch and fits no other; set --model.patch {there.patch}"
        )
    heads = found.run.config.model.spec().heads if found.run else here.heads  # weights do not tell
    numbers = {"width": (here.width, there.width), "depth": (here.depth, there.depth), "heads": (here.heads, heads)}
    for key, (mine, value) in numbers.items():
        if mine != value:
            raise UsageError(
                f"{found.path}: {key} {value} there, model.{key} {mine} here; set model.name or --model.{key} {value}"
            )
    for name, value in found.weights.items():
        if not np.isfinite(value).all():
            raise RunError(f"{found.path}: {name} holds numbers that are not finite; use an older checkpoint")


def fitted(config: Config, found: Found, classes: tuple[str, ...] | None) -> Initial:
    """The weights with a position embedding for the images' size, and with the head's rows of the run's own classes."""
    here, there, weights, done = config.model.spec(), found.spec, dict(found.weights), []
    if found.file.averaged:
        done.append("averaged weights")
    if found.file.widened:
        done.append(f"widened to float32: {found.file.widened} arrays of 16 bits")
    if here.grid() != there.grid():
        weights["pos_embed"] = resized_positions(weights["pos_embed"], here.grid(), here.prefix)
        sides = f"from {there.grid()} x {there.grid()} to {here.grid()} x {here.grid()}"
        done.append(f"position embedding resized {sides} (bicubic)")
    rows, said = head_rows(config, found, classes)
    weights = {name: value for name, value in weights.items() if name not in HEAD}
    weights |= {name: found.weights[name][rows] for name in HEAD if rows is not None}
    done += [said] if said else []
    if config.optim.train == "head":
        done.append("all but the head frozen")
    line = ", ".join([f"starting from {found.path}: {len(weights)} arrays loaded", *done])
    return Initial(weights, line, doubts(config, found))


def head_rows(config: Config, found: Found, classes: tuple[str, ...] | None) -> tuple[np.ndarray | None, str]:
    """Which rows of the head that was found the run's classes take, None for a new head; and what to say of it.

    Where both sides' names are known, each class takes its own row if all are there; else there must be as many.
    """
    count, there, names = config.model.num_classes, found.spec.num_classes, found.classes
    known = not numbered(classes) and not numbered(names)
    if config.init.head == "auto" and there:
        if classes and names and known and set(classes) <= set(names):
            rows = np.array([names.index(name) for name in classes])
            return rows, "" if classes == names else f"head's rows by name ({count} of {there} classes)"
        if not known and count == there:
            return np.arange(count), ""
    had = f"{there} {'other ' if known and count == there else ''}classes" if there else "none"
    return None, f"head new ({count} classes; there: {had})"


def numbered(classes: tuple[str, ...] | None) -> bool:
    """Whether classes have no names but their numbers."""
    return not classes or list(classes) == [str(i) for i in range(len(classes))]


def doubts(config: Config, found: Found) -> tuple[str, ...]:
    """What the weights themselves do not tell and may be wrong."""
    here, result = config.model.spec(), []
    if found.run:
        there = found.run.config.model.spec()
        if there.gelu != here.gelu:
            result.append(f"{found.path} was trained with model.gelu {there.gelu}, this run has {here.gelu}")
    elif here.gelu == "tanh":
        result.append(
            f"{found.path}: timm's and DeiT's weights are trained with the erf GELU, this run has tanh; "
            f"use --model.gelu erf"
        )
    if found.path.suffix == TIMM and here.width != TIMM_HEAD_WIDTH * here.heads:
        result.append(
            f"{found.path} does not tell its number of heads; timm's and DeiT's are {TIMM_HEAD_WIDTH} wide, "
            f"model.heads {here.heads} makes them {here.width // here.heads} wide"
        )
    return tuple(result)
