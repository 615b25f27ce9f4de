"""Image by image: how many images a method and the baseline classify differently, where seeds are few."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from scipy import stats
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.data.open import batches_of, open_source
from skipvit.engine import checkpoint, devices
from skipvit.engine.build import build_forward, build_network
from skipvit.lab.intervals import Mean
from skipvit.lab.report.origin import load, save
from skipvit.lab.report.page import Block, Heading, Table, Text
from skipvit.lab.report.weights import StillTrue, of_checkpoint
from skipvit.lab.study import Study

FILE = "images.json"
HOW_TO_READ = (
    "right alone: images that only the method, or only the baseline, gets right, mean over the seeds that both have",
    "difference: mean over images and seeds, with the 95 % interval over images. It says how far these weights would "
    "differ on other images; what other seeds would give it does not contain",
)
Hits = dict[int, np.ndarray]  # by seed: whether each validation image is classified correctly, bool (images,)


def measure(study: Study) -> None:
    """Evaluate every run with the forward that counts, image by image; written into the study's folder.

    Raises:
        UsageError, RunError: no images, a checkpoint is gone or damaged.
    """
    device, _ = devices.start(study.arms[0].config.device)
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in tqdm(study.arms, desc="images", unit="method", disable=None, leave=False):
        name = arm.forward.removesuffix("_ema")
        network = build_network(arm.config, device)
        forward = build_forward(arm.config, device, network, name)
        for _, run in sorted(arm.runs.items()):
            path = run.run.checkpoint()
            checkpoint.restore_weights(path, network, averaged=name != arm.forward)
            config = run.run.config.at_size(arm.config.forwards()[name].image_size)
            right = hits(forward, config, run.run.classes)
            values = {"hits": base64.b64encode(np.packbits(right).tobytes()).decode(), "images": right.size}
            found.setdefault(arm.label, []).append(values | of_checkpoint(run, path))
    save(study.folder / FILE, device, {"hits": found})


def hits(forward: nn.Cell, config: Config, classes: Sequence[str] | None) -> np.ndarray:
    """Whether each validation image's largest logit is that of its class, bool (images,), in the source's order."""
    source, found = open_source(config, "val", classes=classes), []
    for images, labels, noise, _ in batches_of(config, source, config.noise_width(), False):
        logits = forward(Tensor(images), Tensor(noise)).asnumpy()
        found.append((logits.argmax(1) == labels)[labels >= 0])
    return np.concatenate(found)


def read(study: Study, device: str) -> tuple[dict[str, Hits], list[str]]:
    """What `measure` wrote of runs that were not trained since, by an arm's label, and a line if some is left out."""

    def parse(found: dict[str, Any]) -> dict[str, Hits]:
        of = {arm.label: [v for v in found["hits"].get(arm.label, []) if true(arm, v)] for arm in study.arms}
        return {label: {v["seed"]: _unpacked(v) for v in values} for label, values in of.items()}

    true = StillTrue()
    found, left_out = load(study.folder / FILE, device, "--images", parse)
    return found or {}, left_out + true.left_out(FILE, "--images")


def _unpacked(value: dict[str, Any]) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(value["hits"]), np.uint8)
    if packed.size != -(-value["images"] // 8):
        raise ValueError(f"{packed.size} bytes are not {value['images']} images")
    return np.unpackbits(packed, count=value["images"]).astype(bool)


def compared(ours: Hits, theirs: Hits) -> tuple[float, float, Mean] | None:
    """Images that only one of two gets right, each a mean over the seeds that both have, and the mean difference over
    images, percent, with its 95 % interval; for one seed it is that of McNemar's test. None: nothing in common."""
    seeds = [seed for seed in sorted(set(ours) & set(theirs)) if len(ours[seed]) == len(theirs[seed])]
    if not seeds or len({len(ours[seed]) for seed in seeds}) > 1 or len(ours[seeds[0]]) < 2:
        return None
    more, less = (np.mean([(a[s] & ~b[s]).sum() for s in seeds]) for a, b in ((ours, theirs), (theirs, ours)))
    by_image = 100 * np.mean([ours[seed].astype(float) - theirs[seed] for seed in seeds], 0)
    half = stats.norm.ppf(0.975) * stats.sem(by_image)
    return float(more), float(less), Mean(float(by_image.mean()), float(half), by_image.size)


def images_blocks(study: Study, found: dict[str, Hits]) -> list[Block]:
    """The table, if it was measured."""
    rows = []
    for arm in study.arms:
        base = study.baseline_of(arm)
        result = compared(found.get(arm.label, {}), found.get(base.label, {})) if base and base is not arm else None
        if result:
            more, less, difference = result
            counts = [str(difference.count), f"{more:.0f}", f"{less:.0f}"]
            rows.append([arm.label, *counts, difference.text(signed=True)])
    if not rows:
        return []
    head = ["method", "images", "right alone", f"{study.about.baseline} right alone", "difference, points"]
    return [Heading("Image by image"), Table(head, rows), Text(HOW_TO_READ, True)]
