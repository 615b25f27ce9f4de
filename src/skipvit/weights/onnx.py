"""A forward as an ONNX graph: its program walked once more, as `routing.forward.Forward` walks it.

Written out, because the exporter of MindSpore 2.8 knows neither the Rsqrt of a layer norm nor the CumSum of a route.
Operators of opset 17 (its LayerNormalization is the newest), whose TopK defines ties as ours do: the earlier position
first. So the same tokens are kept, and what is left are differences of rounding; `skipvit export` measures them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mindspore  # noqa: F401  before onnx: MindSpore's protobuf classes need a setting that it makes itself
import numpy as np

from skipvit.models.layers import PIXEL_MEAN, PIXEL_STD
from skipvit.routing.program import Program, Score, Select
from skipvit.routing.scorers import SCORERS
from skipvit.util.errors import UsageError

onnx: Any = None
with suppress(ImportError):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # ONNX 1.12
INPUT, OUTPUT = "images", "probabilities"


def require() -> None:
    """Raises UsageError if the libraries are not installed."""
    if onnx is None:
        raise UsageError("--to onnx: needs `pip install 'skipvit[onnx]'`")


def session(path: Path) -> Any:
    """A file in ONNX Runtime on the CPU, after the checks of the ONNX library; raises whatever they raise."""
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def model_of(
    spec: Any, program: Program, weights: dict[str, np.ndarray], noise: np.ndarray, batch: int, uint8: bool
) -> Any:
    """Probabilities of a batch of images.

    Args:
        spec: of the backbone; its `graph` writes the backbone's parts.
        weights: float32, under the network's names.
        noise: float32 (at least program.noise_width,), the same for every image.
        batch: images.
        uint8: they are pixels, else normalised already.

    Raises:
        UsageError: a scorer that cannot be exported.
    """
    graph = Graph(weights, batch)
    images = graph.normalised(INPUT) if uint8 else INPUT
    probabilities = graph.op("Softmax", logits_of(graph, spec.graph(graph), program, images, noise), axis=-1)
    given = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    shape = [batch, program.image_size, program.image_size, 3]
    return graph.model(probabilities, [batch, spec.num_classes], given, shape)


def logits_of(graph: Graph, parts: Any, program: Program, images: str, noise: np.ndarray) -> str:
    """Walk a program; parts: of the backbone, see `models.vit_onnx.ViTGraph`."""
    x, signals, latest, where = images, {}, 0, None
    before = entered = places = ranking = weights = x
    selectors = [Selector(graph, step) for step in program.selections]
    steps: tuple[Any, ...] = program.steps
    for step in steps:
        if step.kind == "embed":
            x = parts.embed(x, program.image_size)
        elif step.kind == "downsample":
            x = parts.to_stage(step.stage, x)
        elif step.kind == "attend":
            entered, latest = x, step.block
            x, signals = parts.attend(step.block, x, where)
        elif step.kind == "feed":
            x = parts.feed(step.block, x, where)
        elif step.kind == "score":
            told = told_of(graph, parts, step, latest, signals, entered, x)
            ranking, weights = scored(graph, step, told, noise)
        elif step.kind == "select":
            before, places = x, selectors[step.route].mask(ranking)
            x = step.carrier.enter(selectors[step.route], x, places, weights)
            where = parts.locate(selectors[step.route], places)
        elif step.kind == "rescore":
            entered = step.carrier.leave(selectors[step.route], entered, before, places)
            if step.asks_attention:
                signals = parts.signals_of(step.block, entered, signals, step.reads)
        elif step.kind == "restore":
            x, where = step.carrier.leave(selectors[step.route], x, before, places), None
        elif step.kind == "norm":
            x = parts.norm(x)
        elif step.kind == "head":
            x = parts.classify(x)
    return x


def told_of(
    graph: Graph, parts: Any, step: Score, latest: int, signals: dict[str, str], entered: str, x: str
) -> dict[str, str]:
    """What a scorer reads, see `routing.scorers`; latest: the block before."""
    first, last, told = step.before.prefix, step.before.prefix + step.before.patches, {}
    for name in step.scorer.reads:
        if name == "received":
            told[name] = parts.received(latest, signals, step.before)
        elif name in ("tokens", "entered"):
            told[name] = graph.slice(x if name == "tokens" else entered, first, last, axis=1)
        else:
            whole = parts.cls_row(signals) if name == "cls_row" else signals[name]
            told[name] = graph.slice(whole, first, last, axis=2)
    return told


def scored(graph: Graph, step: Score, told: dict[str, str], noise: np.ndarray) -> tuple[Any, Any]:
    """Ranking and weights, names of (B, patches) or, where they are known already, arrays (patches,)."""
    if step.scorer.onnx is None:
        name = next((name for name, scorer in SCORERS.items() if scorer is step.scorer), step.name)
        raise UsageError(
            f"--to onnx: scorer {name} is not written for ONNX (register_scorer's argument onnx); "
            f"export --forward dense, or --to mindir"
        )
    return step.scorer.onnx(graph, step, told, noise[step.first_noise : step.first_noise + step.noise_columns])


class Places(NamedTuple):
    """Which tokens of a sequence stay.

    Attributes:
        patches: int64 (B, kept), positions among the patches, ascending.
        tokens: int64 (B, length, 2), (image, place in the sequence) of every token that stays.
    """

    patches: str
    tokens: str


class Selector:
    """The twin of `routing.select.Selector` for the carriers: its masks are `Places`, its tokens names."""

    def __init__(self, graph: Graph, step: Select):
        self.graph, self.op, self.before, self.kept = graph, graph.op, step.before, step.after.patches
        self.length = self.before.prefix + self.kept + self.before.suffix
        self.cells, self.counts = step.cells, step.counts

    def mask(self, ranking: str | np.ndarray) -> Places:
        batch, before = self.graph.batch, self.before
        if not isinstance(ranking, str):
            ranking = self.graph.constant(np.tile(ranking.astype(np.float32), (batch, 1)))
        patches = self.best(ranking)
        columns = [self.op("Add", patches, np.int64(before.prefix))]
        if before.prefix:
            columns.insert(0, np.tile(np.arange(before.prefix), (batch, 1)))
        if before.suffix:
            columns.append(np.tile(np.arange(before.length - before.suffix, before.length), (batch, 1)))
        places = self.op("Unsqueeze", self.op("Concat", *columns, axis=1), np.array([2]))
        images = np.arange(batch)[:, None, None].repeat(self.length, 1)
        return Places(patches, self.op("Concat", images, places, axis=2))

    def best(self, ranking: str) -> str:
        """Positions of the patches that stay, ascending: int64 (B, kept)."""
        unit, groups = self.cells.unit, self.cells.groups if len(self.counts) > 1 else (self.before.patches,)
        if unit > 1:
            ranking = self.op("Reshape", ranking, np.array([self.graph.batch, -1, unit]))
            ranking = self.op("ReduceMean", ranking, axes=[2], keepdims=0)
        first, chosen = 0, []
        for count, kept in zip(groups, self.counts):
            here = self.graph.slice(ranking, first, first + count // unit, axis=1) if len(groups) > 1 else ranking
            if kept:
                _, best = self.op("TopK", here, np.array([kept // unit]), outputs=2)
                ordered, _ = self.op("TopK", best, np.array([kept // unit]), outputs=2, largest=0)  # sorts them
                chosen.append(self.op("Add", ordered, np.int64(first)) if first else ordered)
            first += count // unit
        patches = self.op("Concat", *chosen, axis=1) if len(chosen) > 1 else chosen[0]
        if unit == 1:
            return patches
        each = self.op("Mul", self.op("Unsqueeze", patches, np.array([2])), np.int64(unit))
        return self.op("Reshape", self.op("Add", each, np.arange(unit)[None, None]), np.array([0, -1]))

    def take(self, x: str, places: Places) -> str:
        return self.op("GatherND", x, places.tokens)

    def put(self, inside: str, x: str, places: Places) -> str:
        return self.op("ScatterND", x, places.tokens, inside)

    def without_added(self, inside: str) -> str:
        return self.graph.slice(inside, 0, self.length, axis=1)

    def take_and_fuse(self, x: str, places: Places, weights: str | np.ndarray) -> str:
        batch, before = self.graph.batch, self.before
        if not isinstance(weights, str):
            weights = np.tile(weights.astype(np.float32), (batch, 1))
        gone = np.zeros((batch, self.kept), np.float32)
        others = self.op("ScatterElements", weights, places.patches, gone, axis=1)
        total = self.op("ReduceSum", others, np.array([1]), keepdims=1)
        share = self.op("Div", others, self.op("Add", total, np.float32(1e-12)))
        patches = self.graph.slice(x, before.prefix, before.prefix + before.patches, axis=1)
        mean = self.op("MatMul", self.op("Unsqueeze", share, np.array([1])), patches)
        return self.op("Concat", self.take(x, places), mean, axis=1)


class Graph:
    """Nodes and constants of a graph for batches of a fixed size.

    Args:
        weights: arrays that `weight` and `matrix` find by name.
        batch: images.
    """

    def __init__(self, weights: dict[str, np.ndarray], batch: int):
        self.weights, self.batch = weights, batch
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, its arrays as constants; returns the name of its result, or a list of `outputs` names."""
        names = [value if isinstance(value, str) else self.constant(np.asarray(value)) for value in inputs]
        results = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, name=f"{kind}_{len(self.nodes)}", **attributes))
        return results[0] if outputs == 1 else results

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", x, np.array([start]), np.array([stop]), np.array([axis]))

    def normalised(self, images: str) -> str:
        """uint8 pixels to what the network's first product takes."""
        centred = self.op("Sub", self.op("Cast", images, to=TensorProto.FLOAT), np.array(PIXEL_MEAN, np.float32))
        return self.op("Mul", centred, 1 / np.array(PIXEL_STD, np.float32))

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def weight(self, name: str) -> str:
        """A weight as it is, under its own name."""
        self.constants[name] = self.weights[name]
        return name

    def matrix(self, name: str) -> str:
        """A matrix (out, in) as MatMul takes it, (in, out), under its own name."""
        self.constants[name] = self.weights[name].T
        return name

    def model(self, result: str, shape: list[int], given: int, given_shape: list[int]) -> Any:
        """The graph from `INPUT`, of the type `given`, to a result, which becomes `OUTPUT`."""
        self.nodes.append(helper.make_node("Identity", [result], [OUTPUT]))
        graph = helper.make_graph(
            self.nodes,
            "skipvit",
            [helper.make_tensor_value_info(INPUT, given, given_shape)],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in self.constants.items()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="skipvit")
