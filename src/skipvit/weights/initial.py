"""Weights to start a run from: those of another run, a checkpoint or timm's, fitted to the run's network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.engine import checkpoint
from skipvit.models.positions import resized_positions
from skipvit.util.errors import RunError, UsageError
from skipvit.weights.convert import HEAD, OUR_ENDING, TIMM_ENDING, Geometry, check, from_timm, read_safetensors

TIMM_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Found:
    """Weights as they were found, in our layout.

    Attributes:
        note: what had to be done to read them, or "".
        run: configuration of the run that trained them; None if it is not known.
        classes: names of that run's classes; None if they are not known.
    """

    path: Path
    weights: dict[str, np.ndarray]
    shape: Geometry
    note: str
    run: Config | None = None
    classes: tuple[str, ...] | None = None


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
        RunError: a damaged file, or weights of something else than a plain ViT.
    """
    if not config.init.weights:
        return None
    found = find(Path(config.init.weights), config.init.averaged)
    refuse_other_network(config, found)
    return fitted(config, found, classes)


def find(path: Path, averaged: bool) -> Found:
    """Read a run's folder, a checkpoint or timm's weights. Raises as `read_initial`."""
    if not path.exists():
        raise UsageError(f"init.weights: {path}: no such file or folder")
    path = checkpoint_of_run(path) if path.is_dir() else path
    if path.suffix not in (OUR_ENDING, TIMM_ENDING):
        raise UsageError(
            f"init.weights: {path} is neither a run's folder nor a {OUR_ENDING} or {TIMM_ENDING} file; save other weights as {TIMM_ENDING} first"
        )
    if path.suffix == TIMM_ENDING:
        params, note = read_safetensors(path)
        shape = check(params, True, path, headless=True)
        return Found(path, from_timm(params), shape, note)
    entries = checkpoint.read(path)
    averaged = averaged and checkpoint.averages(entries)
    weights = checkpoint.weights_of(entries, averaged)
    shape = check(weights, False, path, headless=True)
    return Found(path, weights, shape, "averaged weights" if averaged else "", run_of(path), classes_of(path))


def checkpoint_of_run(folder: Path) -> Path:
    """The best checkpoint of a run's folder, else the newest. Raises UsageError if there is none."""
    best = folder / "checkpoints" / checkpoint.BEST
    candidates = [best] if best.exists() else checkpoint.saved(folder / "checkpoints")
    if not candidates:
        raise UsageError(
            f"init.weights: {folder}: no checkpoint in it; name a run's folder, a {OUR_ENDING} or a {TIMM_ENDING} file"
        )
    return candidates[-1]


def run_of(path: Path) -> Config | None:
    """The configuration of the run in whose folder a checkpoint lies."""
    file = path.parent.parent / "config.yaml"
    return load_config(file) if path.parent.name == "checkpoints" and file.is_file() else None


def classes_of(path: Path) -> tuple[str, ...] | None:
    """The names of the classes of the run in whose folder a checkpoint lies, if it has noted them."""
    try:
        names = json.loads((path.parent.parent / "classes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) else None


def refuse_other_network(config: Config, found: Found) -> None:
    """Raises UsageError for what cannot be fitted, with both values; RunError for numbers that cannot be trained from."""
    size, there = config.model.spec(), found.shape
    if there.patch != size.patch:
        raise UsageError(
            f"{found.path}: its patches are {there.patch} pixels wide, model.patch is {size.patch}: the patch projection has a "
            f"weight for every pixel of a patch and fits no other; set --model.patch {there.patch}"
        )
    heads = found.run.model.spec().heads if found.run else size.heads  # weights do not tell
    for key, here, value in (
        ("width", size.width, there.width),
        ("depth", size.depth, there.depth),
        ("heads", size.heads, heads),
    ):
        if here != value:
            raise UsageError(
                f"{found.path}: {key} {value} there, model.{key} {here} here; set model.name or --model.{key} {value}"
            )
    for name, value in found.weights.items():
        if not np.isfinite(value).all():
            raise RunError(
                f"{found.path}: {name} holds numbers that are not finite; use an older checkpoint or other weights"
            )


def fitted(config: Config, found: Found, classes: tuple[str, ...] | None) -> Initial:
    """The weights with a position embedding for the images' size, and without a head for other classes."""
    model, weights = config.model, dict(found.weights)
    done = [note for note in (found.note,) if note]
    grid = model.spec().grid()
    if grid != found.shape.grid:
        weights["pos_embed"] = resized_positions(weights["pos_embed"], grid)
        done.append(
            f"position embedding resized from {found.shape.grid} x {found.shape.grid} to {grid} x {grid} (bicubic)"
        )
    others = None not in (classes, found.classes) and tuple(classes) != found.classes
    if config.init.head == "new" or found.shape.classes != model.num_classes or others:
        weights = {name: value for name, value in weights.items() if name not in HEAD}
        had = f"{found.shape.classes} {'other ' * others}classes" if found.shape.classes else "none"
        done.append(f"head new ({model.num_classes} classes; there: {had})")
    if config.optim.train == "head":
        done.append("all but the head frozen")
    weights = {name: value.astype(np.float32, copy=False) for name, value in weights.items()}
    line = f"starting from {found.path}: {len(weights)} arrays loaded" + "".join(f", {part}" for part in done)
    return Initial(weights, line, doubts(config, found))


def doubts(config: Config, found: Found) -> tuple[str, ...]:
    """What the weights themselves do not tell and may be wrong."""
    size = config.model.spec()
    gelu = size.gelu
    result = []
    if found.run and found.run.model.spec().gelu != gelu:
        result.append(f"{found.path} was trained with model.gelu {found.run.model.spec().gelu}, this run has {gelu}")
    if not found.run and gelu == "tanh":
        result.append(
            f"{found.path}: timm's and DeiT's weights are trained with the erf GELU, this run has tanh; use --model.gelu erf"
        )
    if found.path.suffix == TIMM_ENDING and size.width != TIMM_HEAD_WIDTH * size.heads:
        result.append(
            f"{found.path} does not tell its number of heads; timm's and DeiT's are {TIMM_HEAD_WIDTH} wide, model.heads {size.heads} "
            f"makes them {size.width // size.heads} wide"
        )
    return tuple(result)
