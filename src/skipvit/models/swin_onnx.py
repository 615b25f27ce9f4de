"""The Swin Transformer as nodes of an ONNX graph: the twin of `models.swin`, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np

from skipvit.models import windows
from skipvit.models.stages import quarters
from skipvit.models.swin import EPSILON
from skipvit.models.vit_onnx import ViTGraph


class SwinGraph(ViTGraph):
    """Writes a network's parts into a graph, see `ViTGraph`. `where` of kept tokens is (positions int64 (B, N), of each
    cell how many)."""

    def embed(self, images: str, image_size: int) -> str:
        self.image_size, spec = image_size, self.spec
        grid = spec.grid(0, image_size)
        x = self.norm_of("patch_embed.norm", self.dense("patch_embed.proj", self.patches(images, grid, spec.patch)))
        return self.op("Gather", x, windows.order(grid, spec.window_of(0, image_size)), axis=1)

    def to_stage(self, stage: int, x: str) -> str:
        """The tokens of a stage, of those that leave the stage before."""
        orders = [np.array(each.order) for each in self.spec.stages(self.image_size)[stage - 1 : stage + 1]]
        index = quarters(*orders, by_columns=True)
        x = self.op("Reshape", self.op("Gather", x, index, axis=1), np.array([0, len(index) // 4, -1]))
        x = self.norm_of(f"downsample.{stage - 1}.norm", x)
        return self.op("MatMul", x, self.graph.matrix(f"downsample.{stage - 1}.reduction.weight"))

    def locate(self, selector: Any, places: Any) -> Any:
        return places.patches, selector.counts

    def attend(self, block: int, x: str, where: Any = None) -> tuple[str, dict[str, str]]:
        """The first half of a block, and its attention within windows (B x windows, heads, n, n)."""
        stage = self.spec.stage_of_block(block)
        index, inverse = self.order(block, where)
        rows = self.into(block, x, index)
        attention = self.windowed(block, rows, where)
        v = self.heads_of(self.dense(f"blocks.{block}.attn.v", rows), self.spec.heads[stage])
        y = self.op("Transpose", self.op("MatMul", attention, v), perm=[0, 2, 1, 3])
        y = self.dense(f"blocks.{block}.attn.proj", self.op("Reshape", y, np.array([0, 0, self.spec.width_of(stage)])))
        y = self.op("Reshape", y, np.array([self.graph.batch, -1, self.spec.width_of(stage)]))
        y = y if index is None else self.op("Gather", y, inverse, axis=1)
        return self.op("Add", x, y), {"attention": attention}

    def feed(self, block: int, x: str, where: Any = None) -> str:
        normed = self.norm_of(f"blocks.{block}.norm2", x)
        hidden = self.gelu(self.dense(f"blocks.{block}.mlp.fc1", normed))
        return self.op("Add", x, self.dense(f"blocks.{block}.mlp.fc2", hidden))

    def received(self, block: int, signals: dict[str, str], layout: Any) -> str:
        mean = self.op("ReduceMean", signals["attention"], axes=[1, 2], keepdims=0)
        mean = self.op("Reshape", mean, np.array([self.graph.batch, -1]))
        index, inverse = self.order(block, None)
        return mean if index is None else self.op("Gather", mean, inverse, axis=1)

    def signals_of(self, block: int, x: str, before: dict[str, str], reads: tuple[str, ...]) -> dict[str, str]:
        return {"attention": self.windowed(block, self.into(block, x, self.order(block, None)[0]), None)}

    def norm(self, x: str) -> str:
        return self.norm_of("norm", x)

    def classify(self, x: str) -> str:
        return self.dense("head", self.op("ReduceMean", x, axes=[1], keepdims=0))

    # Windows

    def shifts(self, block: int) -> bool:
        stage = self.spec.stage_of_block(block)
        return self.spec.windows(stage) > 1 and (block - sum(self.spec.depths[:stage])) % 2 == 1

    def window(self, block: int) -> tuple[int, int]:
        """Tokens along a side of the block's stage, and of its windows."""
        stage = self.spec.stage_of_block(block)
        return self.spec.grid(stage, self.image_size), self.spec.window_of(stage, self.image_size)

    def order(self, block: int, where: Any) -> tuple[Any, Any]:
        """Into the windows of the block and back; None where the stored ones are its."""
        if not self.shifts(block):
            return None, None
        found = windows.shifted(*self.window(block), None if where is None else where[1])
        return found.index.astype(np.int64), found.inverse.astype(np.int64)

    def into(self, block: int, x: str, index: np.ndarray | None) -> str:
        """Normed tokens of each window: (B x windows, n, D)."""
        stage = self.spec.stage_of_block(block)
        normed = self.norm_of(f"blocks.{block}.norm1", x)
        normed = normed if index is None else self.op("Gather", normed, index, axis=1)
        count = self.graph.batch * self.spec.windows(stage) ** 2
        return self.op("Reshape", normed, np.array([count, -1, self.spec.width_of(stage)]))

    def windowed(self, block: int, rows: str, where: Any) -> str:
        """Attention within windows: (B x windows, heads, n, n)."""
        stage = self.spec.stage_of_block(block)
        q, k = (self.heads_of(self.dense(f"blocks.{block}.attn.{part}", rows), self.spec.heads[stage]) for part in "qk")
        scale = np.float32((self.spec.width_of(stage) // self.spec.heads[stage]) ** -0.5)
        logits = self.op("MatMul", self.op("Mul", q, scale), self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return self.op("Softmax", self.op("Add", logits, self.bias(block, where)), axis=-1)

    def bias(self, block: int, where: Any) -> Any:
        """What is added to the logits."""
        (grid, window), stage = self.window(block), self.spec.stage_of_block(block)
        shift, batch = windows.shift_of(grid, window), self.graph.batch
        rows = windows.offsets(window, shift, self.shifts(block), self.spec.table_window(stage))
        table = self.graph.weights[f"blocks.{block}.attn.relative_position_bias_table"][rows].transpose(2, 0, 1)
        mask = np.zeros((1, 1, 1), np.float32)
        if self.shifts(block):
            mask = windows.shifted(grid, window, None if where is None else where[1]).mask
        if where is None:
            return np.tile((table[None] + mask[:, None]).astype(np.float32), (batch if len(mask) > 1 else 1, 1, 1, 1))
        stored, count = np.arange(grid * grid), window * window
        index, _ = self.order(block, where)
        if index is not None:
            stored = windows.shifted(grid, window).inverse.astype(np.int64)
        places = self.op("Gather", stored % count, where[0])
        places = places if index is None else self.op("Gather", places, index, axis=1)
        places = self.op("Reshape", places, np.array([batch * (grid // window) ** 2, -1]))
        down = self.op("Mul", self.op("Unsqueeze", places, np.array([2])), np.int64(count))
        pairs = self.op("Add", down, self.op("Unsqueeze", places, np.array([1])))
        flat = np.ascontiguousarray(table.reshape(len(table), -1).T)
        biases = self.op("Transpose", self.op("Gather", flat, pairs), perm=[0, 3, 1, 2])
        return self.op("Add", biases, np.tile(mask[:, None], (batch, 1, 1, 1))) if len(mask) > 1 else biases

    def norm_of(self, name: str, x: str) -> str:
        return self.layer_norm(name, x, EPSILON)
