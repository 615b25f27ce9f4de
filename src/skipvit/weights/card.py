"""The model card of an export: what the network is, what it learnt from, how good it was found, and what to feed it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.data.open import whole_images
from skipvit.engine import checkpoint
from skipvit.measure.macs import forward_macs, sequences
from skipvit.models.vit import PIXEL_MEAN, PIXEL_STD
from skipvit.runs.run_folder import versions
from skipvit.util.errors import RunError, UsageError
from skipvit.weights.trained import Trained

LICENCE = "code: Apache-2.0; weights: not stated, mind the terms of the images they learnt from"
SHOWN_CLASSES = 10


def card(trained: Trained, kind: str, dtype: str, files: list[dict], licence: str) -> dict:
    """Everything about an export that a person or a program that uses it needs, as plain values.

    Args:
        kind: mindir, onnx or safetensors.
        dtype: of the images that the files take.
        files: a row for each, see `tools.export`.
    """
    config, network = trained.config, trained.network
    model, spans = config.model, network.spans if trained.routed else ()
    shape = model.shape()
    return {
        "name": config.name,
        "format": kind,
        "files": files,
        "task": "image classification",
        "forward": trained.forward,
        "trained_forward": config.trained(),
        "main_forward": config.main(),
        "weights": {"checkpoint": trained.checkpoint.name, "averaged": trained.averaged},
        "size": shape._asdict(),
        "parameters": sum(parameter.size for parameter in network.get_parameters()),
        "macs": forward_macs(shape, model.patch, model.tokens, model.num_classes, spans),
        "tokens_of_blocks": [asdict(sequence) for sequence in sequences(shape.depth, model.tokens, spans)],
        "routes": config.model_dump(mode="json")["routes"],
        "input": input_format(trained, kind, dtype),
        "output": output_format(trained, kind),
        "classes": list(trained.classes),
        "data": {"kind": config.data.kind, "name": Path(config.data.path).name if config.data.path else None},
        "started_from": Path(config.init.weights).name if config.init.weights else None,
        "metrics": metrics(trained),
        "versions": {"training": training_versions(trained), "export": versions()},
        "exported": time.strftime("%Y-%m-%d %H:%M:%S"),
        "licence": licence,
        "config": shareable(config),
    }


def input_format(trained: Trained, kind: str, dtype: str) -> dict:
    """How an image becomes the network's input."""
    config = trained.config
    size, crop = config.model.image_size, 1.0 if whole_images(config) else config.data.eval_crop
    normalisation = "inside" if kind != "safetensors" and dtype == "uint8" else "(pixel - mean) / deviation"
    return {
        "preparation": f"RGB, shorter side to {round(size / crop)} pixels (bicubic), centre {size} x {size}",
        "layout": "NCHW" if kind == "safetensors" else "NHWC",
        "shape": [size, size, 3],
        "dtype": "float32" if kind == "safetensors" else dtype,
        "normalisation": normalisation,
        "mean": list(PIXEL_MEAN),
        "deviation": list(PIXEL_STD),
    }


def output_format(trained: Trained, kind: str) -> dict:
    return {
        "what": "logits" if kind == "safetensors" else "probabilities",
        "shape": [trained.config.model.num_classes],
        "dtype": "float32",
    }


def metrics(trained: Trained) -> dict:
    """Validation scores of exactly these weights, from the run's log, of the exported forward first; or why there are none."""
    if trained.run is None:
        return {"note": "exported from a checkpoint alone"}
    try:
        changed = trained.config.changed_since(configuration.read(trained.run.config))
        position = checkpoint.read_run(trained.checkpoint).position
    except (UsageError, RunError):
        return {"note": "the checkpoint does not say which epoch it is of"}
    if changed:
        return {"note": f"another configuration than the run's: {', '.join(changed)}"}
    epoch = position.epoch + 1 if position.step == position.steps else None
    record = next((record for record in trained.run.records() if record["epoch"] == epoch and "val" in record), None)
    if record is None:
        return {"note": "these weights have not been evaluated by the run"}
    exported = trained.forward + "_ema" * trained.averaged
    return {"epoch": epoch, "exported": exported, "validation": record["val"]}


def training_versions(trained: Trained) -> dict | None:
    """Versions of the run's latest start, without what it says of the machine."""
    try:
        latest = json.loads((trained.run.path / "versions.json").read_text(encoding="utf-8"))[-1]
        return {name: latest[name] for name in versions() if name in latest}
    except (AttributeError, OSError, ValueError, LookupError, TypeError):
        return None


def shareable(config: configuration.Config) -> dict:
    """The configuration, of paths only the last part: the rest says something of a machine."""
    values = config.model_dump(mode="json")
    for group, key in (("data", "path"), ("init", "weights")):
        values[group][key] = Path(values[group][key]).name if values[group][key] else None
    return values


# Markdown


def as_markdown(about: dict) -> str:
    """The card as text for people; the JSON beside it has the whole configuration and all classes."""
    given, result = about["input"], about["output"]
    classes = ", ".join(about["classes"][:SHOWN_CLASSES]) + (", …" if len(about["classes"]) > SHOWN_CLASSES else "")
    sections = [
        f"# {about['name']} ({about['format']})",
        f"Vision Transformer for {about['task']} by SkipViT for MindSpore, {about['forward']} forward "
        f"({about['trained_forward']} was trained last).",
        _table(
            ("parameters", f"{about['parameters']:,}"),
            ("multiply-accumulates an image", f"{about['macs']:,}"),
            ("tokens that its blocks see", _tokens(about["tokens_of_blocks"])),
            ("weights", f"{about['weights']['checkpoint']}, {'averaged' if about['weights']['averaged'] else 'last'}"),
            ("classes", f"{len(about['classes'])}: {classes}"),
            ("data", f"{about['data']['kind']}{' ' + about['data']['name'] if about['data']['name'] else ''}"),
            ("started from", about["started_from"] or "weights drawn at random"),
            ("licence", about["licence"]),
        ),
        "## Input and output",
        f"{given['preparation']}. {given['dtype']} {given['layout']}, normalisation: {given['normalisation']} "
        f"(mean {given['mean']}, deviation {given['deviation']} on the 0 to 255 scale). "
        f"Output: {result['what']} of {result['shape'][0]} classes, {result['dtype']}.",
        f"```python\n{usage(about)}\n```",
        "## Files",
        "\n".join(
            f"- `{row['file']}`, {row['bytes']:,} bytes, SHA-256 `{row['sha256']}`: {row['verified']}"
            for row in about["files"]
        ),
        "## Routes",
        "\n".join(f"- {json.dumps(route)}" for route in about["routes"]) or "None.",
        "## Validation",
        _scores(about["metrics"]),
        "## Versions",
        "\n".join(f"- {when}: {_words(found)}" for when, found in about["versions"].items()),
    ]
    return "\n\n".join(sections) + "\n"


def usage(about: dict) -> str:
    """The shortest program that runs the export."""
    file, given = about["files"][0]["file"], about["input"]
    if about["format"] == "onnx":
        return f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\n(probabilities,) = session.run(None, {{"images": images}})'
    if about["format"] == "mindir":
        return f'import mindspore as ms\nnetwork = ms.nn.GraphCell(ms.load("{file}"))\nprobabilities = network(ms.Tensor(images))'
    model = about["config"]["model"]
    shape = f"img_size={given['shape'][0]}, patch_size={model['patch']}, num_classes={model['num_classes']}"
    size = f"embed_dim={about['size']['width']}, depth={about['size']['depth']}, num_heads={about['size']['heads']}"
    act = "" if model["gelu"] == "erf" else ', act_layer="gelu_tanh"'
    return (
        "from safetensors.torch import load_file\nfrom timm.models.vision_transformer import VisionTransformer\n"
        f'network = VisionTransformer({shape}, {size}{act})\nnetwork.load_state_dict(load_file("{file}"))  # runs dense: timm has no routes'
    )


def _table(*rows: tuple[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _tokens(blocks: list[dict]) -> str:
    return ", ".join(f"{b['attention']}" + (f" (MLP {b['mlp']})" if b["mlp"] != b["attention"] else "") for b in blocks)


def _scores(found: dict) -> str:
    if "note" in found:
        return f"None: {found['note']}."
    lines = [f"After epoch {found['epoch']}:", "", "| | top-1, % | top-5, % | loss | |", "|---|---|---|---|---|"]
    for name, row in found["validation"].items():
        mark = "this export" if name == found["exported"] else ""
        lines.append(f"| {name} | {row['top1']:.2f} | {row['top5']:.2f} | {row['loss']:.3f} | {mark} |")
    return "\n".join(lines)


def _words(found: dict | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) if found else "not known"
