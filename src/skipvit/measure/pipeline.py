"""`skipvit pipeline`: how many training images a second this machine makes, and how many cores feed a device."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.config.groups import AugmentConfig
from skipvit.data.batches import Batches
from skipvit.data.broken import Broken
from skipvit.data.open import batches_of, open_source
from skipvit.data.sources import Source
from skipvit.data.sources.arrays import Subset
from skipvit.util.cores import cores
from skipvit.util.errors import UsageError

ROUNDS = 5  # parts that a setting's time is cut into, so that what disturbs the machine disturbs all settings
DEVICES = 8  # of one machine
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # without the fractions of its seconds

EPILOG = """The data pipeline alone, on the training images: no network, no device. Each number of threads has its turn
in every round, and the medians of the rounds are printed. Processor time does not count what else runs on the machine;
the images a second do. A first batch of each setting is left out. Files that are read again come from the machine's
memory.

examples:
  skipvit pipeline --data.path /data/imagenet
  skipvit pipeline --data.path /data/imagenet --config configs/vit_small_imagenet.yaml --need 2000 --threads 16
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit pipeline", description="Time the data pipeline alone.", epilog=EPILOG
    )
    recipe = configuration.recipe("skipvit_small_imagenet.yaml")
    result.add_argument("--config", default=recipe, metavar="FILE", help="YAML file of a run")
    result.add_argument(
        "--threads", type=int, metavar="N", help="most threads to try (default: the machine's cores, at most 8)"
    )
    result.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="measured for each setting (default: 10)"
    )
    result.add_argument(
        "--need", type=float, default=1000.0, metavar="X", help="images/s that a device takes (default: 1000)"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    if options.threads is None:
        options.threads = min(cores(), 8)
    for name in ("threads", "seconds", "need"):
        if not 0 < getattr(options, name) < float("inf"):
            raise UsageError(f"--{name}: {getattr(options, name):g} is not a number above 0")
    source = open_source(config, "train")
    settings = measure(config, source, thread_counts(options.threads), options.seconds)
    result = report(config, len(source), settings, options.need)
    print(json.dumps(result) if options.json else as_text(result))


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


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


def measure(config: Config, source: Source, threads: list[int], seconds: float) -> list[Setting]:
    """Every number of threads as configured, then one thread without augmentation; each measured for so many seconds.

    Raises:
        RunError: too many broken images.
    """
    settings = [*(Setting(n, False) for n in threads), Setting(1, True)]
    update = config.data.batch_size * config.optim.accumulate
    # Noise for drop path; what random routes add takes no time worth building a network to know it.
    batches = batches_of(config, _chosen(source, update, 0), 2 * config.model.shape().depth, training=True)()
    batches = replace(batches, accumulate=1, broken=Broken(len(source), config.data.broken_share))
    for setting in tqdm(settings, desc="first batches", disable=None, leave=False):
        _pass(batches, source, setting, 0)
        per_batch = config.data.batch_size * _pass(batches, source, setting, 1)[0]
        # As many for each thread: none waits for the others at the end.
        setting.steps = setting.threads * max(1, round(seconds / ROUNDS / per_batch))
    with tqdm(
        total=round(seconds * len(settings)), desc="timing", disable=None, leave=False, unit="s", bar_format=BAR
    ) as bar:
        turn = 2
        while any(setting.seconds < seconds for setting in settings):
            for setting in settings:
                wall, processor = _pass(batches, source, setting, turn)
                setting.wall.append(wall)
                setting.processor.append(processor)
                spent = wall * setting.steps * config.data.batch_size
                bar.update(min(spent, max(0.0, seconds - setting.seconds)))
                setting.seconds += spent
            turn += 1
    return settings


def _pass(batches: Batches, source: Source, setting: Setting, turn: int) -> tuple[float, float]:
    """Make `setting.steps` batches to the last one; seconds an image, by the clock and of all processors."""
    count = setting.steps * batches.batch_size
    augment = batches.augment
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
    """What is printed; cores are counted by the processor time at the most threads, which is how a training runs."""
    rows = []
    for setting in settings:
        wall, processor = float(np.median(setting.wall)), float(np.median(setting.processor))
        rows.append(
            {
                "threads": setting.threads,
                "images_per_s": 1 / wall,
                "cpu_s_per_image": processor,
                "images_per_s_per_core": 1 / processor,
            }
        )
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
        "cores_for_eight_devices": DEVICES * need * cost,
    }


def as_text(result: dict) -> str:
    side = result["image_size"]
    lines = [
        f"{result['images']} images, made {side} x {side} in batches of {result['batch_size']}",
        f"{'threads':>7}{'images/s':>12}{'against one':>13}{'CPU ms an image':>18}{'images/s a core':>19}",
    ]
    one = result["settings"][0]["images_per_s"]
    for row in result["settings"]:
        lines.append(
            f"{row['threads']:7}{row['images_per_s']:12.1f}{row['images_per_s'] / one:11.2f} x"
            f"{1000 * row['cpu_s_per_image']:18.2f}{row['images_per_s_per_core']:19.1f}"
        )
    share = 100 * result["decode_share"]
    lines.append(f"reading, decoding and cropping: {share:.0f} % of the CPU time; augmenting: {100 - share:.0f} %")
    lines.append(
        f"{result['need']:g} images/s: {result['cores_per_device']:.1f} cores for one device, "
        f"{result['cores_for_eight_devices']:.1f} for eight"
    )
    return "\n".join(lines)
