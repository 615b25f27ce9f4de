"""What is said about what was measured: values with intervals, which are too uncertain to be quoted, a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import binom

from skipvit.util.errors import RunError
from skipvit.util.text import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skipvit.measure.bench.variants import Variant

FEWEST_ROUNDS = 6  # of fewer numbers not even all of them are a 95 % interval
HEAD = ["", "batch", "step, s", "IQR, s", "images/s", "speed-up (95 % interval)", "ideal", "efficiency"]
HEAD += ["memory, MiB", "first step, s"]


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured. `values` are plain, and may come from a file that `skipvit bench --json` made.

    `mode`, `rounds`, `widest`: how it was measured; `cores`, `load_before`: where; `batches`: for each batch size
    `device`, `baseline` (a name) and `variants`, the baseline first, each with

    - `name`, `config` (its place among those compared), `forward`, `batch_size`, `macs` (of an image's forward),
      `ideal_speedup`,
    - `peak_memory_bytes` of a step, `memory_ratio` to the baseline's, `skipped_updates` (overflows),
    - `step`, and `with_data` on the configuration's own images: `median_s`, `iqr_s`, `images_per_s`; but for the
      baseline `speedup`, `speedup_interval` and, of a step, `efficiency`, the share of the ideal gain; with data
      `waiting` for it, a share of the step,
    - `parts` of the step: `median_s`, `share`, `share_interval`,
    - `raw`: by job, seconds of the first step, which compiles, and of each turn, a turn's steps and the turns' places
      in the run.

    Intervals are of 95 %. A median whose interval is too wide is None.
    """

    values: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return self.values

    def table(self) -> str:
        """For people: a block a batch size, and how busy the machine was."""
        blocks = [_batch_text(batch, self.values) for batch in self.values["batches"]]
        machine = f"{self.values['cores']} cores, load {self.values['load_before']:.1f} before it began"
        return "\n\n".join([*blocks, machine])

    def figure(self) -> Figure:
        """Speed-ups beside what the multiply-accumulates allow, and memory; a row a batch size."""
        from matplotlib.figure import Figure

        batches = self.values["batches"]
        most = max(len(batch["variants"]) for batch in batches)
        figure = Figure(figsize=(11, (1.2 + 0.5 * most) * len(batches)), layout="constrained")
        for batch, (speed, memory) in zip(batches, figure.subplots(len(batches), 2, squeeze=False, sharey="row")):
            rows = batch["variants"]
            places = np.arange(len(rows))
            _draw_speed(speed, rows, places)
            memory.barh(places, [row["peak_memory_bytes"] / 2**20 for row in rows], 0.6, color="tab:grey")
            memory.set_xlabel("peak memory, MiB")
            speed.set_yticks(places, [f"{row['name']}, batch {row['batch_size']}" for row in rows])
            speed.invert_yaxis()  # of both, which share it: the baseline on top
            speed.set_xlabel(f"{self.values['mode']} images/s against {batch['baseline']}")
            for axis in (speed, memory):
                axis.grid(axis="x", alpha=0.3)
        return figure

    def uncertain(self) -> int:
        """How many figures are None because their intervals are too wide."""
        rows = [row for batch in self.values["batches"] for row in batch["variants"]]
        names = ("step", "speedup"), ("with_data", "speedup"), ("with_data", "waiting")
        figures = [row[job].get(name, 1) for row in rows for job, name in names if job in row]
        return [*figures, *(part["share"] for row in rows for part in row.get("parts", {}).values())].count(None)

    def refuse_uncertain(self) -> None:
        """Raises RunError if there are such figures."""
        if count := self.uncertain():
            wider = f"an interval wider than --widest {self.values['widest']:g}"
            what_to_do = f"use more --rounds than {self.values['rounds']}, or an idle machine"
            raise RunError(f"too noisy to say for {count} of the figures ({wider}): {what_to_do}")


def _draw_speed(axis, rows: list[dict], places: np.ndarray) -> None:
    ideals = [row["ideal_speedup"] for row in rows]
    axis.barh(places + 0.2, ideals, 0.35, color="none", edgecolor="black", label="ideal (MACs)")
    for place, row in zip(places, rows):
        low, high = row["step"].get("speedup_interval", (1, 1))
        value = row["step"].get("speedup", 1)
        if value is None:
            axis.text(0.02, place - 0.2, f"too noisy to say ({low:.2f} to {high:.2f})", va="center", fontsize=8)
        else:
            axis.barh(place - 0.2, value, 0.35, color="tab:blue", label="measured" if place == 0 else None)
            axis.errorbar(value, place - 0.2, xerr=[[value - low], [high - value]], color="black", capsize=3)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


class Estimate(NamedTuple):
    """A median over rounds with a 95 % interval, in whatever unit was measured."""

    median: float
    low: float
    high: float


def estimate(values: np.ndarray) -> Estimate:
    """The median of independent values of any distribution, and the narrowest interval between two of them, equally far
    from both ends, that holds the distribution's median with at least 95 % confidence (order statistics: the number of
    values below it is binomial with p = 1/2).

    Raises:
        ValueError: fewer than `FEWEST_ROUNDS` values.
    """
    count = len(values)
    if count < FEWEST_ROUNDS:
        raise ValueError(f"{count} rounds have no 95 % interval; at least {FEWEST_ROUNDS} do")
    # Fewer than `rank` values lie below the median with a chance of at most 2.5 %; as many above.
    rank, ordered = int(binom.ppf(0.025, count, 0.5)), np.sort(values)
    return Estimate(float(np.median(values)), float(ordered[rank - 1]), float(ordered[count - rank]))


def compared(variants: list[Variant], alone: list[Variant], widest: float) -> dict[str, Any]:
    """One of the `batches` of a `BenchResult`.

    Args:
        variants: measured together, the baseline first.
        alone: the same variants again, measured part by part, each on its own; or none.
        widest: see `variants.bench`.
    """
    rows = [_row(variant, variants[0], widest) for variant in variants]
    for row, variant in zip(rows, alone):
        step = variant.step_s("step")
        row["parts"] = {name: _share("share", seconds, step, widest) for name, seconds in parts_of(variant).items()}
    return {"device": variants[0].device, "baseline": variants[0].name, "variants": rows}


def _row(variant: Variant, baseline: Variant, widest: float) -> dict[str, Any]:
    row = {
        "name": variant.name,
        "config": variant.place,
        "forward": variant.forward,
        "batch_size": variant.config.data.batch_size,
        "macs": variant.macs(),
        "ideal_speedup": baseline.macs() / variant.macs(),
        "peak_memory_bytes": variant.peak,
        "memory_ratio": variant.peak / baseline.peak,
        "skipped_updates": variant.skipped,
        "step": _throughput(variant, baseline, "step", widest),
    }
    if "with_data" in variant.raw:
        seconds = variant.step_s("with_data")
        waiting = _share("waiting", seconds - variant.step_s("step"), seconds, widest)
        row["with_data"] = waiting | _throughput(variant, baseline, "with_data", widest)
    if row["step"].get("speedup") and row["ideal_speedup"] > 1.001 and variant.words == baseline.words:
        row["step"]["efficiency"] = (row["step"]["speedup"] - 1) / (row["ideal_speedup"] - 1)
    return row | {"raw": variant.raw}


def _throughput(variant: Variant, baseline: Variant, job: str, widest: float) -> dict[str, Any]:
    seconds, batch = variant.step_s(job), variant.config.data.batch_size
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    result = {"median_s": median, "iqr_s": high - low, "images_per_s": batch / median}
    if variant is baseline:
        return result
    # Within each round, so that what disturbs a round disturbs both.
    ratio = estimate(baseline.step_s(job) / baseline.config.data.batch_size / (seconds / batch))
    sure = ratio.high - ratio.low <= widest * ratio.median
    return result | _interval("speedup", ratio, sure) | {"efficiency": None}


def parts_of(variant: Variant) -> dict[str, np.ndarray]:
    """Seconds of each part of a step, round by round.

    `forward`, `backward` and `update` (finite check, clipping, AdamW, average of the weights) add up to the step;
    `average` is within the update, `routing` within forward and backward, both timed alone.
    """
    step, forward, both = (variant.step_s(job) for job in ("step", "forward", "forward_backward"))
    result = {"forward": forward, "backward": both - forward, "update": step - both}
    return result | {job: variant.step_s(job) for job in ("average", "routing") if job in variant.raw}


def _share(name: str, seconds: np.ndarray, step: np.ndarray, widest: float) -> dict[str, Any]:
    share = estimate(seconds / step)
    return {"median_s": float(np.median(seconds)), **_interval(name, share, share.high - share.low <= widest)}


def _interval(name: str, value: Estimate, sure: bool) -> dict[str, Any]:
    """An estimate, without its median if that is not to be quoted."""
    return {name: value.median if sure else None, f"{name}_interval": [value.low, value.high]}


def quoted(values: dict[str, Any], name: str = "speedup", scale: float = 1, unit: str = "x", digits: int = 2) -> str:
    """E.g. `1.46 x (1.45 to 1.49)`, or `too noisy to say (1.41 to 1.58)`."""
    low, high = (f"{scale * end:.{digits}f}" for end in values[f"{name}_interval"])
    said = "too noisy to say" if values[name] is None else f"{scale * values[name]:.{digits}f} {unit}"
    return f"{said} ({low} to {high})"


def _batch_text(batch: dict, values: dict) -> str:
    rows, device, baseline = batch["variants"], batch["device"], batch["baseline"]
    lines = [f"{values['mode']} on {device}, medians of {values['rounds']} rounds, against {baseline}"]
    cells = [_cells(row, "step") for row in rows]
    lines.append(table(cells, HEAD, "<>>>><>>>>"))
    if "with_data" in rows[0]:
        waits = [quoted(row["with_data"], "waiting", 100, "%", 1) for row in rows]
        cells = [[*_cells(row, "with_data"), wait] for row, wait in zip(rows, waits)]
        head = [*HEAD[:6], "waiting for data (95 % interval)"]
        lines += ["", "with the config's own images:", table(cells, head, "<>>>><<")]
    if "parts" in rows[0]:
        parts = [(row["name"], name, part) for row in rows for name, part in row["parts"].items()]
        milliseconds = ["" if part["share"] is None else f"{1000 * part['median_s']:.2f}" for *_, part in parts]
        cells = [(*p[:2], ms, quoted(p[2], "share", 100, "%", 1)) for p, ms in zip(parts, milliseconds)]
        lines += ["", table(cells, ["parts of the step", "", "ms", "share (95 % interval)"], "<<><")]
    for row in rows:
        if row["skipped_updates"]:
            lines.append(f"{row['name']}: {row['skipped_updates']} updates were skipped (overflow): shorter steps")
    return "\n".join(lines)


def _cells(row: dict, job: str) -> list[str]:
    times, gained = row[job], row[job].get("efficiency")
    seconds = f"{times['median_s']:.4f}", f"{times['iqr_s']:.4f}", f"{times['images_per_s']:.1f}"
    cells = [row["name"], row["batch_size"], *seconds, quoted(times) if "speedup" in times else "baseline"]
    if job == "with_data":
        return cells
    memory = f"{row['peak_memory_bytes'] / 2**20:.0f} ({row['memory_ratio']:.2f} x)"
    first = f"{row['raw']['step']['first_s']:.1f}"
    return [*cells, f"{row['ideal_speedup']:.3f} x", "" if gained is None else f"{100 * gained:.0f} %", memory, first]
