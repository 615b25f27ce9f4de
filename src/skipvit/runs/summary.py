"""What a finished run comes to, as JSON and as text."""

from __future__ import annotations


def summary(records: list[dict], best: str, macs: dict[str, int]) -> dict:
    """For each forward: final accuracies in percent, median training throughput over its epochs, MACs.

    Args:
        records: the run's epochs, see `training.run_folder.RunFolder.records`; the last one was evaluated.
        best: the forward that decided about the best checkpoint.
        macs: of an image, `dense` and `routed`.
    """
    last = records[-1]
    result = {"trained": last["trained"], "epochs": len(records), "forwards": {}}
    result["best"] = {"forward": best, "top1": last["best_top1"], "epoch": _last_epoch(records, best, last["best_top1"])}
    for name in ("overflows", "broken_images"):
        result[name] = last.get(name, 0)
    for name, scores in last["val"].items():
        forward = name.removesuffix("_ema")
        speeds = sorted(r["images_per_s"] for r in records if r["trained"] == forward and r.get("images_per_s"))
        result["forwards"][name] = {
            "top1": scores["top1"],
            "top5": scores["top5"],
            "train_images_per_s": speeds[len(speeds) // 2] if speeds else None,
            "gmacs": macs[forward] / 1e9,
        }
    return result


def _last_epoch(records: list[dict], forward: str, top1: float) -> int | None:
    return next((r["epoch"] for r in reversed(records) if "val" in r and r["val"][forward]["top1"] == top1), None)


def as_text(result: dict) -> str:
    """The summary as a small table."""
    lines = [f"{'':10}{'top-1 %':>9}{'top-5 %':>9}{'training images/s':>19}{'GMACs':>9}"]
    for name, row in result["forwards"].items():
        speed = f"{row['train_images_per_s']:.0f}" if row["train_images_per_s"] else "-"
        note = "  trained last" if name == result["trained"] else ""
        lines.append(f"{name:10}{row['top1']:9.2f}{row['top5']:9.2f}{speed:>19}{row['gmacs']:9.4f}{note}")
    dense, routed = result["forwards"]["dense"], result["forwards"].get("routed")
    if routed:
        ratio = f"MACs {dense['gmacs'] / routed['gmacs']:.2f} x fewer"
        if dense["train_images_per_s"] and routed["train_images_per_s"]:
            ratio = f"training {routed['train_images_per_s'] / dense['train_images_per_s']:.2f} x the images/s, " + ratio
        lines.append(f"routed against dense: {ratio}")
    best = result["best"]
    lines.append(f"best: {best['top1']:.2f} % ({best['forward']}, epoch {best['epoch']})")
    if result["overflows"]:
        lines.append(f"{result['overflows']:.0f} updates were skipped because they were not finite")
    return "\n".join(lines)
