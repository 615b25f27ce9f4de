"""What is said about what was measured: values with intervals, which are too uncertain to be quoted, a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skipvit.measure.bench.timing import Estimate, estimate
from skipvit.util.errors import RunError
from skipvit.util.text import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skipvit.measure.bench.variants import Variant

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
        """Speed-ups beside what the multiply-accumulates allow, and memory."""
        from skipvit.measure.bench.figure import speed_figure

        return speed_figure(self.values)

    def uncertain(self) -> int:
        """How many figures are None because their intervals are too wide."""
        rows = [row for batch in self.values["batches"] for row in batch["variants"]]
        names = ("step", "speedup"), ("with_data", "speedup"), ("with_data", "waiting")
        figures = [row[job].get(name, 1) for row in rows for job, name in names if job in row]
        return [*figures, *(part["share"] for row in rows for part in row.get("parts", {}).values())].count(None)

    def refuse_uncertain(self) -> None:
        """Raises RunError if there are such figures."""
        count, widest, rounds = self.uncertain(), self.values["widest"], self.values["rounds"]
        if count:
            raise RunError(
                f"too noisy to say for {count} of the figures (an interval wider than --widest {widest:g}): "
                f"use more --rounds than {rounds}, or an idle machine"
            )


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
