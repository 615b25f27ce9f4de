"""What a report has to run the networks for: dense weights through the routes, and kept patches over training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from skipvit.data.open import batches_of, open_source, sample
from skipvit.data.sources.arrays import evenly_spaced
from skipvit.engine import checkpoint, distributed
from skipvit.engine.build import build_network
from skipvit.engine.evaluate import evaluate
from skipvit.engine.step import EvalStep
from skipvit.lab.report_runs import Result, Sweep, Variant
from skipvit.models.vit import Activations, ViT
from skipvit.routing.scorers import SCORERS
from skipvit.util.errors import RunError

MATRIX, KEPT = "dense_weights_routed.json", "kept_over_training.npz"
IMAGES = 6  # of which the kept patches are drawn


def measure(sweep: Sweep) -> None:
    """Evaluate the dense network's weights along the routes of each variant of it, and note what each variant keeps of some
    images in the checkpoints of its first seed; written into the sweep's folder.

    Raises:
        RunError: a checkpoint is gone.
    """
    device, _ = distributed.start(sweep.variants[0].config.device)
    scores: dict[str, dict[int, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for variant in tqdm(
        [v for v in sweep.variants if v.config.routes], desc="weights", unit="method", disable=None, leave=False
    ):
        network = build_network(variant.config, device)
        base = sweep.dense_of(variant)
        if base is not None:
            scores[variant.label] = dense_weights_routed(network, variant, base)
        kept |= {f"{variant.label}/{name}": values for name, values in kept_over_training(network, variant).items()}
    (sweep.folder / MATRIX).write_text(json.dumps(scores, indent=1) + "\n")
    np.savez_compressed(sweep.folder / KEPT, **kept)


def dense_weights_routed(network: ViT, variant: Variant, base: Variant) -> dict[int, float]:
    """Top-1, percent, by seed, of weights that were trained dense along the variant's routes."""
    step, result = EvalStep(network, True), {}
    for seed in sorted(set(variant.runs) & set(base.runs)):
        run = base.runs[seed]
        checkpoint.restore_weights(newest(run), network, averaged=run.forward.endswith("_ema"))
        config = variant.runs[seed].config
        batches = batches_of(config, open_source(config, "val"), network.noise_width, False)()
        result[seed] = evaluate(step, batches, label=f"{base.label}, seed {seed}, along {variant.label}").top1
    return result


def kept_over_training(network: ViT, variant: Variant) -> dict[str, np.ndarray]:
    """`images`, and by epoch what the first route keeps of them: positions (n, k); nothing where attention does not choose."""
    saved = [(run, checkpoint.saved(run.path / "checkpoints")) for run in variant.runs.values()]
    run, paths = max(saved, key=lambda pair: len(pair[1]))  # the first seed, of which the sweep keeps more than one
    if len(paths) < 2 or not SCORERS[network.spans[0].scorer].attention:
        return {}
    network.set_train(False)
    source = open_source(run.config, "val")
    images, _, noise = sample(run.config, source, evenly_spaced(source, IMAGES), network.noise_width)
    trace, result = Activations(network, ["routes.0.kept"]), {"images": images}
    for path in paths:
        position = checkpoint.read_run(path).position
        if position.step < position.steps:  # saved within an epoch
            continue
        checkpoint.restore_weights(path, network)
        result[str(position.epoch + 1)] = trace.by_name(Tensor(images), Tensor(noise))["routes.0.kept"]
    return result


def newest(run: Result) -> Path:
    found = checkpoint.saved(run.path / "checkpoints")
    if not found:
        raise RunError(f"{run.path}: its checkpoints are gone; leave --weights out, or train it again")
    return found[-1]


def read_matrix(sweep: Sweep) -> dict[str, dict[int, float]]:
    """What `measure` wrote: by label and seed; empty if it was not done."""
    try:
        found = json.loads((sweep.folder / MATRIX).read_text())
    except (OSError, ValueError):
        return {}
    return {label: {int(seed): top1 for seed, top1 in scores.items()} for label, scores in found.items()}


def read_kept(sweep: Sweep) -> dict[str, tuple[np.ndarray, dict[int, np.ndarray]]]:
    """What `measure` wrote: by label the images, and by epoch the positions kept; empty if it was not done."""
    try:
        with np.load(sweep.folder / KEPT) as file:
            arrays = dict(file)
    except (OSError, ValueError):
        return {}
    result: dict[str, tuple[np.ndarray, dict[int, np.ndarray]]] = {}
    for name in arrays:
        label, what = name.rsplit("/", 1)
        if what == "images":
            result.setdefault(label, (arrays[name], {}))
    for name, values in arrays.items():
        label, what = name.rsplit("/", 1)
        if what != "images":
            result[label][1][int(what)] = values
    return {label: (images, dict(sorted(epochs.items()))) for label, (images, epochs) in result.items()}
