"""Reading an exported graph, against known operators and shapes that NumPy gives; the table; seeded mistakes."""

from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from skipvit.ascend.audit import export
from skipvit.ascend.operators import CONDITIONS, UNITS, Operator, Value, judge, operators, table

GRAPH_ONLY = {name for name, row in table().items() if row["unit"] == "no_kernel"}


def tensor(*shape, dtype=ms.float32) -> Tensor:
    return Tensor(np.ones(shape), dtype)


class Known(nn.Cell):
    """A product, a softmax, a tanh, a cumulated sum and a concatenation."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(tensor(5, 4), name="weight")

    def construct(self, x):
        h = ops.MatMul(transpose_b=True)(x, self.weight)
        return ops.Concat(1)((ops.Softmax(-1)(h), ops.CumSum()(ops.Tanh()(h), 1)))


class Mlp(nn.Cell):
    """Two layers and their gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Parameter(tensor(4, 5), name="first"), Parameter(tensor(5, 3), name="second")

    def construct(self, x):
        return ops.ReduceSum()(ops.MatMul()(ops.Tanh()(ops.MatMul()(x, self.first)), self.second))


class Gradients(nn.Cell):
    def __init__(self, cell):
        super().__init__()
        self.gradient = ms.value_and_grad(cell, None, weights=cell.trainable_params())

    def construct(self, x):
        return self.gradient(x)


class Branches(nn.Cell):
    def construct(self, x):
        if ops.ReduceSum()(x) > 0:
            return ops.Exp()(x)
        return ops.Erf()(x)


class Only(nn.Cell):
    """One operator of the inputs."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def construct(self, *inputs):
        return self.operator(*inputs)


class AlongAxis(nn.Cell):
    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    def construct(self, x, index):
        return ops.GatherD()(x, self.axis, index)


class Best(nn.Cell):
    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def construct(self, x):
        return ops.TopK()(x, self.k)


class Flipped(nn.Cell):
    """An operator that no table of a Vision Transformer has."""

    def construct(self, x):
        return ops.ReverseV2((0,))(x)


def read(cell, *inputs) -> list[Operator]:
    return [o for o in operators(export(cell, *inputs)) if o.name not in GRAPH_ONLY]


def findings(cell, *inputs) -> dict[str, str]:
    """Why, by operator, of everything that fails."""
    rows = table()
    verdicts = [(o.name, judge(o, rows)) for o in operators(export(cell, *inputs))]
    return {name: verdict.why for name, verdict in verdicts if verdict.wrong}


def test_operators_and_shapes_of_a_known_graph():
    x, weight = np.ones((7, 4), np.float32), np.ones((5, 4), np.float32)
    h = x @ weight.T
    shapes = {"MatMul": h.shape, "Softmax": h.shape, "Tanh": h.shape, "CumSum": np.cumsum(h, 1).shape}
    shapes["Concat"] = np.concatenate([h, np.cumsum(h, 1)], 1).shape
    found = read(Known(), Tensor(x))
    assert {o.name: o.output.tensors for o in found} == {name: (("float32", shape),) for name, shape in shapes.items()}
    product = next(o for o in found if o.name == "MatMul")
    assert product.taken()[:2] == (("float32", x.shape), ("float32", weight.shape))


def test_gradients_are_read_too():
    """Two products forward; backward one for each weight and one for the hidden layer."""
    assert Counter(o.name for o in read(Gradients(Mlp()), tensor(7, 4)))["MatMul"] == 5


def test_both_branches_are_read():
    names = [o.name for o in read(Branches(), tensor(3))]
    assert {"Exp", "Erf", "ReduceSum"} <= set(names)


def test_output_shapes_are_those_of_a_call():
    cell, x = Known(), tensor(7, 4)
    assert read(cell, x)[-1].output.tensors[0][1] == cell(x).shape


def test_every_row_has_a_unit_a_source_and_conditions_that_are_checked():
    for name, row in table().items():
        assert row["unit"] in UNITS, name
        assert row["source"].strip(), name
        assert set(row) <= {"unit", "source", "why", *CONDITIONS}, name


@pytest.mark.parametrize(
    ("cell", "inputs", "operator", "why"),
    [
        (Only(ops.MaskedSelect()), (tensor(8), tensor(8, dtype=ms.bool_)), "MaskedSelect", "not known when"),
        (AlongAxis(1), (tensor(4, 8), tensor(4, 8, dtype=ms.int64)), "GatherD", "64-bit numbers, int64 (4, 8)"),
        (Best(3), (tensor(4, 8),), "TopK", "not float32"),
        (Best(3), (tensor(64, 1024, dtype=ms.float16),), "TopK", "k 3 of 65536 elements"),
        (Only(ops.Exp()), (tensor(4, dtype=ms.bfloat16),), "Exp", "bfloat16, which"),
        (Flipped(), (tensor(4),), "ReverseV2", "not in the table"),
        (AlongAxis(1), (tensor(64, 197, 64), tensor(64, 197, 64, dtype=ms.int32)), "GatherD", "along axis 1"),
        (
            Only(ops.TensorScatterUpdate()),
            (tensor(4, 8), tensor(2, 1, dtype=ms.int32), tensor(2, 8)),
            "TensorScatterUpdate",
            "no AI Core",
        ),
    ],
    ids=[
        "boolean mask",
        "int64 index",
        "float32 top-k",
        "small k",
        "bfloat16",
        "unknown operator",
        "gather along axis 1",
        "scatter",
    ],
)
def test_seeded_mistakes_are_found(cell, inputs, operator, why):
    assert why in findings(cell, *inputs)[operator]


@pytest.mark.parametrize(
    ("cell", "inputs"),
    [
        (Best(8), (tensor(64, 1024, dtype=ms.float16),)),
        (AlongAxis(1), (tensor(4, 8), tensor(4, 8, dtype=ms.int32))),
        (AlongAxis(-1), (tensor(64, 197, 64), tensor(64, 197, 64, dtype=ms.int32))),
    ],
    ids=["float16 top-k", "small gather", "gather along the last axis"],
)
def test_what_is_allowed_is_not_found(cell, inputs):
    assert not findings(cell, *inputs)


def test_python_on_the_host_fails():
    assert judge(Operator("PyExecute", "", (), Value()), table()).wrong


def test_unknown_is_no_failure_but_a_missing_row_is():
    rows = {"Odd": {"unit": "unknown", "source": "searched, nothing found"}}
    odd = judge(Operator("Odd", "", (), Value()), rows)
    assert (odd.unit, odd.wrong) == ("unknown", False)
    assert judge(Operator("Odder", "", (), Value()), rows).wrong
