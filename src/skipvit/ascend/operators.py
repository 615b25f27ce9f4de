"""Operators of an exported graph (MindIR), and which unit of an Ascend 910A runs each, by a table with sources."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from skipvit.util import compat

AttributeProto, TensorProto = compat.mind_ir().AttributeProto, compat.mind_ir().TensorProto
TABLE = Path(__file__).with_name("ascend910a_operators.yaml")
UNITS = ("ai_core", "ai_cpu", "hccl", "host", "unknown", "no_kernel")
DTYPES = {number: name.lower() for name, number in TensorProto.DataType.items()} | {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
BYTES = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "float32": 4, "int32": 4, "int64": 8, "float64": 8}
WIDE = ("int64", "uint64", "float64")
Tensor = tuple[str, tuple[int, ...]]  # dtype, shape


@dataclass(frozen=True)
class Value:
    """What an operator takes or gives: its tensors (a tuple's, in order), its number if it is a constant integer."""

    tensors: tuple[Tensor, ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Operator:
    """One node of a graph: its operator, where it comes from, what it takes and gives."""

    name: str
    scope: str
    inputs: tuple[Value, ...]
    output: Value

    def taken(self) -> tuple[Tensor, ...]:
        return tuple(tensor for value in self.inputs for tensor in value.tensors)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.taken() + self.output.tensors


@dataclass(frozen=True)
class Verdict:
    """Which unit runs an operator, why it does not run on an AI core if so, and who says it."""

    unit: str
    why: str = ""
    source: str = ""
    wrong: bool = False  # fails an audit


def operators(model: Any) -> list[Operator]:
    """Every operator of every graph of a model, constants left out.

    What is fed to the model are the operators `Input`; the call of a graph is the operator `Call`.
    """
    graphs = [model.graph, *model.functions]
    names = {primitive.name: primitive.op_type for primitive in model.primitives}
    values = {graph.name: Value() for graph in graphs}  # nodes name constants of other graphs too: all first
    for graph in graphs:
        values |= {p.name: Value((_tensor(p),)) for p in graph.parameter}
        values |= {i.name: Value(tuple(map(_tensor, i.tensor))) for i in graph.input}
        values |= {name: _result(node) for node in graph.node for name in node.output}
    result = [Operator("Input", "", (), Value(tuple(map(_tensor, i.tensor)))) for i in model.graph.input]
    for node in (node for graph in graphs for node in graph.node if node.op_type != "Constant"):
        name = names.get(node.op_type.removeprefix("REF::"), "Call")
        inputs = tuple(values[name] for name in node.input)
        result.append(Operator(name, node.domain, inputs, values[node.output[0]]))
    return result


def _tensor(proto: Any) -> Tensor:
    return DTYPES[proto.data_type], tuple(proto.dims)


def _result(node) -> Value:
    """A node's output; a constant's are its value."""
    attribute = next((a for a in node.attribute if a.name in ("shape", "value")), AttributeProto())
    integer = node.op_type == "Constant" and attribute.type in (AttributeProto.INT64, AttributeProto.INT32)
    return Value(tuple(_tensors(attribute)), attribute.i if integer else None)


def _tensors(attribute: Any):
    yield from map(_tensor, attribute.tensors)
    for part in attribute.values:
        yield from _tensors(part)


def table() -> dict[str, dict]:
    """The rows of the table: operator to unit, source and conditions."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {
        name: row | {"source": row["source"].format(**content["sources"])} for name, row in content["operators"].items()
    }


def judge(operator: Operator, rows: dict[str, dict]) -> Verdict:
    """Which unit runs an operator, by the table's row for it and what holds of all operators."""
    row = rows.get(operator.name)
    if row is None:
        return Verdict("unknown", f"{operator.name} is not in the table", wrong=True)
    unit, source = row["unit"], row["source"]
    if any(size < 0 for _, shape in operator.tensors() for size in shape):
        return Verdict(unit, "a dimension that is not known when the graph is compiled", DYNAMIC, wrong=True)
    dtypes = {dtype for dtype, _ in operator.tensors()}
    if "bfloat16" in dtypes:
        return Verdict(unit, "bfloat16, which this chip does not have", BFLOAT16, wrong=True)
    wide = [f"{dtype} {shape}" for dtype, shape in operator.tensors() if dtype in WIDE and prod(shape) > 1]
    if wide:
        return Verdict("unknown", f"64-bit numbers, {wide[0]}: few AI Core kernels take them", WIDE_SOURCE, wrong=True)
    if unit == "no_kernel":
        return Verdict(unit, source=source)
    if unit in ("ai_cpu", "host"):
        return Verdict(unit, row.get("why", "it has no AI Core kernel"), source, wrong=True)
    for name, condition in CONDITIONS.items():
        broken = name in row and condition(operator, row[name])
        if broken:
            return Verdict("unknown" if name == "same_dtype" else "ai_cpu", broken, source, wrong=True)
    return Verdict(unit, row.get("why", ""), source)


def _dtypes(operator: Operator, allowed: str) -> str:
    others = sorted({dtype for dtype, _ in operator.tensors()} - set(allowed.split()))
    return f"its AI Core kernel takes {allowed.replace(' ', ', ')}, not {', '.join(others)}" if others else ""


def _casts(operator: Operator, allowed: str) -> str:
    pair = f"{operator.taken()[0][0]}>{operator.output.tensors[0][0]}"
    return f"there is no AI Core kernel for {pair}" if pair not in allowed.split() else ""


def _same_dtype(operator: Operator, _) -> str:
    dtypes = list(dict.fromkeys(dtype for dtype, _ in operator.taken()))
    return f"no AI Core kernel takes {' with '.join(dtypes)}" if len(dtypes) > 1 else ""


def _last_axis(operator: Operator, limit: dict) -> str:
    """Along another axis than the last one, larger tensors go to the AI CPU."""
    (dtype, shape), axis = operator.taken()[0], operator.inputs[limit["axis_is_input"]].number
    index = operator.inputs[limit["index_is_input"]].tensors[0][1]
    large = prod(shape) * BYTES.get(dtype, 8) >= limit["bytes"] and prod(index) >= limit["indices"]
    if axis in (-1, len(shape) - 1) or not large:
        return ""
    return f"along axis {axis} of {shape}; large tensors only along the last axis"


def _least_k(operator: Operator, limit: dict) -> str:
    (_, shape), k = operator.taken()[0], operator.inputs[1].number
    small = k is not None and k < limit["k"] and prod(shape) > limit["elements"]
    return f"k {k} of {prod(shape)} elements" if small else ""


CONDITIONS = {
    "dtypes": _dtypes,
    "casts": _casts,
    "same_dtype": _same_dtype,
    "last_axis": _last_axis,
    "least_k": _least_k,
}

# Sources of what holds of all operators.
DYNAMIC = (
    "MindSpore 2.7.1, mindspore.JitConfig: jit_level O2, the default on Atlas training series, has static shapes only"
)
BFLOAT16 = (
    "hicann/ops-nn @ e5c3fa9, matmul/batch_mat_mul_v3/docs/aclnnBatchMatMul.md: no BFLOAT16 on Atlas training series"
)
WIDE_SOURCE = "hiascend.com, CANN 6.0.1, Advisor, AI CPU operators on the timeline (atlasadvisor_16_0034): avoid INT64"
