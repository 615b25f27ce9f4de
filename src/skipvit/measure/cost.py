"""`skipvit cost`: what a configuration costs by arithmetic: parameters, multiply-accumulates, memory, and the gain to hope for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.engine.phases import phases
from skipvit.measure.macs import block_macs, forward_parts, sequences, training_macs
from skipvit.measure.memory import activations, block_activations, state
from skipvit.util.errors import UsageError

MIB, GIB = 2**20, 2**30
EPILOG = """examples:
  skipvit cost --config configs/skipvit_small_imagenet.yaml
  skipvit cost --config configs/skipvit_small_imagenet.yaml --model.image_size 384 --out tokens.png

Counted are matrix products and what the backward keeps; docs/bench.md compares with measured times and memory.
"""


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit cost", description="What a configuration costs, by arithmetic.", epilog=EPILOG
    )
    result.add_argument(
        "--config",
        default=configuration.recipe("skipvit_small_imagenet.yaml"),
        metavar="FILE",
        help="YAML file of a run",
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    result.add_argument(
        "--out", metavar="FILE", help="draw the tokens that each block sees, as an image (.png, .svg, .pdf)"
    )
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    cost = cost_of(config)
    print(json.dumps(asdict(cost)) if options.json else as_text(config, cost))
    if options.out:
        save(tokens_figure(config, cost), Path(options.out))


@dataclass(frozen=True)
class Forward:
    """One forward: of each block the tokens, multiply-accumulates and bytes kept for the backward of an image; MACs by part.

    Attributes:
        tokens: that come out of each block, as its MLP saw them; attention_tokens: that its attention saw.
    """

    tokens: tuple[int, ...]
    attention_tokens: tuple[int, ...]
    block_macs: tuple[int, ...]
    block_activations: tuple[int, ...]
    parts: dict[str, int]
    macs: int
    training_macs: int
    activations: int


@dataclass(frozen=True)
class Cost:
    """What a configuration costs on one device.

    Attributes:
        forwards: `dense` and, with routes, `routed`.
        state: bytes of weights, gradients, moments and so on.
        gain: training throughput against dense if it followed the MACs of forward and backward.
        run_gain: the same of the whole run, dense epochs counted; 1 without routes.
    """

    parameters: int
    forwards: dict[str, Forward]
    state: dict[str, int]
    gain: float
    run_gain: float


def cost_of(config: Config) -> Cost:
    model, optim = config.model, config.optim
    size = model.shape()
    # As on Ascend, unless the configuration says otherwise: there the recipes train.
    compute = 4 if config.amp.dtype == "float32" or config.device == "cpu" and config.amp.dtype == "auto" else 2
    shape = (size, model.patch, model.tokens, model.num_classes)
    formulation = {"auto": "gather" if config.device == "cpu" else "matmul"}.get(config.routing, config.routing)
    head_only = optim.train == "head"
    forwards = {}
    for name, spans in (("dense", ()), ("routed", config.spans())):
        if name == "dense" or spans:
            seen = sequences(size.depth, model.tokens, spans)
            parts = forward_parts(*shape, spans, formulation)
            forwards[name] = Forward(
                tuple(sequence.mlp for sequence in seen),
                tuple(sequence.attention for sequence in seen),
                tuple(block_macs(sequence, size.width) for sequence in seen),
                tuple(0 if head_only else block_activations(sequence, size, compute) for sequence in seen),
                parts,
                sum(parts.values()),
                training_macs(*shape, spans, formulation, head_only),
                activations(size, () if head_only else seen, compute),
            )
    gain = forwards["dense"].training_macs / forwards.get("routed", forwards["dense"]).training_macs
    warmup, routed, cooldown = config.phase_lengths()
    run_gain = optim.epochs / (warmup + cooldown + routed / gain)
    parameters = size.parameters(model.patch, model.tokens, model.num_classes)
    trained = (size.width + 1) * model.num_classes if head_only else parameters
    return Cost(
        parameters, forwards, state(parameters, trained, config.ema.decay > 0, optim.accumulate > 1), gain, run_gain
    )


def as_text(config: Config, cost: Cost) -> str:
    model, batch = config.model, config.data.batch_size
    head = f"{config.name}: {cost.parameters / 1e6:.2f} M parameters, {model.image_size} x {model.image_size}, {batch} images a device"
    return "\n".join(
        [head, "", *part_lines(cost), "", *block_lines(cost, batch), "", *phase_lines(config, cost), *gain_lines(cost)]
    )


def part_lines(cost: Cost) -> list[str]:
    """Millions of multiply-accumulates of an image's forward, by part."""
    last = list(cost.forwards.values())[-1]
    lines = [f"{'forward, MMACs an image':26}" + "".join(f"{name:>12}" for name in cost.forwards)]
    for part in last.parts:
        lines.append(
            f"  {part:24}" + "".join(f"{forward.parts.get(part, 0) / 1e6:12.1f}" for forward in cost.forwards.values())
        )
    lines.append(f"  {'all':24}" + "".join(f"{forward.macs / 1e6:12.1f}" for forward in cost.forwards.values()))
    return lines


def block_lines(cost: Cost, batch: int) -> list[str]:
    """Tokens, MACs and activations by block, blocks that are alike together."""
    last = list(cost.forwards.values())[-1]
    seen = [f"{mlp}" if mlp == all_ else f"{all_}>{mlp}" for mlp, all_ in zip(last.tokens, last.attention_tokens)]
    rows = list(zip(seen, last.block_macs, last.block_activations))
    lines = [f"{'blocks':10}{'tokens':>8}{'MMACs an image':>18}{'kept for backward, MiB a device':>32}"]
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[first]:
            tokens, macs, kept = rows[first]
            name = f"{first}" if i == first + 1 else f"{first} to {i - 1}"
            each = " each" if i > first + 1 else ""
            lines.append(f"{name:10}{tokens:>8}{macs / 1e6:18.1f}{batch * kept / MIB:32.1f}{each}")
            first = i
    return lines


def phase_lines(config: Config, cost: Cost) -> list[str]:
    """What training costs in each phase, on one device."""
    kept = sum(cost.state.values())
    states = ", ".join(f"{name} {size / MIB:.0f}" for name, size in cost.state.items())
    lines = [
        f"a device, MiB: {states}",
        f"{'phase':18}{'epochs':>7}{'GMACs an image, trained':>26}{'activations, GiB':>18}{'all, GiB':>10}",
    ]
    for phase in phases(*config.phase_lengths()):
        forward = cost.forwards["routed" if phase.routed else "dense"]
        held = config.data.batch_size * forward.activations
        lines.append(
            f"{phase.name:18}{phase.end - phase.first:7}{forward.training_macs / 1e9:26.2f}{held / GIB:18.2f}{(held + kept) / GIB:10.2f}"
        )
    return lines


def gain_lines(cost: Cost) -> list[str]:
    if "routed" not in cost.forwards:
        return []
    routed, dense = cost.forwards["routed"].activations, cost.forwards["dense"].activations
    saved = f"{100 * (1 - routed / dense):.0f} % less for activations" if dense else "no activations kept"
    return [
        f"ideal gain over dense: {cost.gain:.3f} x training throughput, {saved}; {cost.run_gain:.3f} x over the whole run"
    ]


def tokens_figure(config: Config, cost: Cost) -> Figure:
    """Tokens that each block sees, dense behind routed."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    blocks = range(len(cost.forwards["dense"].tokens))
    axis.bar(blocks, cost.forwards["dense"].tokens, color="0.85", label="dense")
    if "routed" in cost.forwards:
        axis.bar(
            blocks, cost.forwards["routed"].tokens, color="tab:blue", label=f"routed, {cost.gain:.2f} x fewer MACs"
        )
    axis.set_xticks(blocks)
    axis.set_xlabel("block")
    axis.set_ylabel("tokens")
    axis.set_title(config.name)
    axis.legend(loc="lower left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Raises UsageError if it is no image that can be written."""
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise UsageError(f"--out: {path} is not an image file; use .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
