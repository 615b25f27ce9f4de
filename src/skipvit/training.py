"""Train a run: everything from a configuration to a finished folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mindspore import nn

from skipvit.config.config import Config, to_yaml
from skipvit.config.reading import load_config
from skipvit.data.open import fingerprints, open_sources, sample
from skipvit.data.order import Shard, training_steps
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.engine import checkpoint, devices
from skipvit.engine.build import build_forward, build_network, build_optimizer, build_state
from skipvit.engine.checkpoint import Checkpoint, Position
from skipvit.engine.loop import Splits, Trainer
from skipvit.engine.profiling import ProfileSteps
from skipvit.insight.figures import kept_figure
from skipvit.models.arithmetic import forward_macs
from skipvit.routing.program import kept_positions
from skipvit.runs import events
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import Run, by_epoch, read_records
from skipvit.runs.summary import as_text, summary
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import expanded, replacing, write_whole
from skipvit.util.log import log
from skipvit.util.text import as_json, one_line
from skipvit.weights.initial import Initial, read_initial

Resume = Literal["never", "auto"]
SHOWN = 16  # images of which the kept patches are drawn


def train(config: Config, runs: str | Path = "runs", resume: Resume = "never", profile: bool = False) -> Run:
    """Train a network as a configuration says, into the folder `runs`/`config.name`.

    Args:
        resume: auto: go on from the newest checkpoint of a run that was begun.
        profile: write MindSpore's trace of ten steps into the run's folder.

    Raises:
        UsageError: something that the configuration asks for is not there; a folder that exists, or another process
            trains in.
        RunError: images, machine or training failed.
        Stopped: by SIGTERM or Ctrl-C, after saving.
    """
    device, shard = devices.start(config.device, config.deterministic)
    folder, going_on = run_folder(config, runs, resume, shard)
    splits = open_splits(config, runs)
    begin: Checkpoint | Initial | None = None
    if not going_on:
        training_steps(len(splits.train), config.data.batch_size, shard, config.optim.accumulate)
        begin = read_initial(config, splits.train.classes)
    folder.claim()
    try:
        if going_on:  # only now that no other process can go on with it
            begin = newest_checkpoint(folder, config, splits) or read_initial(config, splits.train.classes)
        elif folder.writes and folder.begun():
            raise UsageError(f"{folder.path}: another process has begun it meanwhile; choose another --name")
        if isinstance(begin, Checkpoint) and begin.position.images != config.update_images(shard.world_size):
            config = redivided(config, begin.position.images, shard)
        steps = training_steps(len(splits.train), config.data.batch_size, shard, config.optim.accumulate)
        _train(config, folder, begin, splits, device, shard, steps, profile)
    finally:
        folder.release()
    return Run(folder.path)


def check(config: Config, runs: str | Path = "runs", resume: Resume = "never", shard: Shard = Shard()) -> None:
    """Raise what a run would raise before its first step, without a device: folder, images, weights, disk."""
    folder, going_on = run_folder(config, runs, resume, shard)
    if going_on:
        refuse_changed(folder, config)
        folder.claim()  # refused if another process trains in it
        folder.release()
    splits = open_splits(config, runs)
    if not going_on:
        training_steps(len(splits.train), config.data.batch_size, shard, config.optim.accumulate)
        read_initial(config, splits.train.classes)
    folder.refuse_no_room(checkpoint_bytes(config), min(config.checkpoint.keep, config.optim.epochs))


def checkpoint_bytes(config: Config) -> int:
    """Of a checkpoint: weights, and of those that are trained two moments and the average."""
    spec = config.model.spec()
    sizes = {name: int(np.prod(shape)) for name, shape in spec.shapes().items()}
    trained = sum(size for name, size in sizes.items() if config.optim.train == "all" or name.startswith("head."))
    return 4 * (sum(sizes.values()) + (3 if config.ema.decay else 2) * trained)


def run_folder(config: Config, runs: str | Path, resume: Resume, shard: Shard) -> tuple[RunFolder, bool]:
    """The folder of the run, and whether to go on with what is in it."""
    if config.log.tensorboard:
        events.require()
    folder = RunFolder(expanded(runs) / config.name, writes=shard.rank == 0)
    going_on = resume == "auto" and folder.begun()
    if not going_on:
        folder.refuse_existing(resume == "auto")
    return folder, going_on


def open_splits(config: Config, runs: str | Path) -> Splits:
    """Training and validation images."""
    splits = open_sources(config, expanded(runs) / ".index")
    return Splits(*splits, *fingerprints(*splits))


def _train(
    config: Config,
    folder: RunFolder,
    begin: Checkpoint | Initial | None,
    splits: Splits,
    device: str,
    shard: Shard,
    steps: int,
    profile: bool,
) -> None:
    """Build everything, train to the end, write the summary.

    Args:
        begin: the state of this run to go on from, weights to start from, or None.
        steps: batches of an epoch.
    """
    network = build_network(config, device)
    if isinstance(begin, Initial):
        start_from(begin, network, shard)
    optimizer = build_optimizer(config, network, steps, shard.world_size)
    state = build_state(config, optimizer, device)
    profiler = [ProfileSteps(folder.path / "profile", device)] if profile else []
    sink = False if profile else None
    trainer = Trainer(config, device, network, optimizer, state, splits, folder, shard, profiler, sink)
    position = restored(begin, trainer, shard) if isinstance(begin, Checkpoint) else Position()
    refuse_disagreement(config, trainer, position, shard)
    folder.write_config(to_yaml(config))
    folder.write_classes(splits.train.classes)
    folder.note([sys.executable, *sys.argv])
    if config.log.tensorboard:
        folder.open_events()
    if shard.rank == 0:
        parameters, trained = (sum(p.size for p in some) for some in (network.get_parameters(), optimizer.parameters))
        part = f" ({trained:,} trained)" if trained < parameters else ""
        log.info(
            f"{config.name}: {parameters:,} parameters{part}, {len(splits.train)} training images, "
            f"{device} x {shard.world_size}, into {folder.path}"
        )
    try:
        trainer.run(position)
    finally:
        for callback in profiler:  # a run that is stopped leaves what there is
            callback.stop()
    if shard.rank == 0:
        finish(config, device, network, folder, splits, trainer.record)
    devices.sum_over_devices(np.zeros(1), shard)  # they end together: none misses another that is done


def refuse_changed(folder: RunFolder, config: Config) -> None:
    """Raises UsageError if a run that was begun has another configuration."""
    changed = config.changed_since(load_config(folder.config))
    if "optim.epochs" in changed:
        raise UsageError(
            f"{folder.path}: its config.yaml has another optim.epochs; to train longer, begin another run that starts "
            f"from this one: --name NAME --init.weights {folder.path}"
        )
    if changed:
        raise UsageError(
            f"{folder.path}: its config.yaml has another {changed[0]}; resume with the same config, or use --name"
        )


def newest_checkpoint(folder: RunFolder, config: Config, splits: Splits) -> Checkpoint | None:
    """The newest whole checkpoint of a run that has the same configuration and images; None if it has none yet."""
    refuse_changed(folder, config)
    best = folder.checkpoints / checkpoint.BEST
    candidates = [*reversed(checkpoint.saved(folder.checkpoints)), *([best] if best.exists() else [])]
    for path in candidates:
        try:
            found = checkpoint.read_run(path, config.model.spec().shapes())
        except checkpoint.Damaged as error:
            log.warning(str(error))
            continue
        if found.position.data not in (splits.fingerprint, splits.old_fingerprint):
            raise UsageError(
                f"{path}: its run has other training or validation images; resume with the same ones, or use --name"
            )
        if found.position.data != splits.fingerprint:
            log.warning(f"{path}: an older version's; only the labels of its training images are known to be these")
        if can_be(found.position, config, len(splits.train)):
            return found
        log.warning(f"{path}: not a checkpoint of this run (no such epoch, or updates); use an older one")
    if candidates:
        raise RunError(
            f"{folder.checkpoints}: no checkpoint in it can be read whole, see above; begin anew with another --name"
        )
    if folder.writes:
        log.info(f"{folder.path}: no checkpoint to go on from, beginning anew")
    return None


def can_be(position: Position, config: Config, images: int) -> bool:
    """Whether a run on so many training images comes to a position."""
    known = position.epoch < config.optim.epochs and 0 < position.images <= images
    return known and position.steps == images // position.images


def redivided(config: Config, images: int, shard: Shard) -> Config:
    """The configuration for another number of devices: an update takes the same images as before, and learns the
    same."""
    result = config.divided(images, shard.world_size)
    if shard.rank == 0:
        log.info(
            f"updates of {images} images as before, now on a world of {shard.world_size}: data.batch_size "
            f"{result.data.batch_size}, optim.accumulate {result.optim.accumulate}"
        )
    return result


def start_from(initial: Initial, network: nn.Cell, shard: Shard) -> None:
    """Load weights to start from, and say so."""
    initial.load(network)
    if shard.rank == 0:
        log.info(initial.line)
        for warning in initial.warnings:
            log.warning(warning)


def restored(begin: Checkpoint, trainer: Trainer, shard: Shard) -> Position:
    """Load a checkpoint."""
    begin.restore(trainer.parameters())
    position = begin.position
    if shard.rank == 0:
        log.info(f"going on from {begin.path}: step {position.step} of {position.steps} in epoch {position.epoch + 1}")
    return position


def refuse_disagreement(config: Config, trainer: Trainer, position: Position, shard: Shard) -> None:
    """Raises RunError if the devices are not about to train the same network, from the same place, on the same
    images."""
    if shard.world_size > 1:
        place = "checkpoint to go on from; all machines must see the same --runs folder"
        numbers = {
            "configuration": config.fingerprint(),
            "images": trainer.splits.fingerprint,
            place: position.epoch << 20 | position.step,
            "weights": checkpoint.fingerprint(trainer.parameters()),
        }
        devices.refuse_disagreement(numbers, shard)


def finish(
    config: Config, device: str, network: nn.Cell, folder: RunFolder, splits: Splits, last: dict[str, Any]
) -> None:
    """Write the summary and the image of bypassed patches, and say what a person wants to know.

    Args:
        last: the record of the last epoch, which the log may have lost to a full disk.
    """
    spec = config.model.spec()
    macs = {name: forward_macs(spec, config.program(name)) for name in config.evaluated()}
    known = [record for record in read_records(folder.path) if record["epoch"] <= last["epoch"]]
    result = summary(by_epoch([*known, last]), config.best(), macs)
    write_whole(folder.path / "summary.json", as_json(result, 2) + "\n")
    write_whole(folder.path / "summary.txt", as_text(result) + "\n")
    log.info(as_text(result))
    for listing in (folder.broken, folder.broken_val):
        if listing.exists():
            log.info(f"broken images were left out: {listing}")
    routed = next((name for name in (config.main(), *config.evaluated()) if config.program(name).selections), None)
    if routed:
        try:
            with replacing(folder.path / "bypassed.png") as partial:
                draw_kept(config, device, network, splits, routed).savefig(partial, dpi=110, format="png")
        except Exception as error:  # the run is finished, whatever the figure fails for
            folder.warn(f"{folder.path / 'bypassed.png'}: not drawn ({one_line(error)})")
    log.info(f"curves, {'image of bypassed patches, ' if routed else ''}checkpoints: {folder.path}")


def draw_kept(config: Config, device: str, network: nn.Cell, splits: Splits, name: str):
    """Figure of validation images, evenly spaced over the set, with what a forward keeps and predicts."""
    program = config.program(name)
    chosen = evenly_spaced(splits.val, SHOWN)
    images, labels, noise = sample(config.at_size(program.image_size), splits.val, chosen, config.noise_width())
    slots = [f"routes.{step.route}.slots" for step in program.selections]
    found = build_forward(config, device, network, name, ("logits", *slots)).by_name(images, noise)
    classes, guesses = splits.val.classes, found["logits"].argmax(1)
    captions = [f"{classes[label]} → {classes[guess]}" for label, guess in zip(labels, guesses)]
    kept = [kept_positions(found[slot], step.after) for slot, step in zip(slots, program.selections)]
    return kept_figure(images, kept, captions, config.model.spec().grid(program.image_size))
