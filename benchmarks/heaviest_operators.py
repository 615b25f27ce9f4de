"""The heaviest operators of a training step on CPU, by MindSpore's profiler, with the shapes that they work on.

    python benchmarks/heaviest_operators.py --config configs/vit_mini_shapes_cpu.yaml
    python benchmarks/heaviest_operators.py --config configs/skipvit_mini_shapes_cpu.yaml --forward routed

Operators of one kind on inputs of the same shapes are one line: milliseconds of a step, median over the steps. Of most
of the backward MindSpore does not say which layer an operator belongs to; its shapes do. Where it begins and ends is
told by the order. *Before* is how long no operator ran until these began: scheduling, and getting memory for their
results.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

import numpy as np
from mindspore.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from skipvit.cli import exit_code
from skipvit.cli.options import OneLineParser, from_words
from skipvit.engine import devices
from skipvit.engine.build import build_network
from skipvit.engine.synthetic import random_batch, training_step
from skipvit.util.errors import RunError, UsageError
from skipvit.util.text import table

NEWER = "MindSpore's profiler wrote no {0}, as that of 2.8.0 does"


def main(words: list[str]) -> None:
    parser = OneLineParser(prog="heaviest_operators.py", description="The heaviest operators of a training step.")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--forward", default="dense", metavar="NAME", help="one of the run's (default: dense)")
    parser.add_argument("--steps", type=int, default=5, metavar="N")
    parser.add_argument("--top", type=int, default=30, metavar="N", help="lines to print")
    config, options = from_words(parser, words)
    device, _ = devices.start("cpu", config.deterministic)
    if options.forward not in config.forwards():
        raise UsageError(f"--forward: {options.forward} is not one of {', '.join(config.forwards())}")
    batch = random_batch(config, options.forward)
    step = training_step(config, device, build_network(config, device), options.forward)

    def timed() -> float:
        begun = time.perf_counter()
        step(*batch)
        step.optimizer.step.asnumpy()
        return time.perf_counter() - begun

    for _ in range(3):
        timed()
    seconds = statistics.median(timed() for _ in range(options.steps))
    with tempfile.TemporaryDirectory() as folder:
        profiled(timed, options.steps, folder)
        operators = read(Path(folder), options.steps)
    said = f"median step {1000 * seconds:.1f} ms without the profiler"
    print(f"{config.name} {options.forward}, batch {config.data.batch_size}: {said}")
    print(summed_up(operators, options.top))


def profiled(step, steps: int, folder: str) -> None:
    """Run so many steps under the profiler, which writes into the folder."""
    profiler = profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=0, active=steps, repeat=1),
        on_trace_ready=tensorboard_trace_handler(folder),
    )
    profiler.start()
    for _ in range(steps):
        step()
        profiler.step()
    profiler.stop()


def read(folder: Path, steps: int) -> list[tuple[str, str, str, str, np.ndarray, np.ndarray]]:
    """Operators of a step in the order in which they ran: part of the step, cell, kind, shapes of the inputs, and in
    each step the ms that it took and that nothing ran before it.

    One file has times and full names, the other shapes and short names, both in the order of the launches.
    """
    runs = []
    for line in _lines(folder, "cpu_op_execute_timestamp_*.txt"):
        name, _, times = line.split(";")
        runs += [(int(time.split(",")[0]), name, float(time.split(",")[1])) for time in times.split()]
    shapes = [line.split(";") for line in _lines(folder, "cpu_framework_*.txt")]
    runs.sort()
    if len(runs) != len(shapes) or any(not name.endswith(f"/{of[1]}") for (_, name, _), of in zip(runs, shapes)):
        raise RunError(f"{len(runs)} operators ran and {len(shapes)} have shapes, in another order")
    each, waits = len(runs) // steps, _waits(runs)
    backward = [i for i in range(each) if runs[i][1].startswith("Gradients/Default/loss-CrossEntropy/forward-")]
    result = []
    for i in range(each):
        (_, name, _), (kind, _, _, *inputs) = runs[i], shapes[i]
        part = "forward" if i < backward[0] else "backward" if i <= backward[-1] else "update"
        scope = name.split("/")[-2]
        cell = scope.split("-")[1] if part != "update" and not name.startswith("Gradients/") and "-" in scope else ""
        known = [text.split(":", 1)[1].replace(" ", "") for text in inputs if ":[" in text]
        ms = np.array([ms for _, _, ms in runs[i::each]])
        before = waits[i::each] if i else np.zeros(steps)
        result.append((part, cell, kind, " ".join(known), ms, before))
    return result


def _waits(runs: list[tuple[int, str, float]]) -> np.ndarray:
    """Milliseconds before each operator in which none ran; runs are (start in ns, name, ms), by start."""
    result, end = [], runs[0][0]
    for start, _, ms in runs:
        result.append(max(0, start - end) / 1e6)
        end = max(end, start + int(1e6 * ms))
    return np.array(result)


def _lines(folder: Path, name: str) -> list[str]:
    files = sorted(folder.glob(f"*/FRAMEWORK/{name}"))
    if not files:
        raise RunError(NEWER.format(name))
    return [line for file in files for line in file.read_text().splitlines() if line]


def summed_up(operators: list[tuple[str, str, str, str, np.ndarray, np.ndarray]], top: int) -> str:
    """Tables of what `read` found: by part of the step, by kind, and one by one."""
    everything, waits = (np.median(sum(operator[c] for operator in operators)) for c in (4, 5))
    text = [f"{len(operators)} operators, {everything:.1f} ms in all, and {waits:.1f} ms between them"]
    for title, columns in (("part", (0,)), ("kind", (2,)), ("part, cell, kind, shapes of the inputs", (0, 1, 2, 3))):
        groups = defaultdict(list)
        for operator in operators:
            groups[tuple(operator[c] for c in columns)].append(operator[4:])
        rows = [(*np.median(np.sum(times, 0), 1), len(times), key) for key, times in groups.items()]
        cells = [
            (f"{ms:.2f}", f"{100 * ms / everything:.1f} %", f"{wait:.2f}", count, "  ".join(filter(None, key)))
            for ms, wait, count, key in sorted(rows, reverse=True)[:top]
        ]
        text.append(table(cells, ["ms", "share", "before", "times", title], ">>>><"))
    return "\n\n".join(text)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
