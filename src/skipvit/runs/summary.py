"""What a finished run comes to, as JSON and as text."""

from __future__ import annotations

from statistics import median
from typing import Any

from skipvit.util.text import table


def summary(records: list[dict[str, Any]], best: str, macs: dict[str, int]) -> dict[str, Any]:
    """For each forward: final accuracies in percent, median training throughput over its epochs, MACs. What is not
    known is None.

    Args:
        records: the run's epochs, as far as they are known, see `runs.run.Run.records`; the last one was evaluated.
        best: the forward that decided about the best checkpoint.
        macs: of an image, by forward.
    """
    last, top1, forwards = records[-1], records[-1]["best_top1"], {}
    epochs = [r["epoch"] for r in records if r.get("val", {}).get(best, {}).get("top1") == top1]
    for name, scores in last["val"].items():
        forward = name.removesuffix("_ema")
        speeds = [r["images_per_s"] for r in records if r.get("trained") == forward and r.get("images_per_s")]
        forwards[name] = {
            "top1": scores["top1"],
            "top5": scores["top5"],
            "train_images_per_s": median(speeds) if speeds else None,
            "gmacs": macs[forward] / 1e9,
        }
    about = {"trained": last["trained"], "epochs": last["epoch"], "forwards": forwards}
    about["best"] = {"forward": best, "top1": top1, "epoch": epochs[-1] if epochs else None}
    return about | {name: last.get(name) for name in ("overflows", "broken_images")}


def as_text(result: dict[str, Any]) -> str:
    """The summary as a small table."""
    rows = []
    for name, row in result["forwards"].items():
        speed = f"{row['train_images_per_s']:.0f}" if row["train_images_per_s"] else "-"
        note = "trained last" if name == result["trained"] else None
        rows.append((name, f"{row['top1']:.2f}", f"{row['top5']:.2f}", speed, f"{row['gmacs']:.4f}", note))
    lines = [table(rows, ("", "top-1 %", "top-5 %", "training images/s", "GMACs", ""), "<>>>><")]
    dense, routed = result["forwards"].get("dense"), result["forwards"].get("routed")
    if dense and routed:
        lines.append(f"routed against dense: MACs {dense['gmacs'] / routed['gmacs']:.2f} x fewer")
    best = result["best"]
    epoch = f"epoch {best['epoch']}" if best["epoch"] else "of an epoch that the log has lost"
    lines.append(f"best: {best['top1']:.2f} % ({best['forward']}, {epoch})")
    if result["overflows"]:
        lines.append(f"{result['overflows']:.0f} updates were skipped because they were not finite")
    return "\n".join(lines)
