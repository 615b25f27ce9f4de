"""Training loss and top-1 of several runs in one image.

    python benchmarks/curves_of_runs.py runs/a runs/b --out curves.png

Accuracy is of the forward that each epoch trained: solid with the trained weights, dashed with the averaged ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from skipvit import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", required=True, metavar="FILE", help="image to write")
    options = parser.parse_args()
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, run in enumerate(options.runs):
        records, color = Run(run).records(), f"C{number}"
        epochs = [record["epoch"] for record in records]
        loss.plot(
            epochs,
            [record["train_loss"] for record in records],
            color=color,
            marker="o",
            markersize=3,
            label=Path(run).name,
        )
        for suffix, style in (("", "-"), ("_ema", "--")):
            points = [
                (r["epoch"], r["val"][r["trained"] + suffix]["top1"])
                for r in records
                if r["trained"] + suffix in r["val"]
            ]
            accuracy.plot(*zip(*points), style, color=color)
    for axis, title in (
        (loss, "training loss (mixed, smoothed targets)"),
        (accuracy, "top-1, %, of the trained forward"),
    ):
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    loss.legend(fontsize=8)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
