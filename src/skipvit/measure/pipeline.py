"""The data pipeline alone: images a second by number of threads, processor time of an image, cores to feed a device."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.config.groups import AugmentConfig
from skipvit.data.batches import Batches
from skipvit.data.broken import Broken
from skipvit.data.open import batches_of
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Subset
from skipvit.util.text import table

ROUNDS = 5  # parts that a setting's time is cut into, so that what disturbs the machine disturbs all settings
NOISE = 24  # numbers an image: any network's take no time worth building it to know how many
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # without the fractions of its seconds


@dataclass
class Setting:
    """A number of threads, with the images cut out and resized only (`plain`) or augmented as configured.

    Attributes:
        wall, processor: seconds an image, one value a round.
        steps: batches of a round.
    """

    threads: int
    plain: bool
    steps: int = 1
    seconds: float = 0.0
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def measure(config: Config, source: Source, threads: Iterable[int], seconds: float) -> list[Setting]:
    """Every number of threads as configured, then one thread without augmentation; each measured for so many seconds.

    Raises:
        RunError: too many broken images.
    """
    settings = [*(Setting(n, False) for n in threads), Setting(1, True)]
    update = config.data.batch_size * config.optim.accumulate
    batches = batches_of(config, _chosen(source, update, 0), NOISE, training=True)
    batches = replace(batches, accumulate=1, broken=Broken(len(source), config.data.broken_share))
    for setting in tqdm(settings, desc="first batches", disable=None, leave=False):
        _pass(batches, source, setting, 0)
        per_batch = config.data.batch_size * _pass(batches, source, setting, 1)[0]
        # As many for each thread: none waits for the others at the end.
        setting.steps = setting.threads * max(1, round(seconds / ROUNDS / per_batch))
    total = round(seconds * len(settings))
    with tqdm(total=total, desc="timing", disable=None, leave=False, unit="s", bar_format=BAR) as bar:
        while any(setting.seconds < seconds for setting in settings):
            for setting in settings:
                wall, processor = _pass(batches, source, setting, turn=2 + len(setting.wall))
                setting.wall.append(wall)
                setting.processor.append(processor)
                spent = wall * setting.steps * config.data.batch_size
                bar.update(min(spent, max(0.0, seconds - setting.seconds)))
                setting.seconds += spent
    return settings


def _pass(batches: Batches, source: Source, setting: Setting, turn: int) -> tuple[float, float]:
    """Make `setting.steps` batches to the last one; seconds an image, by the clock and of all processors."""
    count, augment = setting.steps * batches.batch_size, batches.augment
    if setting.plain:
        augment = AugmentConfig(crop=augment.crop, crop_min=augment.crop_min)
    made = replace(batches, source=_chosen(source, count, turn), augment=augment, workers=setting.threads, epoch=turn)
    begun, processor = time.perf_counter(), time.process_time()
    for _ in made:
        pass
    return (time.perf_counter() - begun) / count, (time.process_time() - processor) / count


def _chosen(source: Source, count: int, turn: int) -> Subset:
    """Images in a random order; a small set repeats itself."""
    return Subset(source, np.resize(np.random.default_rng(turn).permutation(len(source)), count).tolist())


def report(config: Config, images: int, settings: list[Setting], need: float) -> dict:
    """What was measured, by name; cores are counted by the processor time at the most threads, which is how one trains.

    Args:
        images: of the training set.
        need: images a second that a device takes.
    """
    rows = []
    for setting in settings:
        wall, processor = float(np.median(setting.wall)), float(np.median(setting.processor))
        row = {"threads": setting.threads, "images_per_s": 1 / wall, "cpu_s_per_image": processor}
        rows.append(row | {"images_per_s_per_core": 1 / processor})
    *rows, plain = rows
    cost = rows[-1]["cpu_s_per_image"]
    return {
        "images": images,
        "batch_size": config.data.batch_size,
        "image_size": config.model.image_size,
        "settings": rows,
        "cpu_s_per_image_plain": plain["cpu_s_per_image"],
        "decode_share": min(1.0, plain["cpu_s_per_image"] / rows[0]["cpu_s_per_image"]),
        "need": need,
        "cores_per_device": need * cost,
        "cores_for_eight_devices": 8 * need * cost,
    }


def as_text(result: dict) -> str:
    side, share, rows = result["image_size"], 100 * result["decode_share"], []
    for row in result["settings"]:
        speed, gain = row["images_per_s"], row["images_per_s"] / result["settings"][0]["images_per_s"]
        cells = f"{1000 * row['cpu_s_per_image']:.2f}", f"{row['images_per_s_per_core']:.1f}"
        rows.append((row["threads"], f"{speed:.1f}", f"{gain:.2f} x", *cells))
    one, eight = result["cores_per_device"], result["cores_for_eight_devices"]
    return (
        f"{result['images']} images, made {side} x {side} in batches of {result['batch_size']}\n"
        f"{table(rows, ('threads', 'images/s', 'against one', 'CPU ms an image', 'images/s a core'))}\n"
        f"reading, decoding and cropping: {share:.0f} % of the CPU time; augmenting: {100 - share:.0f} %\n"
        f"{result['need']:g} images/s: {one:.1f} cores for one device, {eight:.1f} for eight"
    )
