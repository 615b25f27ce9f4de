"""`skipvit train`: train a network as a configuration says, into a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from mindspore import Tensor

from skipvit import config as configuration
from skipvit.analysis.macs import forward_macs
from skipvit.analysis.pictures import kept_figure
from skipvit.config import Config
from skipvit.data.image_folder import refuse_other_classes
from skipvit.data.pipeline import Shard, Source, Subset, training_steps
from skipvit.errors import RunError, UsageError
from skipvit.models.vit import Activations, ViT
from skipvit.tools.build import batches_of, build_network, build_optimizer, open_source
from skipvit.training import checkpoint, distributed
from skipvit.training.loop import Plan, Trainer
from skipvit.training.optim import AdamW
from skipvit.training.phases import phases
from skipvit.training.run_folder import RunFolder

DEMO = "skipvit_mini_shapes_cpu.yaml"
EPILOG = """examples:
  python train.py                                        the demo, two to three minutes on two CPU cores
  python train.py --config configs/vit_mini_shapes_cpu.yaml
  python train.py --name keep30 --routes '[{start: 2, end: 5, keep_ratio: 0.3}]'
  python train.py --resume auto                          go on with a run that was stopped
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="train.py", description="Train a Vision Transformer with routes.", epilog=EPILOG)
    result.add_argument("--config", default=configuration.recipe(DEMO), metavar="FILE", help="YAML file of the run (default: the demo)")
    result.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)")
    result.add_argument("--resume", choices=["never", "auto"], default="never", help="auto: go on from the newest checkpoint")
    result.add_argument("--check", action="store_true", help="only read the config and the command line, then stop")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    if options.check:
        return
    device, shard = distributed.start(config.device)
    folder = RunFolder(Path(options.runs) / config.name, writes=shard.rank == 0)
    going_on = options.resume == "auto" and folder.path.exists()
    if not going_on:
        folder.refuse_existing()
    train_source, val_source = open_source(config, "train"), open_source(config, "val")
    refuse_other_classes(train_source, val_source)
    steps_per_epoch = training_steps(len(train_source), config.data.batch_size, shard)
    network = build_network(config, device)
    train_batches = batches_of(config, train_source, network.noise_width, True, shard)
    val_batches = batches_of(config, val_source, network.noise_width, False, shard)()
    optimizer = build_optimizer(config, network, steps_per_epoch)
    epochs_done = 0
    if going_on:
        epochs_done = resume(folder, config, network, optimizer, steps_per_epoch)
        folder.note([sys.executable, *sys.argv])
    else:
        folder.create(configuration.to_yaml(config), [sys.executable, *sys.argv])
    plan = Plan(
        phases(*config.phase_lengths()),
        train_batches,
        val_batches,
        config.optim.clip_norm,
        config.optim.label_smoothing,
        config.checkpoint.every,
        config.checkpoint.keep,
    )
    trainer = Trainer(network, optimizer, plan, folder, shard)
    if shard.rank == 0:
        parameters = sum(p.size for p in network.get_parameters())
        print(f"{config.name}: {parameters:,} parameters, {len(train_source)} training pictures, {device} x {shard.count}, "
              f"into {folder.path}", flush=True)  # fmt: skip
    trainer.run(epochs_done)
    if shard.rank == 0:
        finish(config, network, folder, val_source)


def resume(folder: RunFolder, config: Config, network: ViT, optimizer: AdamW, steps_per_epoch: int) -> int:
    """Load the newest whole checkpoint of a run that has the same configuration and data; returns the epochs done."""
    before = configuration.read(folder.config)
    if before != config:
        changed = next(key for key in Config.model_fields if getattr(before, key) != getattr(config, key))
        raise UsageError(f"{folder.path}: its config.yaml has another {changed}; resume with the same config, or use --name")
    epochs_done = 0
    for path in reversed(checkpoint.saved(folder.checkpoints)):
        try:
            epochs_done = checkpoint.restore(path, network, optimizer)
            break
        except RunError as error:
            print(f"warning: {error}", file=sys.stderr)
    steps = int(optimizer.step.asnumpy())
    if steps != epochs_done * steps_per_epoch:
        raise UsageError(
            f"{folder.path}: it did {steps} steps in {epochs_done} epochs, here an epoch has {steps_per_epoch}; "
            f"resume with as many cards and pictures as before"
        )
    return epochs_done


def finish(config: Config, network: ViT, folder: RunFolder, val_source: Source) -> None:
    """Write the summary and the picture of bypassed patches, and print what a person wants to know."""
    result = summary(config, network, folder.records())
    (folder.path / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    print(as_text(result))
    if network.spans:
        draw_kept(config, network, val_source).savefig(folder.path / "bypassed.png", dpi=110)
    print(f"curves, {'picture of bypassed patches, ' if network.spans else ''}checkpoints: {folder.path}")


def summary(config: Config, network: ViT, records: list[dict]) -> dict:
    """For each forward: final accuracies, median training throughput over its epochs, MACs."""
    last, result = records[-1], {"trained": records[-1]["trained"], "epochs": len(records), "forwards": {}}
    for name, scores in last["val"].items():
        speeds = sorted(r["images_per_s"] for r in records if r["trained"] == name and r["images_per_s"])
        spans = network.spans if name == "routed" else ()
        model = config.model
        result["forwards"][name] = {
            "top1": scores["top1"],
            "top5": scores["top5"],
            "train_images_per_s": speeds[len(speeds) // 2] if speeds else None,
            "gmacs": forward_macs(model.shape(), model.patch, model.tokens, model.num_classes, spans) / 1e9,
        }
    return result


def as_text(result: dict) -> str:
    """The summary as a small table."""
    lines = [f"{'':8}{'top-1 %':>9}{'top-5 %':>9}{'training images/s':>19}{'GMACs':>9}"]
    for name, row in result["forwards"].items():
        speed = f"{row['train_images_per_s']:.0f}" if row["train_images_per_s"] else "-"
        note = "  trained last" if name == result["trained"] else ""
        lines.append(f"{name:8}{row['top1']:9.2f}{row['top5']:9.2f}{speed:>19}{row['gmacs']:9.4f}{note}")
    dense, routed = result["forwards"]["dense"], result["forwards"].get("routed")
    if routed:
        ratio = f"MACs {dense['gmacs'] / routed['gmacs']:.2f} x fewer"
        if dense["train_images_per_s"] and routed["train_images_per_s"]:
            ratio = f"training {routed['train_images_per_s'] / dense['train_images_per_s']:.2f} x the images/s, " + ratio
        lines.append(f"routed against dense: {ratio}")
    return "\n".join(lines)


def draw_kept(config: Config, network: ViT, val_source: Source, count: int = 16):
    """Figure of validation pictures, evenly spaced over the set, with what the routed forward keeps and predicts."""
    chosen = np.linspace(0, len(val_source) - 1, min(count, len(val_source))).astype(int).tolist()
    batches = batches_of(config, Subset(val_source, chosen), network.noise_width, False, Shard(), len(chosen))()
    ((images, labels, noise),) = batches
    names = [f"routes.{r}.kept" for r in range(len(network.spans))]
    network.set_train(False)
    found = Activations(network, ["logits", *names]).by_name(Tensor(images), Tensor(noise))
    classes, guesses = val_source.classes, found["logits"].argmax(1)
    captions = [f"{classes[label]} → {classes[guess]}" for label, guess in zip(labels, guesses)]
    grid = config.model.image_size // config.model.patch
    return kept_figure(images, [found[name] for name in names], captions, grid)
