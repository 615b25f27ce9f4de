"""Does every operator of a run's graphs have a kernel on the AI cores of an Ascend 910A? No device is needed."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from tqdm import tqdm

from skipvit.ascend.operators import UNITS, Operator, Verdict, judge, operators
from skipvit.ascend.operators import table as operator_table
from skipvit.config.config import Config
from skipvit.engine import devices
from skipvit.engine.build import build_forward, build_network
from skipvit.engine.metrics import Accuracy
from skipvit.engine.synthetic import random_batch, training_step
from skipvit.util import compat
from skipvit.util.errors import RunError
from skipvit.util.text import one_line, table

Audited = list[tuple[Operator, Verdict]]


def audit(config: Config, world_size: int = 8) -> dict[str, Audited]:
    """Every operator of each graph of a run, and which unit runs it.

    Args:
        world_size: devices that average their gradients.

    Returns:
        By graph: `train <forward>` of each forward that a phase trains, `evaluate <forward>` of each that is reported.

    Raises:
        RunError: a graph that does not compile.
    """
    devices.start("cpu")
    rows, result = operator_table(), {}
    builders = steps(config, world_size)
    for name, build in tqdm(builders.items(), desc="compiling", unit="graph", disable=None, leave=False):
        try:
            model = export(*build())
        except (RuntimeError, ValueError, TypeError) as error:
            raise RunError(f"{name}: MindSpore does not compile this graph: {one_line(error)}") from None
        result[name] = [(operator, judge(operator, rows)) for operator in operators(model)]
    return result


def steps(config: Config, world_size: int = 1) -> dict[str, Callable[[], tuple]]:
    """For each graph of a run, a function that gives its cell, as on Ascend, and a batch."""
    network = build_network(config, "ascend")

    def train(name: str) -> tuple:
        return training_step(config, "ascend", network, name, world_size), *random_batch(config, name)

    def evaluate(name: str) -> tuple:
        forward = build_forward(config, "ascend", network, name)
        return Accuracy(forward).set_train(False), *random_batch(config, name)[:3]

    trained = dict.fromkeys(phase.forward for phase in config.resolved_phases())
    result = {f"train {name}": partial(train, name) for name in trained}
    return result | {f"evaluate {name}": partial(evaluate, name) for name in config.evaluated()}


def export(cell: nn.Cell, *batch: Tensor) -> Any:
    """A cell's compiled graph with its gradients, as a MindIR model without the values of its parameters."""
    result = compat.mind_ir().ModelProto()

    def take(model: Any) -> None:
        result.CopyFrom(model)
        del model.graph.parameter[:]  # else their values are written to the file: 5 GB for ViT-L

    with tempfile.TemporaryDirectory() as folder, compat.compiled_as_for_910a():
        ms.export(cell, *batch, file_name=str(Path(folder) / "graph"), file_format="MINDIR", custom_func=take)
    return result


def wrong(graphs: dict[str, Audited]) -> int:
    """How many operators are not for the AI cores."""
    return sum(verdict.wrong for audited in graphs.values() for _, verdict in audited)


def as_text(graphs: dict[str, Audited]) -> str:
    """Of each graph a table of its operators; then what a person should read."""
    parts = [f"{name}: {counts(audited)}\n{operators_as_text(audited)}\n" for name, audited in graphs.items()]
    parts += findings_as_text("findings", graphs, lambda verdict: verdict.wrong)
    parts += findings_as_text("unknown", graphs, lambda verdict: verdict.unit == "unknown" and not verdict.wrong)
    everything = [pair for audited in graphs.values() for pair in audited]
    parts.append(f"all graphs: {counts(everything)}; {wrong(graphs)} not for the AI cores")
    return "\n".join(parts)


def counts(audited: Audited) -> str:
    units = Counter(verdict.unit for _, verdict in audited)
    return ", ".join(f"{units[unit]} {unit}" for unit in UNITS if units[unit])


def operators_as_text(audited: Audited) -> str:
    """One line an operator and unit that runs it; nodes without a kernel are counted only."""
    groups = defaultdict(list)
    for operator, verdict in audited:
        if verdict.unit != "no_kernel" or verdict.wrong:
            groups[operator.name, verdict.unit].append(operator)
    rows = []
    for (name, unit), group in sorted(groups.items()):
        formats = sorted({dtype for operator in group for dtype, _ in operator.tensors()})
        largest = max((shape for operator in group for _, shape in operator.output.tensors), key=prod, default=())
        rows.append((name, len(group), unit, largest, " ".join(formats)))
    head = ("operator", "count", "unit", "largest result", "number formats")
    return table(rows, head, align="<><<<", indent=2)


def findings_as_text(title: str, graphs: dict[str, Audited], chosen: Callable[[Verdict], bool]) -> list[str]:
    """Verdicts that a person should read, each once with the places where it was found."""
    places = defaultdict(list)
    for graph, audited in graphs.items():
        for operator, verdict in audited:
            if chosen(verdict):
                places[operator.name, verdict].append((graph, operator))
    lines = [f"{title}:"] if places else []
    for (name, verdict), found in places.items():
        lines.append(f"  {name} ({verdict.unit}): {verdict.why}")
        lines += dict.fromkeys(f"    {graph}: {shapes(o)} in {o.scope or 'the graph'}" for graph, o in found)
        lines += [f"    source: {source}" for source in verdict.source.split("; ") if source]
    return [*lines, ""] if places else []


def shapes(operator: Operator) -> str:
    """E.g. `float32 (128, 196) -> float32 (128, 88), int32 (128, 88)`."""
    sides = (operator.taken(), operator.output.tensors)
    return " -> ".join(", ".join(f"{dtype} {shape}" for dtype, shape in side) for side in sides)


def as_dict(graphs: dict[str, Audited]) -> dict:
    """`graphs`: of each the operators, alike ones counted; `findings`: those that are not for the AI cores."""
    result = {"graphs": {}, "findings": []}
    for graph, audited in graphs.items():
        alike = Counter((operator.name, verdict.unit, shapes(operator)) for operator, verdict in audited)
        keys = ("operator", "unit", "tensors", "count")
        result["graphs"][graph] = [dict(zip(keys, (*same, count))) for same, count in alike.items()]
        keys = ("graph", "operator", "unit", "tensors", "scope", "why", "source")
        result["findings"] += [
            dict(zip(keys, (graph, o.name, v.unit, shapes(o), o.scope, v.why, v.source))) for o, v in audited if v.wrong
        ]
    return result
