"""`skipvit eval`: top-1 and top-5 of a trained network, dense and routed."""

from __future__ import annotations

import json
from pathlib import Path

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.data.open import batches_of, open_source
from skipvit.data.order import Shard
from skipvit.engine import checkpoint, distributed
from skipvit.engine.build import build_network
from skipvit.engine.evaluate import evaluate
from skipvit.engine.step import EvalStep
from skipvit.runs.run_folder import FORWARDS
from skipvit.util.errors import UsageError

EPILOG = """examples:
  python eval.py runs/skipvit_mini_shapes                the newest checkpoint of a run
  python eval.py --config FILE --weights FILE.ckpt       any checkpoint
  python eval.py RUN --data.path /other/images --json  any key can be overridden
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="eval.py", description="Evaluate a trained network.", epilog=EPILOG)
    result.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    result.add_argument("--config", metavar="FILE", help="YAML file, instead of the run's")
    result.add_argument("--weights", metavar="FILE", help="checkpoint, instead of the run's newest")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words, default_config)
    path = checkpoint_of(options)
    device, shard = distributed.start(config.device, config.deterministic)
    val_source = open_source(config, "val")
    network = build_network(config, device)
    batches = batches_of(config, val_source, network.noise_width, False, shard)()
    result = {"checkpoint": str(path), "trained": config.trained()}
    # Compiled once: the averaged weights run through the same graphs.
    steps = {routed: EvalStep(network, routed) for routed in ((False, True) if network.spans else (False,))}
    for suffix in ("", "_ema") if checkpoint.has_average(path) else ("",):
        checkpoint.restore_weights(path, network, averaged=bool(suffix))
        for routed, step in steps.items():
            name = ("routed" if routed else "dense") + suffix
            result[name] = evaluate(step, batches, shard, f"evaluating {name}").as_dict()
    if shard.rank == 0:
        print(json.dumps(result) if options.json else as_text(result))


def read(words: list[str]) -> Config:
    """The configuration of a command line. Raises UsageError."""
    return configuration.from_words(parser(), words, default_config)[0]


def check(words: list[str], shard: Shard) -> None:
    """Raise what an evaluation would raise before its first step, without a device."""
    config, options = configuration.from_words(parser(), words, default_config)
    path = checkpoint_of(options)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    open_source(config, "val")


def default_config(options) -> str:
    """The configuration to read when a run folder is named."""
    if options.config:
        return options.config
    if not options.run:
        raise UsageError("name a run folder, or --config and --weights (see --help)")
    if not (Path(options.run) / "config.yaml").is_file():
        raise UsageError(f"{options.run}: not a run folder, it has no config.yaml")
    return str(Path(options.run) / "config.yaml")


def checkpoint_of(options) -> Path:
    if options.weights:
        return Path(options.weights)
    if not options.run:
        raise UsageError("--config needs --weights, or name a run folder (see --help)")
    found = checkpoint.saved(Path(options.run) / "checkpoints")
    if not found:
        raise UsageError(f"{options.run}: no checkpoint in it yet")
    return found[-1]


def as_text(result: dict) -> str:
    lines = [f"{result['checkpoint']}", f"{'':10}{'top-1 %':>9}{'top-5 %':>9}{'loss':>8}{'images/s':>10}"]
    for name in FORWARDS:
        if name in result:
            row, note = result[name], "  trained last" if name == result["trained"] else ""
            lines.append(
                f"{name:10}{row['top1']:9.2f}{row['top5']:9.2f}{row['loss']:8.3f}{row['images_per_s']:10.0f}{note}"
            )
    return "\n".join(lines)
