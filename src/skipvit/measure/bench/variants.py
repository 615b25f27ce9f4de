"""What is timed side by side, and how: a process for each variant, one at a time, in a new order every round."""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from skipvit.config.config import Config
from skipvit.measure.bench.result import FEWEST_ROUNDS, BenchResult, compared
from skipvit.measure.bench.turns import Worker
from skipvit.models.arithmetic import forward_macs
from skipvit.routing.program import Program
from skipvit.util.cores import cores
from skipvit.util.errors import UsageError

# So long is a turn at least, in whole steps: what a process finds cold after the others' turns is then little.
TURN_S = 0.3

Mode = Literal["training", "inference"]


def bench(
    configs: Sequence[Config],
    rounds: int = 30,
    mode: Mode = "training",
    batch_sizes: Sequence[int] | None = None,
    parts: bool = False,
    with_data: bool = False,
    widest: float = 0.05,
) -> BenchResult:
    """Time every forward of several configurations in one interleaved run, against the first one's dense forward.

    Args:
        configs: of runs; they may differ in anything, ratios are of images/s.
        rounds: turns of each variant, 6 or more.
        mode: `training`, whole steps; `inference`, forwards alone.
        batch_sizes: images a step, one after another, each with fresh processes; None: each configuration's own.
        parts: also time forward, backward, update, routing and averaging alone (training).
        with_data: also time steps on the configuration's own images (training).
        widest: 95 % interval, as a share, with which a ratio is still quoted.

    Raises:
        UsageError: what cannot be measured.
        RunError: a process died, or failed on its data or machine.
    """
    values = begun(mode, rounds, widest)
    for name, asked in (("parts", parts), ("with_data", with_data)):
        if asked and mode == "inference":
            raise UsageError(f"{name}: only training is measured like that; leave it out or use mode training")
    for config in configs if parts else ():
        if len(config.model.spec().stages()) > 1:
            raise UsageError(f"parts: {config.model.name} has stages, whose parts are not measured alone; leave it out")
    for size in batch_sizes or [None]:
        variants = [variant.again(batch_size=size) for variant in variants_of(configs, with_data)]
        measure(variants, rounds, mode)
        # In runs of their own: each compiled part holds memory like a step's.
        alone = [measure([variant.again(parts=True)], rounds, mode)[0] for variant in variants] if parts else []
        values["batches"].append(compared(variants, alone, widest))
    return BenchResult(values)


def begun(mode: Mode, rounds: int, widest: float) -> dict[str, Any]:
    """What a `BenchResult` says before anything is measured. Raises UsageError if it cannot be measured like that."""
    if rounds < FEWEST_ROUNDS:
        raise UsageError(f"rounds: {rounds} rounds have no 95 % interval; use {FEWEST_ROUNDS} or more")
    if not 0 < widest < math.inf:
        raise UsageError(f"widest: {widest:g} is not a share above 0; 0.05 allows 1.45 to 1.52")
    how = {"mode": mode, "rounds": rounds, "widest": widest}
    return how | {"cores": cores(), "load_before": os.getloadavg()[0], "batches": []}


@dataclass
class Variant:
    """A forward of a configuration, and what was measured of it.

    Attributes:
        place: of the configuration among those that are compared.
        jobs: what is timed, see `worker.Bench`.
        words, python: its process, see `turns.Worker`.
        device: `cpu` or `ascend`.
        peak: most memory of a step, bytes, without what the process had before its network was built.
        skipped: updates without effect, because gradients overflowed (float16).
        raw: by job, see `result.BenchResult`.
    """

    name: str
    config: Config
    forward: str
    place: int = 0
    jobs: tuple[str, ...] = ("step",)
    words: Sequence[str] = ("-m", "skipvit.measure.bench.worker")
    python: str = sys.executable
    device: str = ""
    peak: int = 0
    skipped: int = 0
    raw: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        return self.config.program(self.forward)

    def again(self, batch_size: int | None = None, parts: bool = False) -> Variant:
        """The same, not measured yet, with another batch size or the parts of its step."""
        data = self.config.data.model_copy(update={"batch_size": batch_size} if batch_size else {})
        jobs = self.jobs
        if parts:
            known = {"routing": self.program.selections, "average": self.config.ema.decay}
            jobs = ("step", "forward", "forward_backward", *(job for job, there in known.items() if there))
        return replace(self, config=self.config.model_copy(update={"data": data}), jobs=jobs, raw={})

    def macs(self) -> int:
        """Multiply-accumulates of an image's forward."""
        return forward_macs(self.config.model.spec(), self.program)

    def step_s(self, job: str) -> np.ndarray:
        """Seconds of a step in each round."""
        return np.array(self.raw[job]["turn_s"]) / self.raw[job]["steps_of_a_turn"]


def variants_of(configs: Sequence[Config], with_data: bool = False) -> list[Variant]:
    """What is timed: the first configuration's dense forward, the baseline; then every other forward of each, of one
    that has no other its dense one."""
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        names = [f"{name} {i}" for i, name in enumerate(names, 1)]
    chosen = [(0, "dense")]
    for i, config in enumerate(configs):
        others = [name for name in config.forwards() if name != "dense"] or ["dense"]
        chosen += [(i, name) for name in others if (i, name) != chosen[0]]
    jobs = ("step", "with_data") if with_data else ("step",)
    return [Variant(f"{names[i]} {name}", configs[i], name, i, jobs) for i, name in chosen]


def measure(variants: list[Variant], rounds: int, mode: Mode = "training") -> list[Variant]:
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
        for i in tqdm(range(len(variants)), desc="first steps", disable=None, leave=False):
            prepare(variants[i], workers[i], mode)
        take_turns(variants, workers, rounds)
        for variant, worker in zip(variants, workers):
            variant.skipped = worker.ask("skipped")
    return variants


def prepare(variant: Variant, worker: Worker, mode: Mode = "training") -> None:
    """Have a process build its network and compile its jobs."""
    values = variant.config.model_dump(mode="json")  # plain: a process of another environment may not know our classes
    training = mode == "training"
    variant.device = worker.ask("build", values, variant.forward, training, "with_data" in variant.jobs)
    for job in variant.jobs:
        first_s, step_s, peak = worker.ask("prepare", job)
        if job == "step":
            variant.peak = peak  # before anything else was compiled
        steps = steps_of_a_turn(job, step_s, variant.config, training)
        variant.raw[job] = {"first_s": first_s, "steps_of_a_turn": steps, "turn_s": [], "order": []}


def steps_of_a_turn(job: str, step_s: float, config: Config, training: bool) -> int:
    """So many that a turn lasts long enough, makes whole updates and, with data, has a batch of each thread."""
    steps = max(math.ceil(TURN_S / step_s), config.data.workers if job == "with_data" else 1)
    each = config.optim.accumulate if training else 1
    return each * math.ceil(steps / each)


def take_turns(variants: list[Variant], workers: list[Worker], rounds: int) -> None:
    """Every job of every variant once a round, in a new order each time."""
    turns = [(worker, job, variant.raw[job]) for variant, worker in zip(variants, workers) for job in variant.jobs]
    shuffle = random.Random(0).shuffle
    for r in tqdm(range(rounds), desc="timing", unit="round", disable=None, leave=False):
        shuffle(turns)
        for place, (worker, job, raw) in enumerate(turns):
            raw["turn_s"].append(worker.ask("turn", job, raw["steps_of_a_turn"]))
            raw["order"].append(r * len(turns) + place)
