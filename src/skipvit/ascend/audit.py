"""`skipvit audit`: does every operator of a run's graphs have a kernel on the AI cores of an Ascend 910A? No device is needed."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from tqdm import tqdm

from skipvit.ascend.operators import UNITS, Operator, Verdict, judge, operators, table
from skipvit.config import config as configuration
from skipvit.config.config import Config
from skipvit.data.order import Shard
from skipvit.engine import distributed
from skipvit.engine.build import build_mixer, build_network, build_optimizer, build_state
from skipvit.engine.step import EvalStep, TrainingLoss, TrainStep
from skipvit.engine.synthetic import UPDATES_PER_EPOCH, random_batch
from skipvit.util import compat
from skipvit.util.errors import RunError, UsageError

EPILOG = """The training step and the evaluation step of each phase are built as for Ascend, compiled by MindSpore on the CPU
as far as no device is needed, and read operator by operator. What that proves and what it does not: docs/audit.md.

examples:
  skipvit audit --config configs/skipvit_small_imagenet.yaml
  skipvit audit --config configs/skipvit_small_imagenet.yaml --routing gather     the formulation that is not for Ascend

exit code 1: an operator that would not run on the AI cores, a dynamic shape, or a graph that does not compile
"""
Audited = list[tuple[Operator, Verdict]]


def parser() -> configuration.OneLineParser:
    result = configuration.OneLineParser(
        prog="skipvit audit",
        description="Look for operators that an Ascend 910A runs slowly or not at all.",
        epilog=EPILOG,
    )
    result.add_argument(
        "--config",
        default=configuration.recipe("skipvit_small_imagenet.yaml"),
        metavar="FILE",
        help="YAML file of a run",
    )
    result.add_argument(
        "--devices", type=int, default=8, metavar="N", help="devices that average their gradients (default: 8)"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, options = configuration.from_words(parser(), words)
    if options.devices < 1:
        raise UsageError(f"--devices: {options.devices} is not a number of devices; use 1 or more")
    graphs = audit(config, options.devices)
    print(json.dumps(as_dict(graphs)) if options.json else as_text(graphs))
    wrong = sum(verdict.wrong for audited in graphs.values() for _, verdict in audited)
    if wrong:
        raise RunError(f"{wrong} operators are not for the AI cores of an Ascend 910A; the findings name them")


def audit(config: Config, devices: int) -> dict[str, Audited]:
    """Every operator of each graph of a run, and which unit runs it.

    Raises:
        RunError: a graph that does not compile.
    """
    distributed.start("cpu")
    rows, result = table(), {}
    for name, build in tqdm(steps(config, devices).items(), desc="compiling", unit="graph", disable=None, leave=False):
        try:
            model = export(*build())
        except (RuntimeError, ValueError, TypeError) as error:
            raise RunError(
                f"{name}: MindSpore does not compile this graph: {str(error).strip().splitlines()[0]}"
            ) from None
        result[name] = [(operator, judge(operator, rows)) for operator in operators(model)]
    return result


def steps(config: Config, devices: int) -> dict[str, Callable[[], tuple]]:
    """For each graph of a run, a function that gives its cell, as on Ascend, and a batch."""
    network = build_network(config, "ascend")
    optimizer = build_optimizer(config, network, UPDATES_PER_EPOCH * config.optim.accumulate, devices)
    state = build_state(config, optimizer, "ascend")
    average = distributed.gradient_average(optimizer.parameters, Shard(0, devices))
    batch = random_batch(config, network.noise_width)

    def train(routed: bool) -> tuple:
        loss = TrainingLoss(network, routed, config.optim.label_smoothing, build_mixer(config))
        return TrainStep(loss, optimizer, state, config.optim.clip_norm, average, devices).set_train(), *batch

    def evaluate(routed: bool) -> tuple:
        return EvalStep(network, routed).set_train(False), *batch[:3]

    forwards = ("dense", "routed") if network.spans else ("dense",)
    trained = [name for name in forwards if name == "routed" or any(config.phase_lengths()[::2])]
    result = {f"train {name}": partial(train, name == "routed") for name in trained}
    return result | {f"evaluate {name}": partial(evaluate, name == "routed") for name in forwards}


def export(cell: nn.Cell, *batch: Tensor) -> Any:
    """A cell's compiled graph with its gradients, as a MindIR model without the values of its parameters."""
    result = compat.mind_ir().ModelProto()

    def take(model: Any) -> None:
        result.CopyFrom(model)
        del model.graph.parameter[:]  # else their values are written to the file: 5 GB for ViT-L

    with tempfile.TemporaryDirectory() as folder, compat.compiled_as_for_910a():
        ms.export(cell, *batch, file_name=str(Path(folder) / "graph"), file_format="MINDIR", custom_func=take)
    return result


def as_text(graphs: dict[str, Audited]) -> str:
    lines = []
    for name, audited in graphs.items():
        lines += [f"{name}: {counts(audited)}", *operator_lines(audited), ""]
    lines += finding_lines("findings", graphs, lambda verdict: verdict.wrong)
    lines += finding_lines("unknown", graphs, lambda verdict: verdict.unit == "unknown" and not verdict.wrong)
    everything = [pair for audited in graphs.values() for pair in audited]
    lines.append(
        f"all graphs: {counts(everything)}; {sum(verdict.wrong for _, verdict in everything)} not for the AI cores"
    )
    return "\n".join(lines)


def counts(audited: Audited) -> str:
    units = Counter(verdict.unit for _, verdict in audited)
    return ", ".join(f"{units[unit]} {unit}" for unit in UNITS if units[unit])


def operator_lines(audited: Audited) -> Iterator[str]:
    """One line an operator and unit that runs it; nodes without a kernel are counted only."""
    groups = defaultdict(list)
    for operator, verdict in audited:
        if verdict.unit != "no_kernel" or verdict.wrong:
            groups[operator.name, verdict.unit].append(operator)
    yield f"  {'operator':24}{'count':>6}  {'unit':9} {'largest result':24} number formats"
    for (name, unit), group in sorted(groups.items()):
        shape, formats = largest(group), sorted({dtype for operator in group for dtype, _ in operator.tensors()})
        yield f"  {name:24}{len(group):6}  {unit:9} {shape!s:24} {' '.join(formats)}"


def largest(group: list[Operator]) -> tuple[int, ...]:
    """Shape of the largest result; () if there is none."""
    return max((shape for operator in group for _, shape in operator.output.tensors), key=prod, default=())


def finding_lines(title: str, graphs: dict[str, Audited], chosen: Callable[[Verdict], bool]) -> list[str]:
    """Verdicts that a person should read, each once with the places where it was found."""
    places = defaultdict(list)
    for graph, audited in graphs.items():
        for operator, verdict in audited:
            if chosen(verdict):
                places[operator.name, verdict].append((graph, operator))
    lines = [f"{title}:"] if places else []
    for (name, verdict), found in places.items():
        lines.append(f"  {name} ({verdict.unit}): {verdict.why}")
        lines += [
            f"    {line}" for line in Counter(f"{graph}: {shapes(o)} in {o.scope or 'the graph'}" for graph, o in found)
        ]
        lines += [f"    source: {source}" for source in verdict.source.split("; ") if source]
    return lines + [""] * bool(places)


def shapes(operator: Operator) -> str:
    """E.g. `float32 (128, 196) -> float32 (128, 88), int32 (128, 88)`."""
    taken, given = (
        ", ".join(f"{dtype} {shape}" for dtype, shape in side) for side in (operator.taken(), operator.output.tensors)
    )
    return f"{taken} -> {given}"


def as_dict(graphs: dict[str, Audited]) -> dict:
    """`graphs`: of each the operators, alike ones counted; `findings`: those that are not for the AI cores."""
    result = {"graphs": {}, "findings": []}
    for graph, audited in graphs.items():
        alike = Counter((operator.name, verdict.unit, shapes(operator)) for operator, verdict in audited)
        result["graphs"][graph] = [
            {"operator": name, "unit": unit, "tensors": tensors, "count": count}
            for (name, unit, tensors), count in alike.items()
        ]
        result["findings"] += [
            {
                "graph": graph,
                "operator": o.name,
                "unit": v.unit,
                "tensors": shapes(o),
                "scope": o.scope,
                "why": v.why,
                "source": v.source,
            }
            for o, v in audited
            if v.wrong
        ]
    return result
