"""What a report has to run the networks for: dense weights along the routes, and kept patches over training."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mindspore import nn
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.data.open import batches_of, open_source, sample
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.engine import checkpoint, devices
from skipvit.engine.build import build_forward, build_network
from skipvit.engine.metrics import Accuracy, evaluate
from skipvit.lab.intervals import Mean, mean_of
from skipvit.lab.report.figures import kept_figure
from skipvit.lab.report.origin import fingerprint, load, save
from skipvit.lab.report.page import Block, Heading, Plot, Table, Text, to_png
from skipvit.lab.study import Arm, Outcome, Study
from skipvit.routing.program import Score, kept_positions

FILE = "weights.json"
IMAGES = 6  # of which the kept patches are drawn
MOST_FIGURES = 8  # methods whose kept patches are drawn

Matrix = dict[str, Mean]  # top-1 of dense weights along an arm's routes, by label
Kept = dict[str, bytes]  # a PNG file by label


def along(arm: Arm) -> str | None:
    """The forward with routes that an arm is evaluated along; None if there is none."""
    return next((name for name in arm.config.evaluated() if arm.config.forwards()[name].routes), None)


def measure(study: Study) -> None:
    """Evaluate the dense network's weights along the routes of each arm, and draw what each arm keeps of some images in
    the checkpoints of its first seed; written into the study's folder.

    Raises:
        UsageError, RunError: a checkpoint is gone or damaged.
    """
    device, _ = devices.start(study.arms[0].config.device)
    found: dict[str, Any] = {"dense_weights_routed": {}, "kept": {}}
    for arm in tqdm(study.arms, desc="weights", unit="method", disable=None, leave=False):
        name, base = along(arm), study.dense_of(arm)
        if name is None:
            continue
        network = build_network(arm.config, device)
        if base is not None:
            found["dense_weights_routed"][arm.label] = dense_weights_routed(network, device, name, arm, base)
        drawn = max(arm.runs.values(), key=lambda run: len(run.run.checkpoints()))  # the sweep keeps more of one seed's
        paths, steps = drawn.run.checkpoints(), arm.config.program(name).steps
        attention = next(step for step in steps if isinstance(step, Score)).scorer.reads
        if len(paths) > 1 and attention and len(found["kept"]) < MOST_FIGURES:
            figure = kept_over_training(network, device, name, drawn.run.config, paths)
            png = base64.b64encode(to_png(figure)).decode()
            found["kept"][arm.label] = {"png": png} | of_checkpoint(drawn, paths[-1])
    save(study.folder / FILE, device, found)


def dense_weights_routed(network: nn.Cell, device: str, name: str, arm: Arm, base: Arm) -> list[dict[str, Any]]:
    """For each seed, top-1 of weights that were trained dense, along a forward of the arm."""
    step, result = Accuracy(build_forward(arm.config, device, network, name)), []
    for seed in sorted(set(arm.runs) & set(base.runs)):
        config, trained = arm.runs[seed].run.config, base.runs[seed]
        path = trained.run.checkpoint()
        checkpoint.restore_weights(path, network, averaged=base.forward.endswith("_ema"))
        source = open_source(config, "val", classes=trained.run.classes)
        batches = batches_of(config.at_size(config.forwards()[name].image_size), source, config.noise_width(), False)
        top1 = evaluate(step, batches, label=f"{base.label}, seed {seed}, along {arm.label}").top1
        result.append({"top1": top1} | of_checkpoint(trained, path))
    return result


def kept_over_training(network: nn.Cell, device: str, name: str, config: Config, paths: list[Path]) -> Figure:
    """What the first route of a forward keeps of some validation images, by epoch."""
    source, select = open_source(config, "val"), config.program(name).selections[0]
    images, _, noise = sample(
        config.at_size(config.forwards()[name].image_size), source, evenly_spaced(source, IMAGES), config.noise_width()
    )
    slots = f"routes.{select.route}.slots"
    forward, kept = build_forward(config, device, network, name, [slots]), {}
    for path in paths:
        position = checkpoint.read_run(path).position
        if position.step == position.steps:  # not saved within an epoch
            checkpoint.restore_weights(path, network)
            kept[position.epoch + 1] = kept_positions(forward.by_name(images, noise)[slots], select.after)
    return kept_figure(images, kept, config.model.spec().grid(images.shape[1]))


def of_checkpoint(run: Outcome, path: Path) -> dict[str, Any]:
    """What says later whether it is still the same."""
    return {"seed": run.seed, "checkpoint": path.name, "weights": fingerprint(run.run, path)}


class StillTrue:
    """Whether what was measured of a run is of the weights that its folder holds; remembers the runs of which not."""

    def __init__(self):
        self.since: set[str] = set()

    def __call__(self, arm: Arm | None, value: dict[str, Any]) -> bool:
        found = arm.runs.get(value["seed"]) if arm else None
        if found is None:
            return False
        path = found.run.path / "checkpoints" / value["checkpoint"]
        # Where all checkpoints have been removed nothing says otherwise.
        same = fingerprint(found.run, path) == value["weights"] if path.exists() else not found.run.checkpoints()
        self.since.update([] if same else [found.run.path.name])
        return same

    def left_out(self, file: str, option: str) -> list[str]:
        """A line about runs that were trained since, if there are."""
        names = ", ".join(sorted(self.since))
        return [f"{file}: trained since, and so left out: {names}; `{option}` measures again."] if names else []


def read(study: Study, device: str) -> tuple[Matrix, Kept, list[str]]:
    """What `measure` wrote, and a line for what is left out: all of it, or what is of runs that were trained since."""
    true = StillTrue()

    def parse(found: dict[str, Any]) -> tuple[Matrix, Kept]:
        matrix: Matrix = {}
        kept: Kept = {}
        for arm in study.arms:
            values = [v for v in found["dense_weights_routed"].get(arm.label, []) if true(study.dense_of(arm), v)]
            if values:
                matrix[arm.label] = mean_of(_percent(value["top1"]) for value in values)
            drawn = found["kept"].get(arm.label)
            if drawn and true(arm, drawn):
                kept[arm.label] = base64.b64decode(drawn["png"])
        return matrix, kept

    found, left_out = load(study.folder / FILE, device, "--weights", parse)
    matrix, kept = found or ({}, {})
    return matrix, kept, left_out + true.left_out(FILE, "--weights")


def _percent(value: float) -> float:
    if not 0 <= value <= 100:  # nor is a NaN
        raise ValueError(f"{value} is no percentage")
    return value


def weights_blocks(study: Study, matrix: Matrix, kept: Kept) -> list[Block]:
    """Trained {dense, with routes} x evaluated {dense, routed}; kept patches over training."""
    rows = []
    for arm in study.arms:
        base, found, name = study.dense_of(arm), arm.evaluations(), along(arm)
        if name is not None and base is not None:
            cells = base.top1, matrix.get(arm.label), found.get("dense"), found.get(name)
            rows.append([arm.label, *(cell.text() if cell else "–" for cell in cells)])
    if not rows:
        return []
    heads = [f"trained {a}, evaluated {b}" for a in ("dense", "with routes") for b in ("dense", "routed")]
    result: list[Block] = [Heading("Trained and evaluated, dense and routed"), Table(["routes of", *heads], rows)]
    if not matrix:
        how = "`skipvit report FOLDER --weights` does."
        result.append(Text([f"Dense weights along the routes were not evaluated: {how}"]))
    if kept:
        result.append(Heading("Kept patches over training"))
    for label, png in kept.items():
        caption = f"{label}: what its first route keeps of validation images in the course of training, first seed."
        result.append(Plot(f"kept_{label}", png, caption))
    return result
