"""What is in a compiled graph: it is exported, and its nodes are read back."""

import tempfile
from math import prod, sqrt
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from skipvit.ascend.operators import operators
from skipvit.util.compat import mind_ir


def exported(cell, *arrays):
    """The MindIR model of a cell."""
    model = mind_ir().ModelProto()
    with tempfile.TemporaryDirectory() as folder:
        ms.export(cell, *(Tensor(a) for a in arrays), file_name=f"{folder}/graph", file_format="MINDIR")
        model.ParseFromString(Path(folder, "graph.mindir").read_bytes())
    return model


def product_macs(model) -> int:
    """Multiply-accumulates of all matrix products of a graph: (B M K)(B K N)(B M N) = B (B M K N)^2."""
    total = 0
    for operator in operators(model):
        if operator.name in ("MatMul", "BatchMatMul"):
            (_, a), (_, b) = operator.taken()[:2]
            c = operator.output.tensors[0][1]
            total += round(sqrt(prod(a) * prod(b) * prod(c) / prod(c[:-2])))
    return total
