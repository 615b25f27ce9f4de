"""`skipvit train`: train a network as a configuration says, into a run folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from mindspore import Tensor

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.data.open import batches_of, fingerprint, open_source, refuse_other_classes, sample
from skipvit.data.order import Shard, training_steps
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.engine import checkpoint, distributed
from skipvit.engine.build import build_mixer, build_network, build_optimizer, build_state
from skipvit.engine.checkpoint import Checkpoint, Position
from skipvit.engine.loop import Plan, Trainer
from skipvit.engine.phases import phases
from skipvit.engine.profiling import ProfileSteps
from skipvit.insight.figures import kept_figure
from skipvit.measure.macs import forward_macs
from skipvit.models.vit import Activations, ViT
from skipvit.runs import events
from skipvit.runs.run_folder import RunFolder
from skipvit.runs.summary import as_text, summary
from skipvit.util.errors import RunError, UsageError
from skipvit.weights.initial import Initial, read_initial

DEMO = "skipvit_mini_shapes_cpu.yaml"
EPILOG = """examples:
  python train.py                                        the demo, three to four minutes on two CPU cores
  python train.py --config configs/vit_mini_shapes_cpu.yaml
  python train.py --name keep30 --routes '[{start: 2, end: 5, keep_ratio: 0.3}]'
  python train.py --resume auto                          go on with a run that was stopped
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="train.py", description="Train a Vision Transformer with routes.", epilog=EPILOG
    )
    result.add_argument(
        "--config", default=configuration.recipe(DEMO), metavar="FILE", help="YAML file of the run (default: the demo)"
    )
    result.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)")
    result.add_argument(
        "--resume", choices=["never", "auto"], default="never", help="auto: go on from the newest checkpoint"
    )
    result.add_argument(
        "--profile", action="store_true", help="write MindSpore's trace of ten steps into the run's folder"
    )
    result.add_argument(
        "--check", action="store_true", help="only look whether the run could begin: config, folder, images, disk"
    )
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    if options.check:
        check(words, Shard())
        return
    device, shard = distributed.start(config.device, config.deterministic)
    folder, going_on = run_folder(config, options, shard)
    train_source, val_source = open_sources(config, options)
    begin = newest_checkpoint(folder, config, train_source) if going_on else None
    initial = read_initial(config, train_source.classes) if begin is None else None
    if begin is not None and begin.position.images != config.update_images(shard.world_size):
        config = redivided(config, begin.position.images, shard)
    training_steps(len(train_source), config.data.batch_size, shard, config.optim.accumulate)
    folder.claim()
    try:
        train(config, options, folder, begin or initial, train_source, val_source, device, shard)
    finally:
        folder.release()


def read(words: list[str]) -> Config:
    """The configuration of a command line. Raises UsageError."""
    return configuration.from_words(parser(), words)[0]


def check(words: list[str], shard: Shard) -> None:
    """Raise what a run would raise before its first step, without a device: configuration, folder, images, disk."""
    config, options = configuration.from_words(parser(), words)
    folder, going_on = run_folder(config, options, shard)
    if going_on:
        refuse_changed(folder, config)
        folder.claim()  # refused if another process trains in it
        folder.release()
    train_source, _ = open_sources(config, options)
    if not going_on:
        training_steps(len(train_source), config.data.batch_size, shard, config.optim.accumulate)
        read_initial(config, train_source.classes)
    model = config.model
    copies = 4 if config.ema.decay else 3  # weights, two moments, average
    size = 4 * copies * model.shape().parameters(model.patch, model.tokens, model.num_classes)
    folder.refuse_no_room(size, min(config.checkpoint.keep, config.optim.epochs))


def run_folder(config: Config, options: argparse.Namespace, shard: Shard) -> tuple[RunFolder, bool]:
    """The folder of the run, and whether to go on with what is in it."""
    if config.log.tensorboard:
        events.require()
    folder = RunFolder(Path(options.runs) / config.name, writes=shard.rank == 0)
    going_on = options.resume == "auto" and folder.begun()
    if not going_on:
        folder.refuse_existing(options.resume == "auto")
    return folder, going_on


def open_sources(config: Config, options: argparse.Namespace) -> tuple[Source, Source]:
    """Training and validation images."""
    index = Path(options.runs) / ".index"
    train_source, val_source = open_source(config, "train", index), open_source(config, "val", index)
    refuse_other_classes(train_source, val_source)
    return train_source, val_source


def train(
    config: Config,
    options: argparse.Namespace,
    folder: RunFolder,
    begin: Checkpoint | Initial | None,
    train_source: Source,
    val_source: Source,
    device: str,
    shard: Shard,
) -> None:
    """Build everything, train to the end, write the summary.

    Args:
        begin: the state of this run to go on from, weights to start from, or None.
    """
    network = build_network(config, device)
    if isinstance(begin, Initial):
        start_from(begin, network, shard)
    steps = training_steps(len(train_source), config.data.batch_size, shard, config.optim.accumulate)
    optimizer = build_optimizer(config, network, steps, shard.world_size)
    state = build_state(config, optimizer, device)
    plan = make_plan(config, train_source, val_source, network, folder, shard, device)
    if options.profile:
        plan = replace(plan, sink=False, callbacks=(ProfileSteps(folder.path / "profile", device),))
    trainer = Trainer(network, optimizer, state, plan, folder, shard)
    position = resume(begin, trainer, shard) if isinstance(begin, Checkpoint) else Position()
    refuse_disagreement(config, trainer, position, shard)
    folder.write_config(configuration.to_yaml(config))
    folder.write_classes(train_source.classes)
    folder.note([sys.executable, *sys.argv])
    if config.log.tensorboard:
        folder.open_events()
    if shard.rank == 0:
        parameters, trained = (sum(p.size for p in some) for some in (network.get_parameters(), optimizer.parameters))
        part = f" ({trained:,} trained)" if trained < parameters else ""
        print(
            f"{config.name}: {parameters:,} parameters{part}, {len(train_source)} training images, {device} x {shard.world_size}, "
            f"into {folder.path}",
            flush=True,
        )
    trainer.run(position)
    if shard.rank == 0:
        finish(config, network, folder, val_source)


def make_plan(
    config: Config, train_source: Source, val_source: Source, network: ViT, folder: RunFolder, shard: Shard, device: str
) -> Plan:
    """The configuration as the trainer's plain values."""
    return Plan(
        phases=phases(*config.phase_lengths()),
        train_batches=batches_of(config, train_source, network.noise_width, True, shard, listing=folder.broken),
        val_batches=batches_of(config, val_source, network.noise_width, False, shard, listing=folder.broken_val)(),
        mixer=build_mixer(config),
        clip_norm=config.optim.clip_norm,
        label_smoothing=config.optim.label_smoothing,
        best=config.best(),
        fingerprint=fingerprint(train_source),
        accumulate=config.optim.accumulate,
        sink=config.data.sink == "on" or config.data.sink == "auto" and device == "ascend",
        max_overflows=config.amp.max_overflows,
        eval_every=config.eval.every,
        checkpoint_every=config.checkpoint.every,
        checkpoint_minutes=config.checkpoint.minutes,
        checkpoint_keep=config.checkpoint.keep,
        log_steps=config.log.steps,
    )


def refuse_changed(folder: RunFolder, config: Config) -> None:
    """Raises UsageError if a run that was begun has another configuration."""
    changed = config.changed_since(configuration.read(folder.config))
    if changed:
        raise UsageError(
            f"{folder.path}: its config.yaml has another {changed[0]}; resume with the same config, or use --name"
        )


def newest_checkpoint(folder: RunFolder, config: Config, train_source: Source) -> Checkpoint | None:
    """The newest whole checkpoint of a run that has the same configuration and images; None if it has none yet."""
    refuse_changed(folder, config)
    best = folder.checkpoints / checkpoint.BEST
    candidates = [*reversed(checkpoint.saved(folder.checkpoints)), *([best] if best.exists() else [])]
    for path in candidates:
        try:
            found = checkpoint.read_run(path)
        except checkpoint.Damaged as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        if found.position.data != fingerprint(train_source):
            raise UsageError(f"{path}: it was trained on other images; resume with the same ones, or use --name")
        return found
    if candidates:
        raise RunError(f"{folder.checkpoints}: no checkpoint in it is whole; remove them to begin anew")
    if folder.writes:
        print(f"{folder.path}: no checkpoint to go on from, beginning anew", flush=True)
    return None


def redivided(config: Config, images: int, shard: Shard) -> Config:
    """The configuration for another number of devices: an update takes the same images as before, and learns the same."""
    result = config.divided(images, shard.world_size)
    if shard.rank == 0:
        devices = f"{shard.world_size} device{'s' * (shard.world_size > 1)}"
        print(
            f"updates of {images} images as before, now on {devices}: data.batch_size {result.data.batch_size}, "
            f"optim.accumulate {result.optim.accumulate}",
            flush=True,
        )
    return result


def start_from(initial: Initial, network: ViT, shard: Shard) -> None:
    """Load weights to start from, and say so."""
    initial.load(network)
    if shard.rank == 0:
        print(initial.line, flush=True)
        for warning in initial.warnings:
            print(f"warning: {warning}", file=sys.stderr)


def resume(begin: Checkpoint, trainer: Trainer, shard: Shard) -> Position:
    """Load a checkpoint."""
    begin.restore(trainer.parameters())
    position = begin.position
    if shard.rank == 0:
        print(
            f"going on from {begin.path}: step {position.step} of {position.steps} in epoch {position.epoch + 1}",
            flush=True,
        )
    return position


def refuse_disagreement(config: Config, trainer: Trainer, position: Position, shard: Shard) -> None:
    """Raises RunError if the devices are not about to train the same network, from the same place, on the same images."""
    if shard.world_size > 1:
        distributed.refuse_disagreement(
            {
                "configuration": config.fingerprint(),
                "training images": trainer.plan.fingerprint,
                "checkpoint to go on from; all machines must see the same --runs folder": position.epoch << 20
                | position.step,
                "weights": checkpoint.fingerprint(trainer.parameters()),
            },
            shard,
        )


def finish(config: Config, network: ViT, folder: RunFolder, val_source: Source) -> None:
    """Write the summary and the image of bypassed patches, and print what a person wants to know."""
    model = config.model
    macs = {
        name: forward_macs(model.shape(), model.patch, model.tokens, model.num_classes, spans)
        for name, spans in (("dense", ()), ("routed", network.spans))
    }
    records = folder.records()
    if not records or "val" not in records[-1] or "best_top1" not in records[-1]:
        folder.warn(
            f"{folder.path / 'metrics.jsonl'}: the last epoch is not in it, so there is no summary; the checkpoints are whole"
        )
        return
    result = summary(records, config.best(), macs)
    (folder.path / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder.path / "summary.txt").write_text(as_text(result) + "\n")
    print(as_text(result))
    for listing in (folder.broken, folder.broken_val):
        if listing.exists():
            print(f"broken images were left out: {listing}")
    if network.spans:
        draw_kept(config, network, val_source).savefig(folder.path / "bypassed.png", dpi=110)
    print(f"curves, {'image of bypassed patches, ' if network.spans else ''}checkpoints: {folder.path}")


def draw_kept(config: Config, network: ViT, val_source: Source, count: int = 16):
    """Figure of validation images, evenly spaced over the set, with what the routed forward keeps and predicts."""
    images, labels, noise = sample(config, val_source, evenly_spaced(val_source, count), network.noise_width)
    names = [f"routes.{r}.kept" for r in range(len(network.spans))]
    network.set_train(False)
    found = Activations(network, ["logits", *names]).by_name(Tensor(images), Tensor(noise))
    classes, guesses = val_source.classes, found["logits"].argmax(1)
    captions = [f"{classes[label]} → {classes[guess]}" for label, guess in zip(labels, guesses)]
    grid = config.model.image_size // config.model.patch
    return kept_figure(images, [found[name] for name in names], captions, grid)
