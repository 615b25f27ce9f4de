"""Weights to start a run from: those of another run, a checkpoint or timm's, fitted to the run's network."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from skipvit.config.config import Config
from skipvit.data.classes import numbered
from skipvit.models.positions import resized_positions
from skipvit.runs.run import Run, run_of
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded, read_json
from skipvit.weights.files import HEAD, TIMM, Weights, read_weights

TIMM_HEAD_WIDTH = 64
SAME = ("width", "widths", "depth", "depths", "window", "reductions", "mlp_ratios")  # numbers that weights must share


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
    path = expanded(config.init.weights)
    try:
        path = Run(path).checkpoint("best") if path.is_dir() else path
        found = read_weights(path, config.model.spec(), config.init.averaged, headless=True)
    except UsageError as error:
        raise UsageError(f"init.weights: {error}") from None
    run = None if path.suffix == TIMM else run_of(path)
    refuse_other_network(config, path, found, run)
    return fitted(config, path, found, run, classes)


def classes_of_card(path: Path, count: int) -> tuple[str, ...] | None:
    """Names of the classes in the card that `skipvit export` wrote beside weights; None where it does not tell them."""
    card = read_json(path.with_name(f"{path.name}.json"))
    names = card.get("classes") if isinstance(card, dict) else None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if names != [f"class {i}" for i in range(count)] else None


def refuse_other_network(config: Config, path: Path, found: Weights, run: Run | None) -> None:
    """Raises UsageError for what cannot be fitted, with both values; RunError for weights that are not finite."""
    here, there = config.model.spec(), found.spec
    if there.patch != here.patch:
        raise UsageError(
            f"{path}: its patches are {there.patch} pixels wide, model.patch is {here.patch}: the patch "
            f"projection has a weight for every pixel of a patch and fits no other; set --model.patch {there.patch}"
        )
    numbers = {key: (getattr(here, key), getattr(there, key)) for key in SAME if hasattr(here, key)}
    numbers["heads"] = here.heads, run.config.model.spec().heads if run else here.heads  # weights do not tell
    for name, (mine, value) in numbers.items():
        if mine != value:
            key = name if name == "heads" else name.removesuffix("s")
            mine, value = (str(number).replace(" ", "").strip("()") for number in (mine, value))
            raise UsageError(
                f"{path}: {key} {value} there, model.{key} {mine} here; set model.name or --model.{key} {value}"
            )
    for name, value in found.arrays.items():
        if not np.isfinite(value).all():
            raise RunError(f"{path}: {name} holds numbers that are not finite; use an older checkpoint")


def fitted(config: Config, path: Path, found: Weights, run: Run | None, classes: tuple[str, ...] | None) -> Initial:
    """The weights with a position embedding for the images' size, and with the head's rows of the run's own classes."""
    here, there, weights, done = config.model.spec(), found.spec, dict(found.arrays), []
    if found.averaged:
        done.append("averaged weights")
    if found.widened:
        done.append(f"widened to float32: {found.widened} arrays of 16 bits")
    for name, prefix in here.positions().items():
        old, new = (isqrt(shape[1] - prefix) for shape in (weights[name].shape, here.shapes()[name]))
        if old != new:
            weights[name] = resized_positions(weights[name], new, prefix)
            done.append(f"position embedding resized from {old} x {old} to {new} x {new} (bicubic)")
    names = run.classes if run else classes_of_card(path, there.num_classes)
    rows, said = head_rows(config, there.num_classes, names, classes)
    for name in HEAD:
        value = weights.pop(name, None)
        if rows is not None and value is not None:
            weights[name] = value[rows]
    done += [said] if said else []
    if config.optim.train == "head":
        done.append("all but the head frozen")
    line = ", ".join([f"starting from {path}: {len(weights)} arrays loaded", *done])
    return Initial(weights, line, doubts(config, path, run))


def head_rows(
    config: Config, there: int, names: tuple[str, ...] | None, classes: tuple[str, ...] | None
) -> tuple[np.ndarray | None, str]:
    """Which rows of a head of so many classes, which may have names, the run's classes take, None for a new head; and
    what to say of it.

    Where both sides' names are known, each class takes its own row if all are there; else there must be as many.
    """
    count, known = config.model.num_classes, not numbered(classes) and not numbered(names)
    if config.init.head == "auto" and there:
        if classes and names and known and set(classes) <= set(names):
            rows = np.array([names.index(name) for name in classes])
            return rows, "" if classes == names else f"head's rows by name ({count} of {there} classes)"
        if not known and count == there:
            return np.arange(count), ""
    had = f"{there} {'other ' if known and count == there else ''}classes" if there else "none"
    return None, f"head new ({count} classes; there: {had})"


def doubts(config: Config, path: Path, run: Run | None) -> tuple[str, ...]:
    """What the weights themselves do not tell and may be wrong."""
    here, result = config.model.spec(), []
    there = run.config.model.spec() if run else None
    if there and there.gelu != here.gelu:
        result.append(f"{path} was trained with model.gelu {there.gelu}, this run has {here.gelu}")
    if not there and here.gelu == "tanh":
        result.append(
            f"{path}: timm's and DeiT's weights are trained with the erf GELU, this run has tanh; use --model.gelu erf"
        )
    if path.suffix == TIMM and isinstance(here.heads, int) and here.width != TIMM_HEAD_WIDTH * here.heads:
        result.append(
            f"{path} does not tell its number of heads; timm's and DeiT's are {TIMM_HEAD_WIDTH} wide, "
            f"model.heads {here.heads} makes them {here.width // here.heads} wide"
        )
    return tuple(result)
