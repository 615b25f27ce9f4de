"""The Vision Transformer as nodes of an ONNX graph: the twin of `models.vit` and `models.layers`, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np

from skipvit.models.kernels import NORM_EPSILON
from skipvit.models.positions import resized_positions


class ViTGraph:
    """Writes a network's parts into a graph; another backbone overrides what differs in it, e.g. `embed`, `classify`.

    Methods take and return names of nodes' results, float32.

    Args:
        spec: as of `models.vit.ViT`.
        graph: see `weights.onnx.Graph`.
    """

    def __init__(self, spec: Any, graph: Any):
        self.spec, self.graph, self.op = spec, graph, graph.op

    def embed(self, images: str, image_size: int) -> str:
        """Normalised images (B, S, S, 3) to tokens (B, prefix + patches, D)."""
        patch, grid, batch, prefix = self.spec.patch, self.spec.grid(image_size), self.graph.batch, self.spec.prefix
        x = self.dense("patch_embed.proj", self.patches(images, grid, patch))
        if prefix:
            cls = np.broadcast_to(self.graph.weights["cls_token"], (batch, prefix, self.spec.width))
            x = self.op("Concat", cls, x, axis=1)
        if grid == self.spec.grid():
            return self.op("Add", x, self.graph.weight("pos_embed"))
        return self.op("Add", x, resized_positions(self.graph.weights["pos_embed"], grid, prefix))

    def patches(self, images: str, grid: int, patch: int) -> str:
        """(B, S, S, 3) to (B, patches, patch * patch * 3), row by row."""
        x = self.op("Reshape", images, np.array([self.graph.batch, grid, patch, grid, patch * 3]))
        x = self.op("Transpose", x, perm=[0, 1, 3, 2, 4])  # (B, rows, columns, patch, patch * 3)
        return self.op("Reshape", x, np.array([self.graph.batch, grid * grid, patch * patch * 3]))

    def locate(self, selector: Any, places: Any) -> Any:
        """What blocks have to know of where the tokens of a route are: nothing."""
        return None

    def attend(self, block: int, x: str, where: Any = None) -> tuple[str, dict[str, str]]:
        """The first half of a block, and its q, k, v (B, heads, N, d)."""
        signals = self.projected(block, x, "qkv")
        y = self.op("MatMul", self.attention(signals["q"], signals["k"]), signals["v"])
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, self.spec.width]))
        return self.op("Add", x, self.dense(f"blocks.{block}.attn.proj", y)), signals

    def feed(self, block: int, x: str, where: Any = None) -> str:
        """The second half of a block."""
        hidden = self.gelu(self.dense(f"blocks.{block}.mlp.fc1", self.layer_norm(f"blocks.{block}.norm2", x)))
        return self.op("Add", x, self.dense(f"blocks.{block}.mlp.fc2", hidden))

    def signals_of(self, block: int, x: str, before: dict[str, str], reads: tuple[str, ...]) -> dict[str, str]:
        """What a scorer reads of other tokens x (B, N, D); of q only if it does, else as `before`."""
        new_queries = "q" in reads or "received" in reads
        return {"q": before["q"]} | self.projected(block, x, "qkv" if new_queries else "kv")

    def received(self, block: int, signals: dict[str, str], layout: Any) -> str:
        """The attention that each patch receives of the patches: (B, patches)."""
        q, k = (self.graph.slice(signals[n], layout.prefix, layout.prefix + layout.patches, axis=2) for n in "qk")
        return self.op("ReduceMean", self.attention(q, k), axes=[1, 2], keepdims=0)

    def cls_row(self, signals: dict[str, str]) -> str:
        """What each head's [CLS] attends to: (B, heads, N)."""
        row = self.attention(self.graph.slice(signals["q"], 0, 1, axis=2), signals["k"])
        return self.op("Squeeze", row, np.array([2]))

    def norm(self, x: str) -> str:
        return self.layer_norm("norm", x)

    def classify(self, x: str) -> str:
        """The last norm's tokens (B, N, D) to logits (B, classes)."""
        return self.dense("head", self.op("Gather", x, np.int64(0), axis=1))

    # Layers

    def projected(self, block: int, x: str, parts: str) -> dict[str, str]:
        """Some of q, k and v of a block's input."""
        normed, result = self.layer_norm(f"blocks.{block}.norm1", x), {}
        for part in parts:
            result[part] = self.heads_of(self.dense(f"blocks.{block}.attn.{part}", normed), self.spec.heads)
        return result

    def heads_of(self, y: str, heads: int) -> str:
        """(B, N, D) to (B, heads, N, d)."""
        y = self.op("Reshape", y, np.array([0, 0, heads, -1]))  # 0: as it was
        return self.op("Transpose", y, perm=[0, 2, 1, 3])

    def attention(self, q: str, k: str) -> str:
        scale = np.float32((self.spec.width // self.spec.heads) ** -0.5)
        logits = self.op("MatMul", self.op("Mul", q, scale), self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return self.op("Softmax", logits, axis=-1)

    def gelu(self, x: str) -> str:
        if self.spec.gelu == "erf":
            inner = self.op("Erf", self.op("Mul", x, np.float32(0.5**0.5)))
        else:  # in the order that ONNX Runtime knows as one kernel
            square = self.op("Mul", self.op("Mul", x, np.float32(0.044715)), x)
            scaled = self.op("Mul", x, np.float32((2 / np.pi) ** 0.5))
            inner = self.op("Tanh", self.op("Mul", scaled, self.op("Add", square, np.float32(1))))
        return self.op("Mul", self.op("Mul", x, np.float32(0.5)), self.op("Add", inner, np.float32(1)))

    def layer_norm(self, name: str, x: str, epsilon: float = NORM_EPSILON) -> str:
        scale, bias = self.graph.weight(f"{name}.weight"), self.graph.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def dense(self, name: str, x: str) -> str:
        product = self.op("MatMul", x, self.graph.matrix(f"{name}.weight"))
        return self.op("Add", product, self.graph.weight(f"{name}.bias"))
