"""Accuracies of trained weights over a validation set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from skipvit.config.config import Config
from skipvit.data.open import batches_of, open_source
from skipvit.engine import checkpoint, devices, metrics
from skipvit.engine.build import build_forward, build_network
from skipvit.engine.metrics import Accuracy, Scores
from skipvit.runs.run import Run


def evaluate(
    run: Run | str | Path, which: str | Path = "last", forwards: Iterable[str] | None = None
) -> dict[str, Scores]:
    """Accuracies of a run's forwards over its validation images, by name; with `_ema` behind it the averaged weights'.

    Args:
        run: a run, or its folder.
        which: checkpoint: `last`, `best` or a file, see `Run.checkpoint`.
        forwards: names; None: those that the configuration reports.

    Raises:
        UsageError, RunError: no images, no such checkpoint, one that is damaged or of another network.
    """
    run = run if isinstance(run, Run) else Run(run)
    return evaluate_checkpoint(run.config, run.checkpoint(which), forwards, run.classes)


def evaluate_checkpoint(
    config: Config, path: Path, forwards: Iterable[str] | None = None, classes: Sequence[str] | None = None
) -> dict[str, Scores]:
    """As `evaluate`, of any checkpoint of a configuration's network.

    Args:
        classes: names of the network's, where they are known: the images' classes are found among them by name.
    """
    device, shard = devices.start(config.device, config.deterministic)
    source = open_source(config, "val", classes=classes)
    network = build_network(config, device)
    known, width, result = config.forwards(), config.noise_width(), {}
    names = tuple(forwards or config.evaluated())
    # Compiled once: the averaged weights run through the same graphs.
    steps = {name: Accuracy(build_forward(config, device, network, name)) for name in names}
    for suffix in ("", "_ema") if checkpoint.has_average(path) else ("",):
        checkpoint.restore_weights(path, network, averaged=bool(suffix))
        for name, step in steps.items():
            batches = batches_of(config.at_size(known[name].image_size), source, width, False, shard)
            result[name + suffix] = metrics.evaluate(step, batches, shard, f"evaluating {name}{suffix}")
    return result
