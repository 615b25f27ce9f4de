"""`skipvit bench`: training and inference throughput of several configs in one interleaved run."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.measure.bench_report import as_text, report, too_noisy
from skipvit.measure.macs import forward_macs
from skipvit.measure.speed_figure import speed_figure
from skipvit.measure.synthetic import Forward
from skipvit.measure.timing import FEWEST_ROUNDS
from skipvit.measure.turns import Worker
from skipvit.util.cores import cores
from skipvit.util.errors import RunError, UsageError

TURN_S = (
    0.3  # at least so long is a turn, in whole steps: what a process finds cold after the others' turns is then little
)

EPILOG = """The first config's dense forward is the baseline. Each config adds a forward: routed where it has routes, else dense.
Each runs in a process of its own, one at a time, in a new order every round; ratios are taken within a round. Keys such as
--data.batch_size 16 are for all configs. What is measured and how to read it: docs/bench.md.

examples:
  skipvit bench configs/skipvit_small_imagenet.yaml --data.batch_size 16
  skipvit bench configs/skipvit_small_imagenet.yaml --mode inference --batch_sizes 1,4,16,64 --out speed.png
  skipvit bench a.yaml b.yaml c.yaml --parts --with_data --json > bench.json

exit code 1: a ratio is too uncertain to be reported, or a process died
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit bench", description="Time training or inference of several configs side by side.", epilog=EPILOG
    )
    result.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files of runs")
    result.add_argument(
        "--mode", choices=("training", "inference"), default="training", help="whole steps, or forwards alone"
    )
    result.add_argument(
        "--batch_sizes",
        type=configuration.batch_sizes,
        default=[None],
        metavar="N,N,...",
        help="one after another (default: each config's own)",
    )
    result.add_argument(
        "--parts", action="store_true", help="also forward, backward, update and routing alone (training)"
    )
    result.add_argument("--with_data", action="store_true", help="also with the config's own images (training)")
    result.add_argument("--plain", action="store_true", help="also a textbook ViT of the baseline's size")
    result.add_argument("--rounds", type=int, default=30, metavar="N", help="turns of each (default: 30)")
    result.add_argument(
        "--widest",
        type=float,
        default=0.05,
        metavar="X",
        help="widest 95 %% interval, as a share, with which a ratio is reported (default: 0.05)",
    )
    result.add_argument("--out", metavar="FILE", help="draw speed-ups and memory into this .png")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    result, options = measured(words)
    print(json.dumps(result, allow_nan=False) if options.json else as_text(result))
    if options.out:
        speed_figure(result).savefig(options.out, dpi=110)
    refuse(result)


def measured(words: list[str]) -> tuple[dict, argparse.Namespace]:
    """What a command line asks to be measured, as `--json` prints it, and its options."""
    config, options = configuration.from_words(parser(), words, lambda options: options.configs[0])
    check(options)
    configs = [config]
    for i in range(1, len(options.configs)):
        configs.append(configuration.from_words(parser(), words, lambda options: options.configs[i])[0])
    variants = variants_of(configs, options)
    result = beginning(options.mode, options.rounds, options.widest)
    for size in options.batch_sizes:
        together = measure([variant.with_batch(size) for variant in variants], options)
        alone = [measure([variant.in_parts(size)], options)[0] for variant in variants] if options.parts else []
        result["batches"].append(report(together, alone, options.widest))
    return result, options


def beginning(mode: str, rounds: int, widest: float) -> dict:
    """What a report says first: how it was measured, and how busy the machine was before."""
    how = {"mode": mode, "rounds": rounds, "widest": widest}
    return how | {"cores": cores(), "load_before": os.getloadavg()[0], "batches": []}


def refuse(result: dict) -> None:
    """Raises RunError if figures are too uncertain to be reported."""
    uncertain = too_noisy(result)
    if uncertain:
        raise RunError(
            f"too noisy to say for {uncertain} of the figures (an interval wider than --widest {result['widest']:g}): "
            f"use more --rounds than {result['rounds']}, or an idle machine"
        )


def check(options: argparse.Namespace) -> None:
    """What can be refused before anything is started. Raises UsageError."""
    if options.rounds < FEWEST_ROUNDS:
        raise UsageError(f"--rounds: {options.rounds} rounds have no 95 % interval; use {FEWEST_ROUNDS} or more")
    if not 0 < options.widest < math.inf:
        raise UsageError(f"--widest: {options.widest:g} is not a share above 0; 0.05 allows 1.45 to 1.52")
    for name in ("parts", "with_data"):
        if options.mode == "inference" and getattr(options, name):
            raise UsageError(f"--{name}: only training is measured like that; leave it out or use --mode training")
    if options.out and (Path(options.out).suffix != ".png" or not Path(options.out).parent.is_dir()):
        raise UsageError(f"--out: {options.out} is not a .png file in a folder that exists")


@dataclass
class Variant:
    """A forward of a config, and what was measured of it.

    Attributes:
        turns: seconds of each turn in the order of the rounds, by job (see `bench_worker.Bench`).
        steps: steps of a turn, by job.
        first_s: seconds of the first step, which compiles, by job.
        peak: most memory of a step, bytes, without what the process had before its network was built.
        skipped: updates without effect, because gradients overflowed (float16).
        order: places of its turns in the whole run, by job.
        words, python: its process, see `turns.Worker`.
    """

    name: str
    file: str
    config: Config
    forward: Forward
    jobs: tuple[str, ...]
    device: str = ""
    peak: int = 0
    skipped: int = 0
    turns: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    first_s: dict[str, float] = field(default_factory=dict)
    order: dict[str, list[int]] = field(default_factory=dict)
    words: Sequence[str] = ("-m", "skipvit.measure.bench_worker")
    python: str = sys.executable

    def with_batch(self, size: int | None) -> Variant:
        """The same, not measured yet, with a batch size of its own or its config's."""
        data = self.config.data.model_copy(update={"batch_size": size} if size else {})
        config = self.config.model_copy(update={"data": data})
        return Variant(self.name, self.file, config, self.forward, self.jobs, words=self.words, python=self.python)

    def in_parts(self, size: int | None) -> Variant:
        """The same with the parts of its step. In a run of its own: each compiled part holds memory like a step's."""
        result = self.with_batch(size)
        routing, average = ["routing"] * (self.forward == "routed"), ["average"] * (self.config.ema.decay > 0)
        result.jobs = ("step", "forward", "forward_backward", *routing, *average)
        return result

    def macs(self) -> int:
        """Multiply-accumulates of an image's forward."""
        model, spans = self.config.model, self.config.spans() if self.forward == "routed" else ()
        return forward_macs(model.shape(), model.patch, model.tokens, model.num_classes, spans)

    def step_s(self, job: str) -> np.ndarray:
        """Seconds of a step in each round."""
        return np.array(self.turns[job]) / self.steps[job]


def variants_of(configs: list[Config], options: argparse.Namespace) -> list[Variant]:
    """What is timed, the baseline first."""
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        names = [f"{name} {i}" for i, name in enumerate(names, 1)]
    chosen: list[tuple[int, Forward]] = [(0, "dense")]
    chosen += [(i, "routed" if config.routes else "dense") for i, config in enumerate(configs) if i or config.routes]
    if options.plain:
        chosen.append((0, "plain"))
    jobs = ("step", "with_data") if options.with_data else ("step",)
    return [Variant(f"{names[i]} {forward}", options.configs[i], configs[i], forward, jobs) for i, forward in chosen]


def measure(variants: list[Variant], options: argparse.Namespace) -> list[Variant]:
    """Start a process for each variant, prepare one after another, and let them take turns; all have ended afterwards.

    Raises:
        UsageError, RunError: what went wrong in one of them, after its name.
    """
    with ExitStack() as stack:
        workers = []
        for variant in variants:
            workers.append(Worker(variant.name, variant.words, variant.python))
            stack.callback(workers[-1].end)
        for worker in workers:
            worker.ready()
        with tqdm(total=sum(len(v.jobs) for v in variants), desc="first steps", disable=None, leave=False) as bar:
            for variant, worker in zip(variants, workers):
                prepare(variant, worker, options.mode == "training", bar)
        take_turns(variants, workers, options.rounds)
        for variant, worker in zip(variants, workers):
            variant.skipped = worker.ask("skipped")
    return variants


def prepare(variant: Variant, worker: Worker, training: bool, bar: tqdm) -> None:
    """Have a process build its network and compile its jobs."""
    values = variant.config.model_dump(mode="json")  # plain: a process of another environment may not know our classes
    variant.device = worker.ask("build", values, variant.forward, training, "with_data" in variant.jobs)
    for job in variant.jobs:
        variant.first_s[job], step_s, peak = worker.ask("prepare", job)
        if job == "step":
            variant.peak = peak  # before anything else was compiled
        variant.steps[job] = steps_of_a_turn(job, step_s, variant.config, training)
        variant.turns[job], variant.order[job] = [], []
        bar.update()


def steps_of_a_turn(job: str, step_s: float, config: Config, training: bool) -> int:
    """So many that a turn lasts long enough; with data, so that each of its threads has made a batch; and whole updates."""
    steps = max(math.ceil(TURN_S / step_s), config.data.workers if job == "with_data" else 1)
    each = config.optim.accumulate if training else 1
    return each * math.ceil(steps / each)


def take_turns(variants: list[Variant], workers: list[Worker], rounds: int) -> None:
    """Every job of every variant once a round, in a new order each time."""
    turns = [(variant, worker, job) for variant, worker in zip(variants, workers) for job in variant.jobs]
    shuffle = random.Random(0).shuffle
    for r in tqdm(range(rounds), desc="timing", unit="round", disable=None, leave=False):
        shuffle(turns)
        for place, (variant, worker, job) in enumerate(turns):
            variant.turns[job].append(worker.ask("turn", job, variant.steps[job]))
            variant.order[job].append(r * len(turns) + place)
