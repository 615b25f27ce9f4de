"""What `importance` measures on a network: its scorers, its blocks and its routes, by `insight.measures`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from skipvit.engine import checkpoint
from skipvit.insight import measures
from skipvit.routing.forward import Forward
from skipvit.routing.program import Probe, first_routed_block, kept_positions, routed_stage, row_major
from skipvit.routing.spec import resolve
from skipvit.runs.trained import Trained
from skipvit.util.log import log

POINTS = 17  # of deletion and insertion curves

Values = dict[str, np.ndarray]  # by name: float (n, patches), of every image and patch


class Looks:
    """A forward run over any number of images; every image gets new noise each time."""

    def __init__(self, forward: Forward, batch: int):
        self.forward, self.batch, self.rng = forward, batch, np.random.default_rng(0)

    def __call__(self, images: np.ndarray) -> Values:
        parts = []
        for first in range(0, len(images), self.batch):
            rows = np.arange(first, first + self.batch) % len(images)  # the last batch is filled up with others
            noise = self.rng.random((self.batch, self.forward.noise_width), np.float32)
            parts.append(self.forward.by_name(images[rows], noise))
        return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in self.forward.outputs}


class Ranker:
    """How scorers rank the patches of images where the first route reads its scores, and [CLS] in every block.

    Args:
        site: the block whose attention the scorers read; the forward is dense.
        kept: patches that the route keeps, since a grid depends on it.
    """

    def __init__(self, trained: Trained, scorers: list[str], site: int, kept: int, batch: int):
        config, self.site = trained.config, site
        self.stage, first = routed_stage(config.model.spec()), first_routed_block(config.model.spec())
        own = {route.scorer: route.knobs for route in config.routes[:1]}
        probes = [Probe(scorer, first + site, kept, own.get(scorer, {})) for scorer in scorers]
        made = set(config.program("dense", probes).makes)
        self.names = {f"probes.{scorer}": scorer for scorer in scorers}
        self.names |= {f"blocks.{first + b}.cls_attention": f"block {b}" for b in range(self.stage.depth)}
        self.names = {name: title for name, title in self.names.items() if name in made}  # there may be no [CLS]
        self.looks = Looks(trained.walk(self.names, "dense", probes), batch)
        routed = trained.forward if config.program(trained.forward).selections else "routed"
        self.selections = config.program(routed).selections
        if len(self.selections) > 1:
            slots = [f"routes.{step.route}.slots" for step in self.selections]
            self.kept = Looks(trained.walk(slots, routed), batch)

    def __call__(self, images: np.ndarray) -> Values:
        """Of each scorer, of each block and of the mean over those up to the one that the route reads; and where there
        are several routes, 1 for what each keeps, `route 0`, ..."""
        values = {self.names[name]: row_major(found, self.stage) for name, found in self.looks(images).items()}
        if self.site > 0 and f"block {self.site}" in values:
            until = np.mean([values[f"block {block}"] for block in range(self.site + 1)], 0)
            values[f"blocks 0 to {self.site}"] = until
        if len(self.selections) > 1:
            for step, slots in zip(self.selections, self.kept(images).values()):
                slots = row_major(slots, self.stage)
                values[f"route {step.route}"] = np.zeros(slots.shape)
                np.put_along_axis(values[f"route {step.route}"], kept_positions(slots, step.after), 1.0, axis=1)
        return values


def measure(trained: Trained, scorers: list[str], shown: Any, earlier: list[Path]) -> tuple[dict[str, Any], Values]:
    """Measure trained weights; earlier checkpoints are for what changes between them.

    Args:
        shown: see `importance.Shown`.

    Returns:
        The result for JSON, and of each scorer the kept patches, bool (n, patches).
    """
    spec, batch = trained.config.model.spec(), min(trained.config.data.batch_size, len(shown.labels))
    stage = routed_stage(spec)
    span = resolve(trained.config.routes, stage)[0]
    site = span.start if span.at == "mlp" else max(span.start - 1, 0)  # the block whose attention this route reads
    rank = Ranker(trained, scorers, site, span.kept, batch)
    values = [*_of_earlier(trained, rank, shown.images, earlier), rank(shown.images)]
    flipped = rank(np.ascontiguousarray(shown.images[:, :, ::-1]))
    patches = stage.layout.patches
    moved = rank(measures.moved_right(shown.images, shown.images.shape[1] // math.isqrt(patches)))
    logits = Looks(trained.walk(), batch)
    rows, last = {}, values[-1].get(f"block {stage.depth - 1}")
    objects = None if shown.masks is None else measures.on_object(shown.masks, math.isqrt(patches))
    for name, found in tqdm(values[-1].items(), "measures", leave=False, disable=None):
        is_route = name.startswith("route ")
        count = round(found.sum(1).mean()) if is_route else span.kept
        row = of_kept([at[name] for at in values], flipped[name], moved[name], last, objects, count)
        if not is_route:
            row |= of_ranking(found, last, lambda images: softmax(logits(images)["logits"], axis=1), shown)
        rows[name] = {key: _plain(value) for key, value in row.items()}
    result = {
        "checkpoint": str(trained.checkpoint),
        "earlier": [str(path) for path in earlier],
        "images": len(shown.labels),
        "filled_with": shown.filled_with,
        "predicts": trained.forward,
        "site": site,
        "tokens": patches,
        "kept": span.kept,
        "scorers": {name: rows[name] for name in scorers},
        "blocks": {name: row for name, row in rows.items() if name.startswith("block ")},
        "means": {name: row for name, row in rows.items() if name.startswith("blocks ")},
        "routes": {name: row for name, row in rows.items() if name.startswith("route ")},
    }
    return result, {name: measures.top(values[-1][name], span.kept) for name in scorers}


def _of_earlier(trained: Trained, rank: Ranker, images: np.ndarray, earlier: list[Path]) -> list[Values]:
    """The values with the weights of earlier checkpoints, through the same graphs."""
    found = []
    for path in tqdm(earlier, "checkpoints", leave=False, disable=None):
        try:
            checkpoint.restore_weights(path, trained.network, averaged=True)
            found.append(rank(images))
        except checkpoint.Damaged as error:
            log.warning(f"{error}; left out")
    checkpoint.restore_weights(trained.checkpoint, trained.network, trained.averaged)
    return found


def of_kept(values: list[np.ndarray], flipped: Any, moved: Any, last: Any, objects: Any, count: int) -> dict[str, Any]:
    """What is kept of the objects, where they are known, and what the kept sets have in common: with those of the last
    block's attention, of the flipped and of the moved images, and of each checkpoint with the next."""
    *_, kept = sets = [measures.top(found, count) for found in values]
    flipped, moved, grid = measures.top(flipped, count), measures.top(moved, count), math.isqrt(kept.shape[1])
    result: dict[str, Any] = {
        "flip_overlap": measures.overlap(kept, measures.mirrored(flipped, grid)),
        "shift_overlap": measures.overlap(kept, measures.shifted(moved, grid), measures.still_there(grid)),
        "checkpoint_overlap": [measures.overlap(a, b) for a, b in zip(sets, sets[1:])],
    }
    if last is not None:
        result["last_block_overlap"] = measures.overlap(kept, measures.top(last, count))
    if objects is not None:
        result["object_kept"], result["background_kept"] = measures.shares_kept(kept, objects)
        result["separation"] = measures.separation(values[-1], objects)
    return result


def of_ranking(values: np.ndarray, last: np.ndarray | None, predict: measures.Predict, shown: Any) -> dict[str, Any]:
    """What the order of the patches is worth to the network, and what it has in common with that of the last block."""
    result: dict[str, Any] = {} if last is None else {"last_block_correlation": measures.correlation(values, last)}
    curves = measures.deletion_insertion(predict, shown.images, shown.fill, shown.labels, values, POINTS)
    for name, curve in zip(("deletion", "insertion"), curves):
        result |= {name: measures.area(curve), f"{name}_curve": curve}
    return result


def _plain(value: Any) -> Any:
    """A number or a list of them, for JSON; what could not be measured is null."""
    if isinstance(value, list | np.ndarray):
        return [float(v) for v in value]
    return None if math.isnan(value) else float(value)
