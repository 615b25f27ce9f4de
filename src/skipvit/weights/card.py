"""The model card of an export: what the network is, what it learnt from, how good it was found, and what to feed it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from skipvit.config.config import Config
from skipvit.data.open import whole_images
from skipvit.engine import checkpoint
from skipvit.models.arithmetic import blocks_of, forward_macs
from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD
from skipvit.runs.folder import versions
from skipvit.runs.trained import Trained
from skipvit.util.errors import RunError, UsageError
from skipvit.util.files import read_json
from skipvit.util.text import printable, table

LICENCE = "code: Apache-2.0; weights: not stated, mind the terms of the images they learnt from"
SHOWN_CLASSES = 10
SCORES = ("top1", "top5", "loss")
NUMBERS = ("width", "widths", "depth", "depths", "heads", "patch", "window", "reductions", "mlp_ratios")


def card(trained: Trained, kind: str, dtype: str, files: list[dict[str, Any]], licence: str) -> dict[str, Any]:
    """Everything about an export that a person or a program that uses it needs, as plain values.

    Args:
        kind: mindir, onnx or safetensors.
        dtype: of the images that the files take.
        files: a row for each, see `export.export`.
    """
    config, spec = trained.config, trained.config.model.spec()
    forward, program = config.forwards()[trained.forward], config.program(trained.forward)
    return {
        "name": config.name,
        "format": kind,
        "files": files,
        "task": "image classification",
        "model": config.model.name,
        "forward": trained.forward,
        "trained_forward": config.trained(),
        "main_forward": config.main(),
        "weights": {"checkpoint": trained.checkpoint.name, "averaged": trained.averaged},
        "size": {name: getattr(spec, name) for name in NUMBERS if hasattr(spec, name)},
        "elsewhere": list(spec.at_size(forward.image_size).elsewhere()),
        "parameters": sum(parameter.size for parameter in trained.network.get_parameters()),
        "macs": forward_macs(spec, program),
        "tokens_of_blocks": [{"attention": b.attention, "mlp": b.mlp} for b in blocks_of(spec, program)],
        "routes": [route.model_dump(mode="json") for route in forward.routes],
        "input": _input(trained, kind, dtype),
        "output": {
            "what": "logits" if kind == "safetensors" else "probabilities",
            "shape": [spec.num_classes],
            "dtype": "float32",
        },
        "classes": list(trained.classes),
        "data": {"kind": config.data.kind, "name": _name(config.data.path)},
        "started_from": _name(config.init.weights),
        "metrics": _metrics(trained),
        "versions": {"training": _training_versions(trained), "export": versions()},
        "exported": time.strftime("%Y-%m-%d %H:%M:%S"),
        "licence": licence,
        "config": shareable(config),
    }


def _input(trained: Trained, kind: str, dtype: str) -> dict[str, Any]:
    """How an image becomes the network's input."""
    config, size = trained.config, trained.config.forwards()[trained.forward].image_size
    crop = 1.0 if whole_images(config) else config.data.eval_crop
    inside = kind != "safetensors" and dtype == "uint8"
    return {
        "preparation": f"RGB, shorter side to {int(size / crop)} pixels (bicubic), centre {size} x {size}",
        "layout": "NCHW" if kind == "safetensors" else "NHWC",
        "shape": [size, size, 3],
        "dtype": "float32" if kind == "safetensors" else dtype,
        "normalisation": "inside" if inside else "(pixel - mean) / deviation",
        "mean": list(PIXEL_MEAN),
        "deviation": list(PIXEL_STD),
    }


def _metrics(trained: Trained) -> dict[str, Any]:
    """Validation scores of exactly these weights, from the run's log, of the exported forward first; or why there are
    none."""
    if trained.run is None:
        return {"note": "exported from a checkpoint alone"}
    try:
        changed = trained.config.changed_since(trained.run.config)
        position = checkpoint.read_run(trained.checkpoint).position
    except (UsageError, RunError):
        return {"note": "the checkpoint does not say which epoch it is of"}
    if changed:
        return {"note": f"another configuration than the run's: {', '.join(changed)}"}
    epoch = position.epoch + 1 if position.step == position.steps else None
    record = next((r for r in trained.run.records() if r["epoch"] == epoch and _scored(r.get("val"))), None)
    if record is None:
        return {"note": "these weights have not been evaluated by the run"}
    exported = f"{trained.forward}_ema" if trained.averaged else trained.forward
    return {"epoch": epoch, "exported": exported, "validation": record["val"]}


def _scored(val: dict[str, dict[str, Any]] | None) -> bool:
    """Whether a log has an evaluation with every score."""
    return bool(val) and all(isinstance(row.get(key), int | float) for row in val.values() for key in SCORES)


def _training_versions(trained: Trained) -> dict[str, str] | None:
    """Versions of the run's latest start, without what it says of the machine."""
    starts = read_json(trained.run.path / "versions.json") if trained.run else None
    latest = starts[-1] if isinstance(starts, list) and starts else None
    if not isinstance(latest, dict):
        return None
    return {name: str(latest[name]) for name in versions() if name in latest}


def shareable(config: Config) -> dict[str, Any]:
    """The configuration, of paths only the last part: the rest says something of a machine."""
    values = config.model_dump(mode="json")
    values["data"]["path"], values["init"]["weights"] = _name(config.data.path), _name(config.init.weights)
    values["imports"] = [_name(path) for path in config.imports]
    return values


def _name(path: str | None) -> str | None:
    return Path(path).name if path else None


def as_markdown(about: dict[str, Any]) -> str:
    """The card as text for people; the JSON beside it has the whole configuration and all classes."""
    given, result, weights, data = about["input"], about["output"], about["weights"], about["data"]
    classes = ", ".join(about["classes"][:SHOWN_CLASSES]) + (", …" if len(about["classes"]) > SHOWN_CLASSES else "")
    facts = {
        "model": ", ".join([about["model"], *(f"{name} {value}" for name, value in about["size"].items())]),
        "forward": f"{about['forward']} ({about['trained_forward']} was trained last)",
        "parameters": f"{about['parameters']:,}",
        "multiply-accumulates": f"{about['macs']:,} an image",
        "tokens of its blocks": ", ".join(
            f"{b['attention']}" + (f" (MLP {b['mlp']})" if b["mlp"] != b["attention"] else "")
            for b in about["tokens_of_blocks"]
        ),
        "routes": "; ".join(map(json.dumps, about["routes"])) or "none",
        "weights": f"{weights['checkpoint']}, {'averaged' if weights['averaged'] else 'last'}",
        "classes": f"{len(about['classes'])}: {classes}",
        "data": " ".join(filter(None, (data["kind"], data["name"]))),
        "started from": about["started_from"] or "weights drawn at random",
        "input": f"{given['dtype']} {given['layout']} {given['shape']}: {given['preparation']}",
        "normalisation": f"{given['normalisation']}; mean {given['mean']}, deviation {given['deviation']} of 0 to 255",
        "output": f"{result['what']} of {result['shape'][0]} classes, {result['dtype']}",
        "licence": about["licence"],
    }
    for when, found in about["versions"].items():
        facts[f"versions, {when}"] = ", ".join(f"{k} {v}" for k, v in found.items()) if found else "not known"
    files = [(row["file"], f"{row['bytes']:,} bytes", row["verified"]) for row in about["files"]]
    sections = {
        f"# {about['name']} ({about['format']})": table((name, printable(fact)) for name, fact in facts.items()),
        "## Files": "\n".join([table(files), *(f"SHA-256 {row['sha256']}  {row['file']}" for row in about["files"])]),
        "## Use": usage(about),
        "## Validation": _scores(about["metrics"]),
    }
    parts = []
    for title, text in sections.items():
        lines = text.replace("```", "'''")  # nothing inside is Markdown
        parts.append(f"{title}\n\n```{'python' if title == '## Use' else 'text'}\n{lines}\n```\n")
    return "\n".join(parts)


def usage(about: dict[str, Any]) -> str:
    """The shortest program that runs the export."""
    file = about["files"][0]["file"]
    if about["format"] == "onnx":
        return (
            f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\n'
            '(probabilities,) = session.run(None, {"images": images})'
        )
    if about["format"] == "mindir":
        return (
            f'import mindspore as ms\nnetwork = ms.nn.GraphCell(ms.load("{file}"))\n'
            "probabilities = network(ms.Tensor(images))"
        )
    lines = (
        "from safetensors.torch import load_file",
        *about["elsewhere"],
        f'network.load_state_dict(load_file("{file}"))',
        "# It runs dense: there are no routes.",
    )
    return "\n".join(lines)


def _scores(found: dict[str, Any]) -> str:
    if "note" in found:
        return f"None: {found['note']}."
    rows = []
    for name, row in found["validation"].items():
        mark = "this export" if name == found["exported"] else None
        rows.append((name, f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.3f}", mark))
    return table(rows, (f"after epoch {found['epoch']}", "top-1 %", "top-5 %", "loss", ""))
