"""Sweeps whose numbers are made up."""

import json

from skipvit.config.config import to_yaml
from skipvit.config.reading import checked

MODEL = {"name": "vit_tiny_patch16_224", "width": 64, "depth": 6, "heads": 2, "patch": 4, "image_size": 32}
MODEL |= {"num_classes": 10}
BASE = {
    "device": "cpu",
    "model": MODEL,
    "data": {"kind": "shapes", "batch_size": 32, "train_size": 320},
    "optim": {"epochs": 4, "warmup_epochs": 1},
}
ROUTED = {"routes": [{"start": 2, "end": 5}], "phases": [{"epochs": 1, "routes": []}, {}]}


def write_run(folder, name, method, seed, keys, evaluations, variant=None, point=None, epochs=(2, 4)):
    """A run's folder as training leaves it, and its entry in sweep.json; top-1 dense and routed after some epochs."""
    config = checked(BASE | keys | {"name": name, "seed": seed}, name)
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").write_text(to_yaml(config))
    forward = config.trained()
    with open(folder / name / "metrics.jsonl", "w") as file:
        for epoch, (dense, routed) in zip(epochs, evaluations):
            val = {"dense": {"top1": dense}} | ({"routed": {"top1": routed}} if routed is not None else {})
            file.write(json.dumps({"epoch": epoch, "trained": forward, "steps": 10, "val": val}) + "\n")
    last = {"dense": evaluations[-1][0]} | ({"routed": evaluations[-1][1]} if evaluations[-1][1] is not None else {})
    summary = {
        "epochs": epochs[-1],
        "forwards": {name: {"top1": top1} for name, top1 in last.items()},
        "best": {"forward": forward},
    }
    (folder / name / "summary.json").write_text(json.dumps(summary))
    (folder / name / "checkpoints").mkdir()
    (folder / name / "checkpoints" / "epoch_0004_step_000010.ckpt").write_bytes(b"weights")
    variant, point = variant or method, point or {}
    return {"name": name, "method": method, "variant": variant, "cell": "", "seed": seed, "point": point}
