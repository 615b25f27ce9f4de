"""What `skipvit importance` measures on a network: its scorers, its blocks and its routes, by `analysis.importance`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.engine import checkpoint
from skipvit.insight import measures as measures
from skipvit.models.vit import Activations, ViT
from skipvit.routing.routing import Route, Router, resolve
from skipvit.routing.scorers import cls_row

POINTS = 17  # of deletion and insertion curves

Values = dict[str, np.ndarray]  # by name: float (n, tokens), of every image and patch


class Rankings(nn.Cell):
    """Of a dense forward: how scorers rank the patches by the attention of one block, and the attention of [CLS] in every block.

    Its construct gives float32 (B, tokens) for each of `names`: the scorers', then `block 0`, `block 1`, ...

    Args:
        site: the block whose q, k and v the scorers read.
        keep_ratio: of the route, since a grid depends on it.
    """

    def __init__(self, network: ViT, scorers: list[str], site: int, keep_ratio: float):
        super().__init__(auto_prefix=False)
        self.network, self.site = network, site
        routes = [Route(site, network.depth, keep_ratio, scorer, restore=False, at="mlp") for scorer in scorers]
        spans = [resolve([route], network.depth, network.tokens)[0] for route in routes]
        self.routers = nn.CellList([Router(span, "gather", 2 * network.depth) for span in spans])
        self.noise_width = 2 * network.depth + max(router.noise_columns for router in self.routers)
        self.names = (*scorers, *(f"block {b}" for b in range(network.depth)))

    def construct(self, images, noise):
        x, scored, rows = self.network.embed(images), (), ()
        for b in range(self.network.depth):
            x, q, k, v = self.network.blocks[b](x, noise)
            row = ops.ReduceMean()(cls_row(q, k), 1)
            rows = rows + (ops.Slice()(row, (0, 1), (row.shape[0], self.network.tokens)),)
            if b == self.site:
                for router in self.routers:
                    scored = scored + (router.score(q, k, v, noise)[0],)
        return scored + rows


class Probabilities(nn.Cell):
    """Softmax of the dense or routed forward, float32 (B, classes)."""

    def __init__(self, network: ViT, routed: bool):
        super().__init__(auto_prefix=False)
        self.network, self.routed, self.noise_width = network, routed, network.noise_width

    def construct(self, images, noise):
        return (ops.Softmax()(ops.Cast()(self.network(images, noise, self.routed), ms.float32)),)


class InBatches:
    """A cell of images and noise that gives a tuple, run over any number of images; every image gets new noise each time."""

    def __init__(self, cell: nn.Cell, noise_width: int, batch: int):
        self.cell, self.width, self.batch, self.rng = (
            cell.set_train(False),
            noise_width,
            batch,
            np.random.default_rng(0),
        )

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        parts = []
        for first in range(0, len(images), self.batch):
            rows = np.arange(first, first + self.batch) % len(images)  # the last batch is filled up with others
            noise = self.rng.random((self.batch, self.width), np.float32)
            parts.append([output.asnumpy() for output in self.cell(Tensor(images[rows]), Tensor(noise))])
        return [np.concatenate(output)[: len(images)] for output in zip(*parts)]


def measure(config: Config, network: ViT, scorers: list[str], shown, checkpoints: list[Path]) -> tuple[dict, Values]:
    """Measure the last of the checkpoints; the earlier ones are for what changes between them.

    Args:
        network: of the configuration, whose first route says which block's attention is read and how many patches are kept.
        shown: see `tools.importance.Shown`.

    Returns:
        The result for JSON, and of each scorer the kept patches, bool (n, tokens).
    """
    route, span = config.routes[0], network.spans[0]
    site = route.start if route.at == "mlp" else max(route.start - 1, 0)
    batch = min(config.data.batch_size, len(shown.labels))
    rank = ranker(network, scorers, site, route.keep_ratio, batch)
    trained = []
    for path in tqdm(checkpoints, "checkpoints", leave=False, disable=None):
        checkpoint.restore_weights(path, network, averaged=checkpoint.has_average(path))
        trained.append(rank(shown.images))
    flipped = rank(np.ascontiguousarray(shown.images[:, :, ::-1]))
    moved = rank(measures.moved_right(shown.images, config.model.patch))
    main = config.main()
    predict = InBatches(Probabilities(network, main == "routed"), network.noise_width, batch)
    rows = {}
    for name in tqdm(trained[-1], "measures", leave=False, disable=None):
        count = round(trained[-1][name].sum(1).mean()) if name.startswith("route ") else span.kept
        row = of_kept(
            [values[name] for values in trained],
            flipped[name],
            moved[name],
            trained[-1][f"block {network.depth - 1}"],
            count,
        )
        if shown.masks is not None:
            row |= of_object(trained[-1][name], shown.masks, count)
        if not name.startswith("route "):
            row |= of_ranking(
                trained[-1][name], trained[-1][f"block {network.depth - 1}"], lambda x: predict(x)[0], shown
            )
        rows[name] = {key: _plain(value) for key, value in row.items()}
    result = {
        "checkpoint": str(checkpoints[-1]),
        "earlier": [str(path) for path in checkpoints[:-1]],
        "images": len(shown.labels),
        "filled_with": shown.filled_with,
        "predicts": main,
        "site": site,
        "tokens": network.tokens,
        "kept": span.kept,
        "scorers": {name: rows[name] for name in scorers},
        "blocks": {name: row for name, row in rows.items() if name.startswith("block ")},
        "routes": {name: row for name, row in rows.items() if name.startswith("route ")},
    }
    return result, {name: measures.top(trained[-1][name], span.kept) for name in scorers}


def ranker(
    network: ViT, scorers: list[str], site: int, keep_ratio: float, batch: int
) -> Callable[[np.ndarray], Values]:
    """A function of images: the values of each scorer and block, and, where there are several routes, 1 for what each keeps, `route 0`, ..."""
    cell = Rankings(network, scorers, site, keep_ratio)
    rankings = InBatches(cell, cell.noise_width, batch)
    several = len(network.spans) > 1
    names = [f"routes.{r}.kept" for r in range(len(network.spans))] if several else []
    kept = InBatches(Activations(network, names), network.noise_width, batch)

    def rank(images: np.ndarray) -> Values:
        values = dict(zip(cell.names, rankings(images)))
        for r, positions in enumerate(kept(images) if several else []):
            values[f"route {r}"] = np.zeros((len(images), network.tokens))
            np.put_along_axis(values[f"route {r}"], positions, 1.0, axis=1)
        return values

    return rank


def of_kept(trained: list[np.ndarray], flipped: np.ndarray, moved: np.ndarray, last: np.ndarray, count: int) -> dict:
    """What the kept sets have in common: with those of the last block's attention, of the flipped and of the moved images, and of each
    checkpoint with the next."""
    grid = math.isqrt(last.shape[1])
    sets = [measures.top(values, count) for values in trained]
    there = measures.still_there(grid)
    return {
        "last_block_overlap": measures.overlap(sets[-1], measures.top(last, count)),
        "flip_overlap": measures.overlap(sets[-1], measures.mirrored(measures.top(flipped, count), grid)),
        "shift_overlap": measures.overlap(sets[-1], measures.shifted(measures.top(moved, count), grid), there),
        "checkpoint_overlap": [measures.overlap(a, b) for a, b in zip(sets, sets[1:])],
    }


def of_object(values: np.ndarray, masks: np.ndarray, count: int) -> dict:
    """What is kept of the object and of the background."""
    objects = measures.on_object(masks, math.isqrt(values.shape[1]))
    on, off = measures.shares_kept(measures.top(values, count), objects)
    return {"object_kept": on, "background_kept": off, "separation": measures.separation(values, objects)}


def of_ranking(values: np.ndarray, last: np.ndarray, predict: measures.Predict, shown) -> dict:
    """What the order of the patches is worth to the network, and what it has in common with that of the last block."""
    curves = measures.deletion_insertion(predict, shown.images, shown.fill, shown.labels, values, POINTS)
    return {
        "last_block_correlation": measures.correlation(values, last),
        "deletion": measures.area(curves[0]),
        "insertion": measures.area(curves[1]),
        "deletion_curve": curves[0],
        "insertion_curve": curves[1],
    }


def _plain(value):
    """A number or a list of them, for JSON; what could not be measured is null."""
    if isinstance(value, (list, np.ndarray)):
        return [float(v) for v in value]
    return None if math.isnan(value) else float(value)
