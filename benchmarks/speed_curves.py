"""What a route gains in training speed and memory as it, the images and the network grow: measured beside ideal.

    python benchmarks/speed_curves.py                    # all four curves: docs/curves.json, docs/curves.png, a table
    python benchmarks/speed_curves.py --curve blocks     # one of them
    python benchmarks/speed_curves.py --draw             # image and table of what is there, without measuring

Each point is one `skipvit bench` of a recipe, dense and routed in turns, of a batch with which both fit into 20 GiB.
What has been measured stays in the file, so a run that is stopped goes on where it was; points that were too noisy are
measured again. About twenty minutes for all on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

from matplotlib.figure import Figure

from skipvit.cli import exit_code
from skipvit.cli.options import OneLineParser
from skipvit.config.config import Config
from skipvit.config.reading import load_config
from skipvit.measure.bench.result import quoted
from skipvit.measure.bench.variants import begun, bench
from skipvit.measure.cost import cost
from skipvit.util.errors import UsageError
from skipvit.util.files import write_whole

DOCS = Path(__file__).parents[1] / "docs"
WIDEST = 0.05  # 95 % interval, as a share, with which a ratio is quoted
SPANS = {3: (4, 7), 5: (4, 9), 7: (4, 11), 9: (2, 11)}
# Images a step: about as many multiply-accumulates in each, and memory for a dense and a routed process at once.
BATCHES = {("tiny", 224): 32, ("small", 224): 16, ("small", 384): 4, ("small", 512): 2, ("base", 224): 4}


@dataclass(frozen=True)
class Point:
    blocks: int = 7
    keep: float = 0.45
    image: int = 224
    model: str = "small"

    @property
    def name(self) -> str:
        return f"{self.model} {self.image} px, {self.blocks} blocks, keep {self.keep:g}"

    @property
    def batch(self) -> int:
        return BATCHES[self.model, self.image]

    def config(self) -> Config:
        start, end = SPANS[self.blocks]
        overrides = {
            "device": "cpu",
            "model.name": f"vit_{self.model}_patch16_224",
            "model.image_size": self.image,
            "data.batch_size": self.batch,
            "routes": [{"start": start, "end": end, "keep_ratio": self.keep}],
        }
        return load_config("skipvit_small_imagenet.yaml", overrides)


CURVES = {
    "blocks": ("bypassed blocks", {blocks: Point(blocks=blocks) for blocks in SPANS}),
    "keep": ("keep ratio", {keep: Point(keep=keep) for keep in (0.2, 0.3, 0.45, 0.6, 0.8)}),
    "size": ("side of the images, pixels", {image: Point(image=image) for image in (224, 384, 512)}),
    "model": ("network", {model: Point(model=model) for model in ("tiny", "small", "base")}),
}


def main(words: list[str]) -> None:
    parser = OneLineParser(prog="speed_curves.py", description=__doc__)
    parser.add_argument("--curve", choices=CURVES, help="only this one (default: all)")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="turns of each forward (default: 12)")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--again", action="store_true", help="measure also what has been measured")
    parser.add_argument(
        "--results", type=Path, default=DOCS / "curves.json", metavar="FILE", help="default: docs/curves.json"
    )
    parser.add_argument(
        "--out", type=Path, default=DOCS / "curves.png", metavar="FILE", help="default: docs/curves.png"
    )
    options = parser.parse_args(words)
    begun("training", options.rounds, WIDEST)  # refused now rather than after the first point
    if options.out.suffix != ".png" or not options.out.parent.is_dir():
        raise UsageError(f"--out: {options.out} is not a .png file in a folder that exists")
    results = measured_before(options.results)
    if not options.draw:
        chosen = [options.curve] if options.curve else list(CURVES)
        measure({point.name: point for curve in chosen for point in CURVES[curve][1].values()}, results, options)
    print(table(results))
    figure_of(results).savefig(options.out, dpi=110)


def measured_before(file: Path) -> dict:
    """Results by the points' names. Raises UsageError for a file that holds none, or a folder that is not there."""
    if not file.parent.is_dir():
        raise UsageError(f"--results: {file} is not in a folder that exists")
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError:
        raise UsageError(
            f"--results: {file} does not hold results of this script; name another file, or delete it"
        ) from None


def measure(points: dict[str, Point], results: dict, options: argparse.Namespace) -> None:
    """Measure the points that have no answer yet, and write each one's into the file as soon as it is there."""
    for name, point in points.items():
        if options.again or name not in results or rows(results[name])[1]["step"]["speedup"] is None:
            print(name, file=sys.stderr)
            results[name] = bench([point.config()], options.rounds, widest=WIDEST).as_dict()
            write_whole(options.results, json.dumps(results, allow_nan=False))


def rows(result: dict) -> list[dict]:
    """What was measured of the dense and the routed forward."""
    return result["batches"][0]["variants"]


def ideal_memory(point: Point) -> float:
    """Routed over dense by formula (`skipvit cost`): what the backward keeps, and weights, gradients and so on, alike
    in both."""
    found = cost(point.config())
    state = sum(found.state.values())
    dense, routed = (state + point.batch * found.forwards[name].activations for name in ("dense", "routed"))
    return routed / dense


def table(results: dict) -> str:
    """Markdown: a line a point."""
    speeds = "| | batch | images/s dense | routed | speed-up (95 % interval) | ideal | efficiency"
    lines = [f"{speeds} | memory, MiB dense | routed | ratio | by formula |", "|" + "---|" * 11]
    for title, points in CURVES.values():
        for value, point in points.items():
            if point.name in results:
                lines.append(f"| {title} {value} | {_cells(point, *rows(results[point.name]))} |")
    return "\n".join(lines)


def _cells(point: Point, dense: dict, routed: dict) -> str:
    step = routed["step"]
    share = "" if step["efficiency"] is None else f"{100 * step['efficiency']:.0f} %"
    speeds = " | ".join(f"{row['step']['images_per_s']:.1f}" for row in (dense, routed))
    memory = " | ".join(f"{row['peak_memory_bytes'] / 2**20:.0f}" for row in (dense, routed))
    return (
        f"{point.batch} | {speeds} | {quoted(step)} | {routed['ideal_speedup']:.3f} x | {share} | "
        f"{memory} | {routed['memory_ratio']:.2f} | {ideal_memory(point):.2f}"
    )


def figure_of(results: dict) -> Figure:
    """A column a curve: speed-up above, memory below, measured and ideal."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes = figure.subplots(2, len(CURVES), sharey="row")
    for (title, points), (speed, memory) in zip(CURVES.values(), axes.T):
        there = [
            (str(value), point, rows(results[point.name])[1])
            for value, point in points.items()
            if point.name in results
        ]
        names = [value for value, _, _ in there]
        speed.plot(
            names, [row["ideal_speedup"] for *_, row in there], "k--s", markerfacecolor="none", label="ideal (MACs)"
        )
        for value, _, row in there:
            _draw_speedup(speed, value, row["step"])
        memory.plot(
            names, [ideal_memory(point) for _, point, _ in there], "k--s", markerfacecolor="none", label="by formula"
        )
        memory.plot(names, [row["memory_ratio"] for *_, row in there], "o", color="tab:orange", label="measured")
        memory.set_xlabel(title)
        speed.grid(alpha=0.3)
        memory.grid(alpha=0.3)
    axes[0, 0].set_ylabel("training images/s, routed : dense")
    axes[1, 0].set_ylabel("peak memory, routed : dense")
    axes[0, 0].plot([], [], "o", color="tab:blue", label="measured, 95 % interval")
    axes[0, 0].plot([], [], "o", color="tab:grey", markerfacecolor="none", label="too noisy to say")
    for axis in axes[:, 0]:
        axis.legend(fontsize=8)
    return figure


def _draw_speedup(axis, value: str, step: dict) -> None:
    low, high = step["speedup_interval"]
    if step["speedup"] is None:
        axis.plot([value, value], [low, high], "-", color="tab:grey")
        axis.plot([value], [(low + high) / 2], "o", color="tab:grey", markerfacecolor="white")
    else:
        around = [[step["speedup"] - low], [high - step["speedup"]]]
        axis.errorbar([value], step["speedup"], yerr=around, fmt="o", color="tab:blue", capsize=3)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
