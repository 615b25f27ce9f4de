"""A plan of a tiny sweep, and how a wrong one is refused."""

import yaml

from skipvit.cli import run

MODEL = {"name": "vit_tiny_patch16_224", "width": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32}
MODEL |= {"num_classes": 10}
BASE = {
    "device": "cpu",
    "model": MODEL,
    "data": {"kind": "shapes", "batch_size": 20, "train_size": 120, "val_size": 40},
    "optim": {"epochs": 2, "lr": 1.0e-3, "warmup_epochs": 0},
}
ROUTES = {"routes": [{"start": 1, "end": 2}]}
PLAN = {"base": "base.yaml", "seeds": 2, "methods": {"dense": {}, "skipvit": ROUTES}}


def write(folder, values=PLAN, **changes):
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "tiny.yaml").write_text(
        values if isinstance(values, str) else yaml.safe_dump(values | changes, sort_keys=False)
    )
    return folder / "tiny.yaml"


def refused(plan, capsys, *words):
    assert run("sweep", [str(plan), "--runs", str(plan.parent / "runs"), *words]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and not out
    assert not (plan.parent / "runs").exists()
    return lines[0]
