"""What Pyramid Vision Transformers v1 (arXiv 2102.12122) and v2 (2106.13797) are, as numbers: shapes, names of their
weights, costs. Without MindSpore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skipvit.models import pvt_timm
from skipvit.models.registry import register_model
from skipvit.models.staged_spec import Numbers, StagedSpec, one_a_stage, with_bias
from skipvit.routing.layout import Cells, Layout, Stage
from skipvit.routing.program import Step

FLOAT32 = 4  # bytes
POOLED = 7  # side of what the linear variant pools a stage to, tokens


@dataclass(frozen=True)
class PVTSpec(StagedSpec):
    """A classifier: stages of attention to spatially reduced keys and values.

    A stage stores its tokens by the square cells that become one key each, so the reduction is a reshape and a product,
    and a route takes whole cells.

    Attributes:
        widths: of the tokens of each stage.
        mlp_ratios: how many times wider the MLP is inside, in each stage.
        reductions: side of the cells that become one key and value, tokens, in each stage.
        version: 1: patches do not overlap, positions are learnt, [CLS] joins in the last stage and is read by the head;
            2: patches overlap, a depthwise convolution within the MLP tells positions, the head reads the mean.
        linear: keys and values of 7 x 7 means (version 2's linear variant).
        num_classes: width of the head's output.
        gelu: `tanh`, or `erf` for weights that were trained with it (timm, the original).

    Raises:
        ValueError: numbers that do not go together, in one line that names the key.
    """

    widths: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    version: int = 2
    linear: bool = False
    num_classes: int = 1000
    gelu: str = "tanh"

    def __post_init__(self):
        for stage, (width, heads) in enumerate(zip(self.widths, self.heads)):
            if width % heads:
                raise ValueError(f"model.heads: {heads} does not divide the width {width} of stage {stage + 1}")
        self.stages()

    @property
    def last(self) -> int:
        """The last stage."""
        return len(self.depths) - 1

    def grid(self, stage: int = 0, image_size: int | None = None) -> int:
        """Tokens along a side."""
        size, cut = image_size or self.image_size, self.patch * 2**stage
        if size % (self.patch * 2**self.last):
            raise ValueError(
                f"image_size: {size} is not a multiple of {self.patch * 2**self.last}, which patches of {self.patch} "
                f"and {len(self.depths)} stages need"
            )
        return size // cut

    def cell(self, stage: int, image_size: int | None = None) -> int:
        """Side of the cells of a stage, tokens."""
        grid = self.grid(stage, image_size)
        cell = grid // POOLED if self.linear else self.reductions[stage]
        if not cell or grid % cell or self.linear and grid % POOLED:
            cells = f"{POOLED} x {POOLED} means" if self.linear else f"cells of {cell} x {cell}"
            raise ValueError(
                f"image_size: {image_size or self.image_size} gives stage {stage + 1} {grid} tokens along a side, "
                f"which make no {cells}"
            )
        return cell

    def prefix(self, stage: int) -> int:
        """Tokens in front: [CLS] in version 1's last stage."""
        return 1 if self.version == 1 and stage == self.last else 0

    def stages(self, image_size: int | None = None) -> tuple[Stage, ...]:
        """In order."""
        result = []
        for s, depth in enumerate(self.depths):
            grid, cell = self.grid(s, image_size), self.cell(s, image_size)
            layout = Layout(self.prefix(s), grid * grid)
            order = tuple(cell_order(grid, cell).tolist())
            cells = Cells((grid * grid,), unit=cell * cell)
            gives = ("received", "entered", "tokens")
            result.append(Stage(depth, self.widths[s], layout, cells, order, True, gives, f"stage {s + 1}"))
        return tuple(result)

    def network(self, fused_kernels: bool = False, dtype: Any = None) -> Any:
        """The cell, with newly drawn weights; see `models.pvt.PVT`."""
        from skipvit.models.pvt import PVT

        return PVT(self, fused_kernels, dtype)

    def graph(self, builder: Any) -> Any:
        """What writes the network's parts into an ONNX graph; see `models.pvt_onnx.PVTGraph`."""
        from skipvit.models.pvt_onnx import PVTGraph

        return PVTGraph(self, builder)

    # Weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight, by name, in the order of the network's parameters."""
        shapes = self._embedding("patch_embed", 0)
        for s in range(1, len(self.depths)):
            shapes |= self._embedding(f"downsample.{s - 1}", s)
        for i in range(self.depth):
            shapes |= self._block(f"blocks.{i}.", self.stage_of_block(i))
        if self.version == 2:
            for s in range(self.last):
                shapes |= with_bias(f"norms.{s}", self.widths[s])
        d = self.widths[self.last]
        return shapes | with_bias("norm", d) | with_bias("head", self.num_classes, d)

    def _embedding(self, name: str, stage: int) -> dict[str, tuple[int, ...]]:
        """Of what makes the tokens of a stage."""
        inputs, d = (self.widths[stage - 1] if stage else 3), self.widths[stage]
        side = self.patch if stage == 0 else 2
        if self.version == 2:
            side = overlapping(side)
            return with_bias(f"{name}.proj", d, inputs, side, side) | with_bias(f"{name}.norm", d)
        shapes = {f"{name}.cls_token": (1, 1, d)} if self.prefix(stage) else {}
        shapes[f"{name}.pos_embed"] = (1, self.prefix(stage) + self.grid(stage) ** 2, d)
        return shapes | with_bias(f"{name}.proj", d, side * side * inputs) | with_bias(f"{name}.norm", d)

    def _block(self, block: str, stage: int) -> dict[str, tuple[int, ...]]:
        d, ratio, cell = self.widths[stage], self.mlp_ratios[stage], self.reductions[stage]
        shapes = with_bias(block + "norm1", d)
        for part in ("q", "k", "v", "proj"):
            shapes |= with_bias(f"{block}attn.{part}", d, d)
        if self.linear or cell > 1:
            inputs = d if self.linear else cell * cell * d
            shapes |= with_bias(block + "attn.sr", d, inputs) | with_bias(block + "attn.norm", d)
        shapes |= with_bias(block + "norm2", d)
        shapes |= with_bias(block + "mlp.fc1", ratio * d, d) | with_bias(block + "mlp.fc2", d, ratio * d)
        return shapes | (with_bias(block + "mlp.dwconv", ratio * d, 1, 3, 3) if self.version == 2 else {})

    def timm_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same under timm's names (version 1: the original's), see `models.pvt_timm`."""
        return pvt_timm.timm_shapes(self.shapes(), self)

    def from_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in timm's layout in ours."""
        return pvt_timm.from_timm(params, self)

    def to_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in our layout in timm's."""
        return pvt_timm.to_timm(params, self)

    timm_head = ("head.weight", "head.bias")

    @property
    def family(self) -> str:
        """What weights are of, in messages."""
        return "a PVT" if self.version == 1 else "a PVT v2, linear" if self.linear else "a PVT v2"

    @property
    def published(self) -> str:
        """Which weights of others this is."""
        return "the original's pvt_*" if self.version == 1 else "a timm pvt_v2_*"

    def elsewhere(self) -> tuple[str, ...]:
        """Lines of Python that make this network of timm's class, of version 1 of the original's."""
        names = {
            "depths": self.depths,
            "embed_dims": self.widths,
            "num_heads": self.heads,
            "sr_ratios": self.reductions,
            "mlp_ratios": self.mlp_ratios,
        }
        given = ", ".join(f"{name}={value}" for name, value in names.items())
        if self.version == 1:
            lines = (
                "from pvt import PyramidVisionTransformer  # github.com/whai362/PVT, classification/pvt.py",
                f"network = PyramidVisionTransformer(img_size={self.image_size}, patch_size={self.patch}, "
                f"num_classes={self.num_classes}, qkv_bias=True, {given})",
            )
        else:
            lines = (
                "from timm.models.pvt_v2 import PyramidVisionTransformerV2",
                f"network = PyramidVisionTransformerV2(num_classes={self.num_classes}, linear={self.linear}, {given})",
            )
        return lines if self.gelu == "erf" else (*lines, "# It has the erf GELU, these weights the tanh one.")

    def positions(self) -> dict[str, int]:
        """Weights that belong to places of a square grid, and how many of their rows in front do not."""
        if self.version == 2:
            return {}
        names = ["patch_embed", *(f"downsample.{s}" for s in range(self.last))]
        return {f"{name}.pos_embed": self.prefix(s) for s, name in enumerate(names)}

    def described(self) -> str:
        """Its numbers, for people."""
        depths, widths = (", ".join(map(str, numbers)) for numbers in (self.depths, self.widths))
        return f"depths {depths}, widths {widths}, patch {self.patch}, image {self.image_size}"

    def like(self, shapes: Mapping[str, tuple[int, ...]]) -> PVTSpec:
        """The same of another size, as far as shapes of weights, in either layout, tell it; of heads and images they do
        not: as here."""
        found = pvt_timm.numbers_of(shapes, self)
        try:
            return replace(self, **found)
        except ValueError:  # images that its stages cannot cut
            reductions = found.get("reductions", self.reductions)
            size = found.get("patch", self.patch) * 2 ** (len(reductions) - 1) * max(reductions)
            return replace(self, **found | {"image_size": size})

    def decays(self, name: str, ndim: int) -> bool:
        """Whether weight decay applies: matrices and kernels yes; biases, norms, [CLS] and positions no."""
        return ndim in (2, 4)

    # Costs

    def keys(self, step: Step, stage: int) -> int:
        """Keys of an attention: one of each cell that is there."""
        if self.linear:
            return step.before.patches * POOLED**2 // step.before.places
        return step.before.prefix + step.before.patches // self.reductions[stage] ** 2

    def products(self, step: Step) -> dict[str, int]:
        """Multiply-accumulates of a step for one image, by part; norms, GELU and sums do not count.

        A block on N tokens with M keys and an MLP r times as wide: q and projection 2 N d^2, k and v 2 M d^2, their
        reduction N d^2 (the linear variant's M d^2), attention 2 N M d, MLP 2 r N d^2, its depthwise convolution 9 r d
        for each place of the grid.
        """
        stage = self.stage_of(step)
        n, d = step.before.length, self.widths[stage]
        if step.kind in ("embed", "downsample"):
            inputs, side = (3, self.patch) if stage == 0 else (self.widths[stage - 1], 2)
            side = overlapping(side) if self.version == 2 else side
            name = "patch embedding" if stage == 0 else "downsampling"
            return {name: step.after.patches * side**2 * inputs * d}
        if step.kind == "attend":
            keys = self.keys(step, stage)
            reduced = keys * d**2 if self.linear else n * d**2 if self.reductions[stage] > 1 else 0
            return {
                "attention projections": 2 * n * d**2 + 2 * keys * d**2,
                "spatial reduction": reduced,
                "attention": 2 * n * keys * d,
            }
        if step.kind == "feed":
            ratio = self.mlp_ratios[stage]
            parts = {"MLP": 2 * ratio * n * d**2}
            if self.version == 2:
                parts["depthwise convolution"] = 9 * ratio * d * step.before.places
            return parts
        return {"head": d * self.num_classes} if step.kind == "head" else {}

    def read_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of what a scorer reads beyond what a block makes anyway: the attention received."""
        stage = self.routed_stage
        return step.before.patches * self.keys(step, stage) * self.widths[stage] if "received" in reads else 0

    def signal_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of the projections that a scorer reads, of all tokens after a step."""
        stage, n = self.routed_stage, step.after.patches
        d, keys = self.widths[stage], n // self.reductions[stage] ** 2
        return (2 * n + keys) * d**2 if "received" in reads else 0

    def activations(self, step: Step, compute: int) -> int:
        """Bytes that a step keeps of an image for its backward: as `vit_spec.ViTSpec.activations`; of the keys the
        standardised input of their norm, the norm's output, keys and values.

        Args:
            compute: bytes of a number of the matrix products, 4 or 2.
        """
        stage = self.stage_of(step)
        tokens = step.before.length * self.widths[stage]
        if step.kind == "attend":
            keys = self.keys(step, stage)
            maps, reduced = self.heads[stage] * step.before.length * keys, keys * self.widths[stage]
            kept = FLOAT32 * (tokens + maps) + compute * (3 * tokens + 2 * reduced)
            kept += (FLOAT32 + compute) * reduced if self.linear or self.reductions[stage] > 1 else 0
            return kept + (compute * maps if compute != FLOAT32 else 0)
        if step.kind == "feed":
            ratio = self.mlp_ratios[stage]
            conv = ratio * step.before.places * self.widths[stage] if self.version == 2 else 0
            return FLOAT32 * tokens + compute * ((1 + 2 * ratio) * tokens + conv)
        if step.kind in ("embed", "downsample"):
            made = step.after.patches * self.widths[stage]
            taken = step.before.length * self.widths[stage - 1] if stage else 0
            return FLOAT32 * made + compute * taken
        return 0


def overlapping(stride: int) -> int:
    """Side of version 2's kernel of patches that are `stride` apart."""
    return 2 * stride - 1


def cell_order(grid: int, cell: int) -> np.ndarray:
    """Row-major position of each token as it is stored: cells row by row, in each its tokens row by row."""
    places = np.arange(grid * grid).reshape(grid // cell, cell, grid // cell, cell)
    return places.transpose(0, 2, 1, 3).ravel()


# The originals', which timm's names of version 2 are of.
V1 = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
V2: dict[str, dict[str, Any]] = {
    "b0": {"width": (32, 64, 160, 256), "depth": (2, 2, 2, 2)},
    "b1": {"depth": (2, 2, 2, 2)},
    "b2": {"depth": (3, 4, 6, 3)},
    "b2_li": {"depth": (3, 4, 6, 3), "linear": True},
    "b3": {"depth": (3, 4, 18, 3)},
    "b4": {"depth": (3, 8, 27, 3)},
    "b5": {"depth": (3, 6, 40, 3), "mlp_ratio": (4, 4, 4, 4)},
}


def _register(name: str, version: int, defaults: dict[str, Any]) -> None:
    numbers = {"width": (64, 128, 320, 512), "heads": (1, 2, 5, 8), "mlp_ratio": (8, 8, 4, 4), "linear": False}
    numbers |= {"reduction": (8, 4, 2, 1)} | defaults

    @register_model(name)
    def make(
        width: Numbers = numbers["width"],
        depth: Numbers = numbers["depth"],
        heads: Numbers = numbers["heads"],
        mlp_ratio: Numbers = numbers["mlp_ratio"],
        reduction: Numbers = numbers["reduction"],
        patch: int = 4,
        image_size: int = 224,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        gelu: str = "tanh",
    ) -> PVTSpec:
        depths = tuple(depth) if isinstance(depth, list | tuple) else (depth,)
        given = {"width": width, "heads": heads, "mlp_ratio": mlp_ratio, "reduction": reduction}
        each = {key: one_a_stage(key, value, len(depths)) for key, value in given.items()}
        return PVTSpec(
            depths, each["heads"], patch, image_size, drop_path, each["width"], each["mlp_ratio"], each["reduction"],
            version, numbers["linear"], num_classes, gelu,
        )  # fmt: skip


for _size, _depths in V1.items():
    _register(f"pvt_{_size}", 1, {"depth": _depths})
for _size, _numbers in V2.items():
    _register(f"pvt_v2_{_size}", 2, _numbers)
