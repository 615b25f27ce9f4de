"""What `skipvit bench` says about what it measured: numbers for JSON, a table, and which of them are too uncertain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skipvit.measure.timing import Estimate, efficiency, estimate, speedup, spread

if TYPE_CHECKING:
    from skipvit.measure.bench import Variant


TIMES = (
    f"{'batch':>5}{'step, s':>10}{'IQR, s':>9}{'images/s':>10}  {'speed-up (95 % interval)':34}"  # head of the columns
)


def report(variants: list[Variant], alone: list[Variant], widest: float) -> dict:
    """Everything about one batch size, the baseline first.

    Args:
        alone: the same variants again, measured part by part, each on its own; or none.
    """
    baseline = variants[0]
    rows = [_row(variant, baseline, widest) for variant in variants]
    for row, variant in zip(rows, alone):
        row["parts"] = {name: _share(values, variant.step_s("step"), widest) for name, values in parts(variant).items()}
        row["raw_parts"] = _raw(variant)
    return {"device": baseline.device, "baseline": baseline.name, "variants": rows}


def _row(variant: Variant, baseline: Variant, widest: float) -> dict:
    ideal = baseline.macs() / variant.macs()
    row = {
        "name": variant.name,
        "file": variant.file,
        "forward": variant.forward,
        "batch_size": variant.config.data.batch_size,
        "macs": variant.macs(),
        "ideal_speedup": ideal,
        "peak_memory_bytes": variant.peak,
        "memory_ratio": variant.peak / baseline.peak,
        "skipped_updates": variant.skipped,
    }
    for job in ("step", "with_data"):
        if job in variant.turns:
            row[job] = _throughput(variant, baseline, job, ideal, widest)
    if "with_data" in variant.turns:
        waiting = estimate(1 - variant.step_s("step") / variant.step_s("with_data"))
        row["with_data"] |= _interval("waiting", waiting, waiting.high - waiting.low <= widest)
    return row | {"raw": _raw(variant)}


def _raw(variant: Variant) -> dict:
    """What was measured, by job: seconds of the first step and of each turn, steps of a turn, places of the turns in the run."""
    kept = {
        "first_s": variant.first_s,
        "steps_of_a_turn": variant.steps,
        "turn_s": variant.turns,
        "order": variant.order,
    }
    return {job: {name: values[job] for name, values in kept.items()} for job in variant.jobs}


def _throughput(variant: Variant, baseline: Variant, job: str, ideal: float, widest: float) -> dict:
    seconds, batch = variant.step_s(job), variant.config.data.batch_size
    median = float(np.median(seconds))
    result = {"median_s": median, "iqr_s": spread(seconds), "images_per_s": batch / median}
    if variant is not baseline:
        ratio = speedup(baseline.step_s(job) / baseline.config.data.batch_size, seconds / batch)
        sure = ratio.within(widest)
        result |= _interval("speedup", ratio, sure)
        same_code = variant.words == baseline.words
        result["efficiency"] = efficiency(ratio.median, ideal) if sure and job == "step" and same_code else None
    return result


def parts(variant: Variant) -> dict[str, np.ndarray]:
    """Seconds of each part of a step, round by round.

    `forward`, `backward` and `update` (finite check, clipping, AdamW, average of the weights) add up to the step; `average` is
    within the update, `routing` within forward and backward, both timed alone.
    """
    step, forward, both = (variant.step_s(job) for job in ("step", "forward", "forward_backward"))
    result = {"forward": forward, "backward": both - forward, "update": step - both}
    return result | {job: variant.step_s(job) for job in ("average", "routing") if job in variant.turns}


def _share(seconds: np.ndarray, step: np.ndarray, widest: float) -> dict:
    share = estimate(seconds / step)
    return {"median_s": float(np.median(seconds)), **_interval("share", share, share.high - share.low <= widest)}


def _interval(name: str, value: Estimate, sure: bool) -> dict:
    """An estimate, without its median if that is not to be quoted."""
    return {name: value.median if sure else None, f"{name}_interval": [value.low, value.high]}


def too_noisy(result: dict) -> int:
    """How many figures are not reported because their intervals are too wide."""
    rows = [row for batch in result["batches"] for row in batch["variants"]]
    figures = [row[job].get("speedup", 1) for row in rows for job in ("step", "with_data") if job in row]
    figures += [row["with_data"]["waiting"] for row in rows if "with_data" in row]
    figures += [part["share"] for row in rows for part in row.get("parts", {}).values()]
    return figures.count(None)


def as_text(result: dict) -> str:
    machine = f"{result['cores']} cores, load {result['load_before']:.1f} before it began"
    return "\n\n".join([*(_batch_text(batch, result) for batch in result["batches"]), machine])


def _batch_text(batch: dict, result: dict) -> str:
    rows, width = batch["variants"], max(len(row["name"]) for row in batch["variants"]) + 2
    lines = [
        f"{result['mode']} on {batch['device']}, medians of {result['rounds']} rounds, against {batch['baseline']}",
        f"{'':{width}}{TIMES}{'ideal':>7}{'efficiency':>12}{'memory, MiB':>18}{'first step, s':>15}",
        *(_step_line(row, width) for row in rows),
    ]
    if "with_data" in rows[0]:
        lines += ["", "with the config's own images:"]
        lines += [f"{'':{width}}{TIMES}waiting for data (95 % interval)"]
        lines += [_data_line(row, width) for row in rows]
    if "parts" in rows[0]:
        lines += ["", f"{'parts of the step':{width}}{'':16}{'ms':>9}   share (95 % interval)"]
        lines += [_part_line(row, part, width) for row in rows for part in row["parts"]]
    for row in rows:
        if row["skipped_updates"]:
            lines.append(
                f"{row['name']}: {row['skipped_updates']} updates were skipped (overflow); their steps are shorter"
            )
    return "\n".join(lines)


def _step_line(row: dict, width: int) -> str:
    gained = row["step"].get("efficiency")
    share = f"{100 * gained:.0f} %" if gained is not None else ""
    memory = f"{row['peak_memory_bytes'] / 2**20:.0f}"
    if "speedup" in row["step"]:
        memory += f" ({row['memory_ratio']:.2f} x)"
    first = row["raw"]["step"]["first_s"]
    return f"{_times(row, 'step', width)}{row['ideal_speedup']:5.3f} x{share:>12}{memory:>18}{first:15.1f}"


def _data_line(row: dict, width: int) -> str:
    return _times(row, "with_data", width) + _share_text("waiting", row["with_data"])


def _times(row: dict, job: str, width: int) -> str:
    times = row[job]
    return (
        f"{row['name']:{width}}{row['batch_size']:5}{times['median_s']:10.4f}{times['iqr_s']:9.4f}{times['images_per_s']:10.1f}"
        f"  {_speedup_text(times):34}"
    )


def _speedup_text(times: dict) -> str:
    if "speedup" not in times:
        return "baseline"
    low, high = times["speedup_interval"]
    if times["speedup"] is None:
        return f"too noisy to say ({low:.2f} to {high:.2f})"
    return f"{times['speedup']:.2f} x ({low:.2f} to {high:.2f})"


def _part_line(row: dict, part: str, width: int) -> str:
    values = row["parts"][part]
    ms = f"{1000 * values['median_s']:9.2f}" if values["share"] is not None else f"{'':9}"
    return f"{row['name']:{width}}{part:16}{ms}   {_share_text('share', values)}"


def _share_text(name: str, values: dict) -> str:
    low, high = (100 * end for end in values[f"{name}_interval"])
    if values[name] is None:
        return f"too noisy to say ({low:.0f} to {high:.0f} %)"
    return f"{100 * values[name]:.1f} % ({low:.1f} to {high:.1f} %)"
