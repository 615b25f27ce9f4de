"""Pyramid Vision Transformers as nodes of an ONNX graph: the twin of `models.pvt`, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np

from skipvit.models.positions import resized_positions
from skipvit.models.pvt import EPSILON
from skipvit.models.pvt_spec import cell_order, overlapping
from skipvit.models.stages import quarters
from skipvit.models.vit_onnx import ViTGraph


class PVTGraph(ViTGraph):
    """Writes a network's parts into a graph, see `ViTGraph`. `where` of kept tokens is (selector, its places)."""

    def embed(self, images: str, image_size: int) -> str:
        self.image_size, grid = image_size, self.spec.grid(0, image_size)
        if self.spec.version == 2:
            return self.overlapping("patch_embed", self.op("Transpose", images, perm=[0, 3, 1, 2]), 0)
        rows = self.patches(images, grid, self.spec.patch)
        rows = self.op("Gather", rows, cell_order(grid, self.cell(0)), axis=1)
        return self.positioned("patch_embed", rows, 0)

    def to_stage(self, stage: int, x: str) -> str:
        """The tokens of a stage, of those that leave the stage before."""
        name = f"downsample.{stage - 1}"
        if self.spec.version == 2:
            x = self.layer_norm(f"norms.{stage - 1}", x)
            return self.overlapping(name, self.into_planes(x, stage - 1), stage)
        orders = [np.array(each.order) for each in self.spec.stages(self.image_size)[stage - 1 : stage + 1]]
        index = quarters(*orders, by_columns=False)
        rows = self.op("Reshape", self.op("Gather", x, index, axis=1), np.array([0, len(index) // 4, -1]))
        return self.positioned(name, rows, stage)

    def locate(self, selector: Any, places: Any) -> Any:
        return selector, places

    def attend(self, block: int, x: str, where: Any = None) -> tuple[str, dict[str, str]]:
        """The first half of a block, and its q, scaled, k, v."""
        signals = self.signals_of(block, x, {}, (), where)
        y = self.op("MatMul", self.attention(signals["q"], signals["k"]), signals["v"])
        width = self.spec.widths[self.spec.stage_of_block(block)]
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, width]))
        return self.op("Add", x, self.dense(f"blocks.{block}.attn.proj", y)), signals

    def feed(self, block: int, x: str, where: Any = None) -> str:
        stage, name = self.spec.stage_of_block(block), f"blocks.{block}.mlp"
        hidden = self.dense(f"{name}.fc1", self.layer_norm(f"blocks.{block}.norm2", x))
        if self.spec.version == 2:
            hidden = self.op("Relu", hidden) if self.spec.linear else hidden
            hidden = self.convolved(f"{name}.dwconv", hidden, stage, where)
        return self.op("Add", x, self.dense(f"{name}.fc2", self.gelu(hidden)))

    def received(self, block: int, signals: dict[str, str], layout: Any) -> str:
        mean = self.op("ReduceMean", self.attention(signals["q"], signals["k"]), axes=[1, 2], keepdims=0)
        stage = self.spec.stage_of_block(block)
        return self.op("Gather", mean, np.arange(layout.patches) // self.cell(stage) ** 2, axis=1)

    def signals_of(
        self, block: int, x: str, before: dict[str, str], reads: tuple[str, ...], where: Any = None
    ) -> dict[str, str]:
        stage, name = self.spec.stage_of_block(block), f"blocks.{block}.attn"
        normed = self.layer_norm(f"blocks.{block}.norm1", x)
        keyed = self.reduced(name, normed, stage)
        given = {"q": normed, "k": keyed, "v": keyed}
        signals = {
            part: self.heads_of(self.dense(f"{name}.{part}", given[part]), self.spec.heads[stage]) for part in "qkv"
        }
        scale = np.float32((self.spec.widths[stage] // self.spec.heads[stage]) ** -0.5)
        return signals | {"q": self.op("Mul", signals["q"], scale)}

    def classify(self, x: str) -> str:
        if self.spec.version == 2:
            return self.dense("head", self.op("ReduceMean", x, axes=[1], keepdims=0))
        return super().classify(x)

    # Layers

    def cell(self, stage: int) -> int:
        return self.spec.cell(stage, self.image_size)

    def attention(self, q: str, k: str) -> str:
        return self.op("Softmax", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)

    def reduced(self, name: str, x: str, stage: int) -> str:
        """Tokens to one of each cell."""
        cell, width = self.cell(stage), self.spec.widths[stage]
        if self.spec.linear:
            x = self.op("Reshape", x, np.array([self.graph.batch, -1, cell * cell, width]))
            x = self.dense(f"{name}.sr", self.op("ReduceMean", x, axes=[2], keepdims=0))
            return self.gelu(self.layer_norm(f"{name}.norm", x, EPSILON))
        if cell == 1:
            return x
        x = self.op("Reshape", x, np.array([self.graph.batch, -1, cell * cell * width]))
        return self.layer_norm(f"{name}.norm", self.dense(f"{name}.sr", x), EPSILON)

    def positioned(self, name: str, rows: str, stage: int) -> str:
        """Version 1's tokens of a stage of what is to be projected."""
        grid, prefix = self.spec.grid(stage, self.image_size), self.spec.prefix(stage)
        x = self.layer_norm(f"{name}.norm", self.dense(f"{name}.proj", rows), EPSILON)
        positions = resized_positions(self.graph.weights[f"{name}.pos_embed"], grid, prefix)
        order = np.concatenate([np.arange(prefix), prefix + cell_order(grid, self.cell(stage))])
        if prefix:
            cls = np.broadcast_to(
                self.graph.weights[f"{name}.cls_token"], (self.graph.batch, 1, self.spec.widths[stage])
            )
            x = self.op("Concat", cls, x, axis=1)
        return self.op("Add", x, np.ascontiguousarray(positions[:, order]))

    def overlapping(self, name: str, planes: str, stage: int) -> str:
        """Version 2's tokens of a stage of planes (B, C, H, W)."""
        stride = self.spec.patch if stage == 0 else 2
        planes = self.convolution(f"{name}.proj", planes, overlapping(stride), stride, 1)
        return self.layer_norm(f"{name}.norm", self.from_planes(planes, stage), EPSILON)

    def convolved(self, name: str, hidden: str, stage: int, where: Any) -> str:
        """The depthwise convolution, on a grid that is empty where tokens are not there."""
        width = self.spec.mlp_ratios[stage] * self.spec.widths[stage]
        if where is not None:
            grid = self.spec.grid(stage, self.image_size) ** 2
            hidden = where[0].put(hidden, np.zeros((self.graph.batch, grid, width), np.float32), where[1])
        planes = self.convolution(name, self.into_planes(hidden, stage), 3, 1, width)
        hidden = self.from_planes(planes, stage)
        return hidden if where is None else where[0].take(hidden, where[1])

    def convolution(self, name: str, planes: str, side: int, stride: int, groups: int) -> str:
        weight, bias = self.graph.weight(f"{name}.weight"), self.graph.weight(f"{name}.bias")
        return self.op("Conv", planes, weight, bias, pads=[side // 2] * 4, strides=[stride] * 2, group=groups)

    def into_planes(self, x: str, stage: int) -> str:
        cell, grid = self.cell(stage), self.spec.grid(stage, self.image_size)
        x = self.op("Reshape", x, np.array([self.graph.batch, grid // cell, grid // cell, cell, cell, -1]))
        x = self.op("Transpose", x, perm=[0, 5, 1, 3, 2, 4])
        return self.op("Reshape", x, np.array([self.graph.batch, -1, grid, grid]))

    def from_planes(self, planes: str, stage: int) -> str:
        cell, grid = self.cell(stage), self.spec.grid(stage, self.image_size)
        x = self.op("Reshape", planes, np.array([self.graph.batch, -1, grid // cell, cell, grid // cell, cell]))
        x = self.op("Transpose", x, perm=[0, 2, 4, 3, 5, 1])
        return self.op("Reshape", x, np.array([self.graph.batch, grid * grid, -1]))
