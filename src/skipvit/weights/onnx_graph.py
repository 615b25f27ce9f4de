"""The network as an ONNX graph, top-down, as `models/vit.py` computes it.

Written out from weights and routes, because the exporter of MindSpore 2.8 knows neither the Rsqrt of a layer norm nor the CumSum of
a route. Operators of opset 17 (its LayerNormalization is the newest), whose TopK defines ties as ours do: the earlier
position first. So the same tokens are kept, and what is left are differences of rounding; `skipvit export` measures them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import mindspore  # noqa: F401  before onnx: MindSpore's protobuf classes need a setting that it makes itself
import numpy as np

from skipvit.models.sizes import Size
from skipvit.models.vit import NORM_EPSILON, PIXEL_MEAN, PIXEL_STD
from skipvit.routing.routing import Span, grid_mask
from skipvit.routing.scorers import SCORERS
from skipvit.util.errors import UsageError

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    onnx = None

OPSET, IR_VERSION = 17, 8  # ONNX 1.12
# Scorers that rank by attention outside training, and whether the most or the least attended come first.
SIGN = {
    "cls_attention": 1,
    "cls_attention_value": 1,
    "inverse_cls_attention": -1,
    "sampled_cls_attention": 1,
    "mixed_cls_attention": 1,
}
INPUT, OUTPUT = "images", "probabilities"


def require() -> None:
    """Raises UsageError if the libraries are not installed."""
    if onnx is None:
        raise UsageError("--to onnx: needs `pip install -e '.[onnx]'`")


def session(path: Path) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime on the CPU, after the checks of the ONNX library; raises whatever they raise."""
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Heads(NamedTuple):
    """Names of a block's q, k, v: (B, heads, tokens, d)."""

    q: str
    k: str
    v: str


class Selection(NamedTuple):
    """Which tokens of a sequence a route keeps.

    Attributes:
        patches: int64 (B, kept), positions among the patch tokens, ascending.
        places: int64 (B, 1 + kept + extras, 2), (image, place in the sequence) of [CLS], the kept patches and the extras.
        weights: float32 (B, tokens), of all patches, for the fused token; "" where a route has none and no scores.
    """

    patches: str
    places: str
    weights: str


class VitGraph:
    """Builds the graph for batches of a fixed size. Methods add nodes and return the names of their outputs.

    Args:
        weights: float32 arrays under the network's names.
        size, patch, image_size, exact_gelu: as for `models.vit.ViT`.
        spans: the resolved routes, none for the dense forward.
        noise: float32 (noise_width,), what `random` routes draw by, for every image.
        batch: images.
    """

    def __init__(
        self,
        weights: dict[str, np.ndarray],
        size: Size,
        patch: int,
        image_size: int,
        exact_gelu: bool,
        spans: tuple[Span, ...],
        noise: np.ndarray,
        batch: int,
    ):
        self.weights, self.size, self.patch, self.image_size = weights, size, patch, image_size
        self.exact_gelu, self.spans, self.noise, self.batch = exact_gelu, spans, noise, batch
        self.grid = image_size // patch
        self.nodes, self.constants = [], {}

    def model(self, uint8: bool) -> onnx.ModelProto:
        """Images (B, S, S, 3), uint8 or normalised float32, to probabilities float32 (B, classes)."""
        output = self.forward(INPUT, uint8)
        self.nodes.append(helper.make_node("Identity", [output], [OUTPUT]))
        shape = (self.batch, self.image_size, self.image_size, 3)
        given = helper.make_tensor_value_info(INPUT, TensorProto.UINT8 if uint8 else TensorProto.FLOAT, shape)
        classes = len(self.weights["head.bias"])
        result = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (self.batch, classes))
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "skipvit", [given], [result], constants)
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="skipvit")

    def forward(self, images: str, uint8: bool) -> str:
        """Twin of `ViT.trace`."""
        x, heads, at = self.embed(images, uint8), None, 0
        for r, span in enumerate(self.spans):
            x, heads = self.run(x, heads, at, span.start)
            if span.at == "mlp":
                x, heads = self.attend(span.start, x)
            chosen = self.select(span, heads, self.first_noise(r))
            inside = self.enter(span, x, chosen)
            if span.at == "mlp":
                inside = self.feed(span.start, inside)
            last = max(span.first_block, span.end - 1)
            before, heads = self.run(inside, heads, span.first_block, last)
            inside, heads = self.run(before, heads, last, span.end)
            if span.restore:
                if (
                    self.scores_at(r + 1, span.end) and last < span.end
                ):  # the next scorer ranks those that bypassed this block too
                    _, k, v = self.heads(span.end - 1, self.leave(span, before, x, chosen))
                    heads = Heads(heads.q, k, v)
                x = self.leave(span, inside, x, chosen)
            else:
                x = inside
            at = span.end
        x, _ = self.run(x, heads, at, self.size.depth)
        cls = self.op("Gather", x, np.int64(0), axis=1)
        return self.op("Softmax", self.dense("head", self.layer_norm("norm", cls)), axis=-1)

    def scores_at(self, r: int, block: int) -> bool:
        return r < len(self.spans) and self.spans[r].start == block and self.spans[r].reads_before

    def first_noise(self, r: int) -> int:
        """First column of the noise of route r: two a block for the drop path, then those of the routes before."""
        return 2 * self.size.depth + sum(SCORERS[span.scorer].noise_columns(span.tokens) for span in self.spans[:r])

    # The network's parts

    def embed(self, images: str, uint8: bool) -> str:
        grid, patch, batch = self.grid, self.patch, self.batch
        x = self.op("Reshape", images, np.array([batch, grid, patch, grid, patch * 3]))
        x = self.op("Transpose", x, perm=[0, 1, 3, 2, 4])  # (B, rows, columns, patch, patch * 3)
        x = self.op("Reshape", x, np.array([batch, grid * grid, patch * patch * 3]))
        if uint8:
            mean, std = (np.array(values * patch * patch, np.float32) for values in (PIXEL_MEAN, PIXEL_STD))
            x = self.op("Mul", self.op("Sub", self.op("Cast", x, to=TensorProto.FLOAT), mean), 1 / std)
        cls = np.broadcast_to(self.weights["cls_token"], (batch, 1, self.size.width)).copy()
        tokens = self.op("Concat", cls, self.dense("patch_embed.proj", x), axis=1)
        return self.op("Add", tokens, self.weight("pos_embed"))

    def run(self, x: str, heads: Heads | None, start: int, end: int) -> tuple[str, Heads | None]:
        """Blocks [start, end); q, k, v of the last one, or those given if there is none."""
        for i in range(start, end):
            x, heads = self.attend(i, x)
            x = self.feed(i, x)
        return x, heads

    def attend(self, i: int, x: str) -> tuple[str, Heads]:
        heads = self.heads(i, x)
        return self.op("Add", x, self.attention(i, heads)), heads

    def feed(self, i: int, x: str) -> str:
        hidden = self.gelu(self.dense(f"blocks.{i}.mlp.fc1", self.layer_norm(f"blocks.{i}.norm2", x)))
        return self.op("Add", x, self.dense(f"blocks.{i}.mlp.fc2", hidden))

    def heads(self, i: int, x: str) -> Heads:
        normed, heads = self.layer_norm(f"blocks.{i}.norm1", x), []
        for part in "qkv":
            y = self.dense(f"blocks.{i}.attn.{part}", normed)
            y = self.op("Reshape", y, np.array([0, 0, self.size.heads, -1]))  # 0: as it was
            heads.append(self.op("Transpose", y, perm=[0, 2, 1, 3]))
        return Heads(*heads)

    def attention(self, i: int, heads: Heads) -> str:
        y = self.op("MatMul", self.attention_map(heads.q, heads.k), heads.v)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, self.size.width]))
        return self.dense(f"blocks.{i}.attn.proj", y)

    def attention_map(self, q: str, k: str) -> str:
        scale = np.float32((self.size.width // self.size.heads) ** -0.5)
        logits = self.op("MatMul", self.op("Mul", q, scale), self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return self.op("Softmax", logits, axis=-1)

    def gelu(self, x: str) -> str:
        if self.exact_gelu:
            inner = self.op("Erf", self.op("Mul", x, np.float32(0.5**0.5)))
        else:  # in the order that ONNX Runtime knows as one kernel
            square = self.op("Mul", self.op("Mul", x, np.float32(0.044715)), x)
            scaled = self.op("Mul", x, np.float32((2 / np.pi) ** 0.5))
            inner = self.op("Tanh", self.op("Mul", scaled, self.op("Add", square, np.float32(1))))
        return self.op("Mul", self.op("Mul", x, np.float32(0.5)), self.op("Add", inner, np.float32(1)))

    def layer_norm(self, name: str, x: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=NORM_EPSILON)

    def dense(self, name: str, x: str) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(f"{name}.weight")), self.weight(f"{name}.bias"))

    # Routes

    def select(self, span: Span, heads: Heads | None, first_noise: int) -> Selection:
        """Twin of `Router.score` and `Router.mask`; what a `random` or `grid` route keeps is known already.

        Raises:
            UsageError: a scorer that has no twin here.
        """
        if span.scorer in SIGN:
            weights = self.score(span, heads)
            ranking = weights if SIGN[span.scorer] > 0 else self.op("Neg", weights)
            _, best = self.op("TopK", ranking, np.array([span.kept]), outputs=2)
            patches, _ = self.op("TopK", best, np.array([span.kept]), outputs=2, largest=0)  # sorts them
        else:
            noise = self.noise[first_noise : first_noise + span.tokens]
            twins = {"random": noise, "grid": grid_mask(span.tokens, span.kept)}
            if span.scorer not in twins:
                raise UsageError(
                    f"--to onnx: scorer {span.scorer} has no twin in tools/onnx_graph.py; export --dense or --to mindir"
                )
            ranking = twins[span.scorer]
            best = np.sort(np.argsort(-ranking.astype(np.float32), kind="stable")[: span.kept])
            patches = self.constant(np.tile(best, (self.batch, 1)))
            weights = self.constant(np.ones((self.batch, span.tokens), np.float32)) if span.fuse else ""
        cls = np.zeros((self.batch, 1), np.int64)
        extras = np.tile(np.arange(1 + span.tokens, 1 + span.tokens + span.extras), (self.batch, 1))
        places = self.op("Concat", cls, self.op("Add", patches, np.int64(1)), extras, axis=1)
        places = self.op("Unsqueeze", places, np.array([2]))
        images = np.arange(self.batch)[:, None, None].repeat(1 + span.kept + span.extras, 1)
        return Selection(patches, self.op("Concat", images, places, axis=2), weights)

    def score(self, span: Span, heads: Heads) -> str:
        """Mean over heads of the [CLS] row of the attention, times the norm of the values if it says so: (B, tokens)."""
        row = self.attention_map(self.slice(heads.q, 0, 1, axis=2), heads.k)  # (B, heads, 1, sequence)
        row = self.op("Squeeze", row, np.array([2]))
        if span.scorer == "cls_attention_value":
            row = self.op("Mul", row, self.op("ReduceL2", heads.v, axes=[-1], keepdims=0))
        return self.slice(self.op("ReduceMean", row, axes=[1], keepdims=0), 1, 1 + span.tokens, axis=1)

    def enter(self, span: Span, x: str, chosen: Selection) -> str:
        """The kept tokens, with the fused one last if there is one."""
        kept = self.op("GatherND", x, chosen.places)
        if not span.fuse:
            return kept
        bypassed = self.op(
            "ScatterElements", chosen.weights, chosen.patches, np.zeros((self.batch, span.kept), np.float32), axis=1
        )
        total = self.op("ReduceSum", bypassed, np.array([1]), keepdims=1)
        share = self.op("Div", bypassed, self.op("Add", total, np.float32(1e-12)))
        patches = self.slice(x, 1, 1 + span.tokens, axis=1)
        return self.op("Concat", kept, self.op("MatMul", self.op("Unsqueeze", share, np.array([1])), patches), axis=1)

    def leave(self, span: Span, kept: str, x: str, chosen: Selection) -> str:
        """The kept tokens back among the bypassed ones of x; the fused one ends here."""
        if span.fuse:
            kept = self.slice(kept, 0, 1 + span.kept + span.extras, axis=1)
        return self.op("ScatterND", x, chosen.places, kept)

    # ONNX

    def op(self, kind: str, *inputs, outputs: int = 1, **attributes):
        """Add a node; arrays among its inputs become constants. The name of its output, or a list of `outputs` names."""
        names = [value if isinstance(value, str) else self.constant(np.asarray(value)) for value in inputs]
        results = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, name=f"{kind}_{len(self.nodes)}", **attributes))
        return results[0] if outputs == 1 else results

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", x, np.array([start]), np.array([stop]), np.array([axis]))

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def weight(self, name: str) -> str:
        """A weight under its own name; matrices are transposed, (in, out), which is what MatMul takes."""
        value = self.weights[name]
        self.constants[name] = np.ascontiguousarray(value.T) if value.ndim == 2 else value
        return name
