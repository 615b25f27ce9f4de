"""`skipvit benchmark`: whole training steps, dense and routed, timed side by side."""

from __future__ import annotations

import json
import time

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from skipvit import config as configuration
from skipvit.analysis.macs import forward_macs
from skipvit.analysis.plain_vit import PlainViT
from skipvit.config import Config
from skipvit.tools.build import build_mixer, build_network, build_optimizer, build_state
from skipvit.training import distributed
from skipvit.training.optim import AdamW
from skipvit.training.state import TrainingState
from skipvit.training.step import TrainingLoss, TrainStep

STEPS_PER_EPOCH = 100  # only shapes the learning rate, which costs no time

EPILOG = """Forward, backward, clipping and AdamW on random pictures that are already in memory; one step of each variant in
turn, so that a noisy machine disturbs all alike. The medians' ratio is what to quote.

examples:
  skipvit benchmark --data.batch_size 16
  skipvit benchmark --data.batch_size 16 --plain     and a textbook ViT of MindSpore's packaged layers
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(prog="skipvit benchmark", description="Time training steps.", epilog=EPILOG)
    result.add_argument("--config", default=configuration.recipe("skipvit_small_imagenet.yaml"), metavar="FILE", help="YAML file of a run")
    result.add_argument("--rounds", type=int, default=7, metavar="N", help="timed steps of each variant (default: 7)")
    result.add_argument("--plain", action="store_true", help="also time a textbook ViT (convolution, fused qkv, erf GELU)")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    device, _ = distributed.start(config.device, config.deterministic)
    steps = training_steps(config, device, options.plain)
    batch = random_batch(config, steps["dense"].loss.network.noise_width)
    seconds = time_steps(steps, batch, options.rounds)
    result = {"device": device, "batch_size": config.data.batch_size, "compile_s": seconds.pop("compile_s")}
    result["step_s"] = {name: float(np.median(times)) for name, times in seconds.items()}
    result["macs"] = {name: macs(config, name) for name in result["step_s"]}
    print(json.dumps(result) if options.json else as_text(result))


def training_steps(config: Config, device: str, plain: bool) -> dict[str, TrainStep]:
    """A training step for each variant; dense and routed share their network and optimizer."""
    network = build_network(config, device)
    optimizer, state = _optimizer(config, network, device)
    steps = {}
    for name in ("dense", "routed") if network.spans else ("dense",):
        steps[name] = _step(config, network, optimizer, state, name == "routed")
    if plain:
        model = config.model
        textbook = PlainViT(model.shape(), model.image_size, model.patch, model.num_classes)
        steps["plain"] = _step(config, textbook, *_optimizer(config, textbook, device), False)
    return steps


def _optimizer(config: Config, network, device: str) -> tuple[AdamW, TrainingState]:
    optimizer = build_optimizer(config, network, STEPS_PER_EPOCH)
    return optimizer, build_state(config, optimizer, device)


def _step(config: Config, network, optimizer: AdamW, state: TrainingState, routed: bool) -> TrainStep:
    loss = TrainingLoss(network, routed, config.optim.label_smoothing, build_mixer(config))
    return TrainStep(loss, optimizer, state, config.optim.clip_norm).set_train()


def random_batch(config: Config, noise_width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    model, rng = config.model, np.random.default_rng(config.seed)
    batch = config.data.batch_size
    images = rng.integers(0, 256, (batch, model.image_size, model.image_size, 3), np.uint8)
    labels = rng.integers(0, model.num_classes, batch).astype(np.int32)
    noise = rng.random((batch, noise_width), np.float32)
    unmixed = np.array([1, 0, 0, 0, 0, 1], np.float32)
    return Tensor(images), Tensor(labels), Tensor(noise), Tensor(unmixed)


def time_steps(steps: dict[str, TrainStep], batch, rounds: int) -> dict:
    """Seconds of each timed step of each variant, interleaved, and under `compile_s` those of each first step."""
    seconds: dict = {"compile_s": {}}
    for name, step in tqdm(steps.items(), desc="compiling", disable=None, leave=False):
        seconds["compile_s"][name] = _timed(step, batch)
        _timed(step, batch)
        seconds[name] = []
    for _ in tqdm(range(rounds), desc="timing", disable=None, leave=False, unit="round"):
        for name, step in steps.items():
            seconds[name].append(_timed(step, batch))
    return seconds


def _timed(step: TrainStep, batch) -> float:
    begun = time.perf_counter()
    step(*batch)
    ms.runtime.synchronize()
    step.optimizer.step.asnumpy()  # waits for the update, on CPU too
    return time.perf_counter() - begun


def macs(config: Config, name: str) -> int:
    model = config.model
    spans = config.spans() if name == "routed" else ()
    return forward_macs(model.shape(), model.patch, model.tokens, model.num_classes, spans)


def as_text(result: dict) -> str:
    lines = [f"{'':8}{'step, s':>9}{'images/s':>10}{'against dense':>15}{'MACs, ideal':>13}{'first step, s':>15}"]
    dense = result["step_s"]["dense"]
    for name, seconds in result["step_s"].items():
        ideal = result["macs"]["dense"] / result["macs"][name]
        lines.append(
            f"{name:8}{seconds:9.3f}{result['batch_size'] / seconds:10.1f}{dense / seconds:13.2f} x{ideal:11.3f} x"
            f"{result['compile_s'][name]:15.1f}"
        )
    return "\n".join(lines)
