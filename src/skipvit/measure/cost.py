"""What a configuration costs by arithmetic: parameters, multiply-accumulates, memory, and the gain to hope for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

from skipvit.config.config import Config
from skipvit.models.arithmetic import blocks_of, forward_parts, training_macs
from skipvit.util.text import for_figure, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOAT32 = 4  # bytes
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class ForwardCost:
    """One forward of an image.

    Attributes:
        image_size: side of the images, pixels.
        tokens: that come out of each block, as its MLP saw them; attention_tokens: that its attention saw.
        block_macs, block_activations: of each block multiply-accumulates, and bytes that it keeps for the backward.
        parts: multiply-accumulates by part; macs: of all; training_macs: of forward and backward.
        activations: bytes kept for the backward.
        gain: training throughput against the dense forward, if it followed `training_macs`.
    """

    image_size: int
    tokens: tuple[int, ...]
    attention_tokens: tuple[int, ...]
    block_macs: tuple[int, ...]
    block_activations: tuple[int, ...]
    parts: dict[str, int]
    macs: int
    training_macs: int
    activations: int
    gain: float


@dataclass(frozen=True)
class PhaseCost:
    """Epochs that train one forward."""

    name: str
    epochs: int
    forward: str


@dataclass(frozen=True)
class Cost:
    """What a configuration costs on one device.

    Attributes:
        batch_size: images a step.
        parameters: numbers that the weights are.
        forwards: by name, the dense one first.
        phases: in order.
        state: bytes of weights, gradients, moments and so on.
        focus: the forward that most epochs train but for the dense one; `dense` if there is no other.
        gain: training throughput of `focus` against dense, if it followed the multiply-accumulates.
        run_gain: the same of the whole run.
    """

    name: str
    batch_size: int
    parameters: int
    forwards: dict[str, ForwardCost]
    phases: tuple[PhaseCost, ...]
    state: dict[str, int]
    focus: str
    gain: float
    run_gain: float

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, as `skipvit cost --json` prints it."""
        return asdict(self)

    def table(self) -> str:
        """For people: multiply-accumulates by part and by block, what each phase takes, the gain."""
        size = self.forwards["dense"].image_size
        head = f"{self.parameters / 1e6:.2f} M parameters, {size} x {size}, {self.batch_size} images a device"
        blocks = ["blocks", "tokens", "MMACs an image", "kept for backward, MiB a device"]
        phases = ["phase", "epochs", "GMACs an image, trained", "activations, GiB", "all, GiB"]
        states = ", ".join(f"{name} {count / MIB:.0f}" for name, count in self.state.items())
        text = [
            f"{self.name}: {head}",
            table(_part_rows(self), ["forward, MMACs an image", *self.forwards]),
            table(_block_rows(self), blocks, "<>>>"),
            f"a device, MiB: {states}\n{table(_phase_rows(self), phases, '<>>>>')}",
        ]
        if self.focus != "dense":
            kept, dense = self.forwards[self.focus].activations, self.forwards["dense"].activations
            saved = f"{100 * (1 - kept / dense):.0f} % less for activations" if dense else "no activations kept"
            whole = f"{self.run_gain:.3f} x over the whole run"
            text.append(f"ideal gain over dense: {self.gain:.3f} x training throughput, {saved}; {whole}")
        return "\n\n".join(text)

    def figure(self) -> Figure:
        """Tokens that each block sees: the dense forward, `focus` before it, outlines of the others."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        axis = figure.subplots()
        for name, forward in self.forwards.items():
            label = name if name == "dense" else f"{name}, {forward.gain:.2f} x fewer MACs"
            edges = [block - 0.5 for block in range(len(forward.tokens) + 1)]
            color = {"dense": "0.85", self.focus: "tab:blue"}.get(name)
            axis.stairs(forward.tokens, edges, label=label, color=color, fill=color is not None)
        axis.set_xticks(range(len(self.forwards["dense"].tokens)))
        axis.set_xlabel("block")
        axis.set_ylabel("tokens")
        axis.set_title(for_figure(self.name))
        axis.legend(loc="lower left")
        return figure


def _part_rows(cost: Cost) -> list[list[str]]:
    """Millions of multiply-accumulates by part, a column a forward."""
    columns = [forward.parts | {"all": forward.macs} for forward in cost.forwards.values()]
    parts = dict.fromkeys(name for column in columns for name in column)
    names = [*(name for name in parts if name != "all"), "all"]
    return [[f"  {name}", *(f"{column.get(name, 0) / 1e6:.1f}" for column in columns)] for name in names]


def _block_rows(cost: Cost) -> list[list[str]]:
    """Of each forward but the dense one, if there are others: its blocks, those that are alike together."""
    rows, names = [], [name for name in cost.forwards if name != "dense"] or ["dense"]
    for name in names:
        f, first = cost.forwards[name], 0
        for alike, group in groupby(zip(f.attention_tokens, f.tokens, f.block_macs, f.block_activations)):
            attention, mlp, macs, kept = alike
            last = first + len(list(group)) - 1
            blocks = f"{first}" if first == last else f"{first} to {last}, each"
            blocks = f"{name} {blocks}" if len(names) > 1 else blocks
            tokens = f"{mlp}" if mlp == attention else f"{attention}>{mlp}"
            rows.append([blocks, tokens, f"{macs / 1e6:.1f}", f"{cost.batch_size * kept / MIB:.1f}"])
            first = last + 1
    return rows


def _phase_rows(cost: Cost) -> list[list[str]]:
    """What training costs in each phase, on one device."""
    rows, state = [], sum(cost.state.values())
    for phase in cost.phases:
        forward = cost.forwards[phase.forward]
        held = cost.batch_size * forward.activations
        gigabytes = f"{held / GIB:.2f}", f"{(held + state) / GIB:.2f}"
        rows.append([phase.name, str(phase.epochs), f"{forward.training_macs / 1e9:.2f}", *gigabytes])
    return rows


def cost(config: Config) -> Cost:
    """What a run of this configuration costs on one device.

    Counted are matrix products and what the backward keeps of each image. Number format and formulation are those of an
    Ascend device unless the configuration says otherwise: there the recipes train.

    Raises:
        ValueError: a route that cannot run.
    """
    spec, optim = config.model.spec(), config.optim
    compute = 4 if config.amp.dtype == "float32" or config.device == "cpu" and config.amp.dtype == "auto" else 2
    formulation = {"auto": "gather" if config.device == "cpu" else "matmul"}.get(config.routing, config.routing)
    head_only = optim.train == "head"
    forwards: dict[str, ForwardCost] = {}
    for name in config.forwards():
        program = config.program(name)
        blocks, parts = blocks_of(spec, program), forward_parts(spec, program, formulation)
        trained = training_macs(spec, program, formulation, head_only)
        kept = [0 if head_only else sum(spec.activations(step, compute) for step in block.steps) for block in blocks]
        forwards[name] = ForwardCost(
            program.image_size,
            tuple(block.mlp for block in blocks),
            tuple(block.attention for block in blocks),
            tuple(block.macs for block in blocks),
            tuple(kept),
            parts,
            sum(parts.values()),
            trained,
            sum(kept),
            forwards["dense"].training_macs / trained if forwards else 1.0,
        )
    phases = tuple(PhaseCost(phase.name, phase.epochs, phase.forward) for phase in config.resolved_phases())
    epochs = {name: sum(phase.epochs for phase in phases if phase.forward == name) for name in forwards}
    focus = max((name for name in forwards if name != "dense"), key=lambda name: epochs[name], default="dense")
    shapes = {name: shape for name, shape in spec.shapes().items() if not head_only or name.startswith("head.")}
    return Cost(
        config.name,
        config.data.batch_size,
        spec.parameters(),
        forwards,
        phases,
        state(spec.parameters(), sum(map(prod, shapes.values())), config.ema.decay > 0, optim.accumulate > 1),
        focus,
        forwards[focus].gain,
        optim.epochs / sum(count / forwards[name].gain for name, count in epochs.items()),
    )


def state(parameters: int, trained: int, ema: bool, accumulate: bool) -> dict[str, int]:
    """Bytes that training keeps of every parameter, and besides of those that are trained, all float32."""
    copies = {"gradients": 1, "moments": 2}
    if ema:
        copies["averaged weights"] = 2  # and a place to put the trained ones aside during evaluation
    if accumulate:
        copies["accumulated gradients"] = 1
    return {"weights": FLOAT32 * parameters} | {name: FLOAT32 * count * trained for name, count in copies.items()}
