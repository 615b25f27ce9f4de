"""What a Swin Transformer (arXiv 2103.14030) is, as numbers: shapes, names of its weights, costs. Without MindSpore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from skipvit.models import swin_timm, windows
from skipvit.models.registry import one_number, register_model
from skipvit.models.staged_spec import Numbers, StagedSpec, one_a_stage, with_bias
from skipvit.routing.layout import Cells, Layout, Stage
from skipvit.routing.program import Step

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class SwinSpec(StagedSpec):
    """A classifier: patch embedding with a norm, stages of window attention, a norm, the mean of all tokens, a head.

    The width doubles from stage to stage and four tokens become one. Odd blocks shift their windows by half a window.
    Images of another size have smaller or larger windows, as many of them: offsets keep their biases.

    Attributes:
        width: of the first stage's tokens.
        window: side of a window, tokens; where a stage is smaller, it is one window.
        num_classes: width of the head's output.
        gelu: `tanh`, or `erf` for weights that were trained with it (timm, the original).

    Raises:
        ValueError: numbers that do not go together, in one line that names the key.
    """

    width: int = 96
    window: int = 7
    num_classes: int = 1000
    gelu: str = "tanh"

    def __post_init__(self):
        for stage, heads in enumerate(self.heads):
            if self.width_of(stage) % heads:
                raise ValueError(
                    f"model.heads: {heads} does not divide the width {self.width_of(stage)} of stage {stage + 1}"
                )
        self.stages()

    def width_of(self, stage: int) -> int:
        """Of the stage's tokens."""
        return self.width * 2**stage

    def grid(self, stage: int = 0, image_size: int | None = None) -> int:
        """Tokens along a side."""
        size, cut = image_size or self.image_size, self.patch * 2**stage
        if size % cut:
            raise ValueError(
                f"image_size: {size} is not a multiple of {self.patch * 2 ** (len(self.depths) - 1)}, "
                f"which patches of {self.patch} and {len(self.depths)} stages need"
            )
        return size // cut

    def windows(self, stage: int) -> int:
        """Windows along a side: the same at every size."""
        grid = self.grid(stage)
        if grid <= self.window:
            return 1
        if grid % self.window:
            raise ValueError(
                f"model.window: {self.window} does not divide the {grid} tokens along a side of stage {stage + 1}"
            )
        return grid // self.window

    def table_window(self, stage: int) -> int:
        """Side of the windows that a stage's table of biases is for, tokens."""
        return self.grid(stage) // self.windows(stage)

    def window_of(self, stage: int, image_size: int | None = None) -> int:
        """Side of a stage's windows, tokens."""
        grid, count = self.grid(stage, image_size), self.windows(stage)
        if grid % count or grid // count > self.table_window(stage):
            raise ValueError(
                f"image_size: at {image_size} stage {stage + 1} has {grid} tokens along a side, which {count} windows "
                f"of at most {self.table_window(stage)} do not make; use a smaller multiple of "
                f"{self.image_size // self.window}"
            )
        return grid // count

    def stages(self, image_size: int | None = None) -> tuple[Stage, ...]:
        """In order."""
        result = []
        for s, depth in enumerate(self.depths):
            grid, window = self.grid(s, image_size), self.window_of(s, image_size)
            sizes = windows.cell_sizes(grid, window)
            cells = Cells(sizes, 4 if windows.shift_of(grid, window) else 1)
            order = tuple(windows.order(grid, window).tolist())
            layout = Layout(0, grid * grid)
            gives = ("received", "entered", "tokens")
            result.append(Stage(depth, self.width_of(s), layout, cells, order, True, gives, f"stage {s + 1}"))
        return tuple(result)

    def network(self, fused_kernels: bool = False, dtype: Any = None) -> Any:
        """The cell, with newly drawn weights; see `models.swin.Swin`."""
        from skipvit.models.swin import Swin

        return Swin(self, fused_kernels, dtype)

    def graph(self, builder: Any) -> Any:
        """What writes the network's parts into an ONNX graph; see `models.swin_onnx.SwinGraph`."""
        from skipvit.models.swin_onnx import SwinGraph

        return SwinGraph(self, builder)

    # Weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight, by name, in the order of the network's parameters."""
        shapes = with_bias("patch_embed.proj", self.width, 3 * self.patch**2) | with_bias(
            "patch_embed.norm", self.width
        )
        for i in range(self.depth):
            stage = self.stage_of_block(i)
            block, d = f"blocks.{i}.", self.width_of(stage)
            shapes |= with_bias(block + "norm1", d)
            rows = (2 * self.table_window(stage) - 1) ** 2
            shapes[block + "attn.relative_position_bias_table"] = (rows, self.heads[stage])
            for part in ("q", "k", "v", "proj"):
                shapes |= with_bias(f"{block}attn.{part}", d, d)
            shapes |= with_bias(block + "norm2", d)
            shapes |= with_bias(block + "mlp.fc1", 4 * d, d) | with_bias(block + "mlp.fc2", d, 4 * d)
        for s in range(len(self.depths) - 1):
            d = self.width_of(s)
            shapes |= with_bias(f"downsample.{s}.norm", 4 * d) | {f"downsample.{s}.reduction.weight": (2 * d, 4 * d)}
        last = self.width_of(len(self.depths) - 1)
        return shapes | with_bias("norm", last) | with_bias("head", self.num_classes, last)

    def timm_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same under timm's names, see `models.swin_timm`."""
        return swin_timm.timm_shapes(self.shapes(), self.depths)

    def from_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in timm's layout in ours."""
        return swin_timm.from_timm(params, self.depths)

    def to_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in our layout in timm's."""
        return swin_timm.to_timm(params, self.depths)

    family = "a Swin"
    published = "a timm swin_*"
    timm_head = ("head.fc.weight", "head.fc.bias")

    def elsewhere(self) -> tuple[str, ...]:
        """Lines of Python that make this network of timm's class."""
        lines = (
            "from timm.models.swin_transformer import SwinTransformer",
            f"network = SwinTransformer(img_size={self.image_size}, patch_size={self.patch}, "
            f"window_size={self.window}, num_classes={self.num_classes}, embed_dim={self.width}, "
            f"depths={self.depths}, num_heads={self.heads})",
        )
        return lines if self.gelu == "erf" else (*lines, "# It has the erf GELU, these weights the tanh one.")

    def positions(self) -> dict[str, int]:
        """Weights that belong to places of a square grid: none."""
        return {}

    def described(self) -> str:
        """Its numbers, for people."""
        depths = ", ".join(map(str, self.depths))
        return f"depths {depths}, width {self.width}, patch {self.patch}, window {self.window}, image {self.image_size}"

    def like(self, shapes: Mapping[str, tuple[int, ...]]) -> SwinSpec:
        """The same of another size, as far as shapes of weights, in either layout, tell it; of the images they do not:
        as here."""
        found = swin_timm.numbers_of(shapes, self)
        try:
            return replace(self, **found)
        except ValueError:  # images that its stages cannot cut
            patch, window = found.get("patch", self.patch), found.get("window", self.window)
            size = patch * window * 2 ** (len(found.get("depths", self.depths)) - 1)
            return replace(self, **found | {"image_size": size})

    def decays(self, name: str, ndim: int) -> bool:
        """Whether weight decay applies: matrices yes; biases, norms and tables of biases no."""
        return ndim == 2 and not name.endswith("relative_position_bias_table")

    # Costs

    def products(self, step: Step) -> dict[str, int]:
        """Multiply-accumulates of a step for one image, by part; only matrix products count.

        A block on N tokens in windows of W: q, k, v and output projection 4 N d^2, attention 2 N W d, MLP 8 N d^2;
        along a route also the biases of the W of w^2 that stay, W w^2 (w^2 + W) for each window and head.
        """
        stage = self.stage_of(step)
        n, d = step.before.length, self.width_of(stage)
        if step.kind == "embed":
            return {"patch embedding": step.before.patches * 3 * self.patch**2 * d}
        if step.kind == "attend":
            inside, count = n // self.windows(stage) ** 2, self.windows(stage) ** 2
            parts = {"attention projections": 4 * n * d**2, "attention": 2 * n * inside * d}
            whole = step.before.places // count
            if inside != whole:
                parts["biases of kept tokens"] = count * self.heads[stage] * inside * whole * (whole + inside)
            return parts
        if step.kind == "feed":
            return {"MLP": 8 * n * d**2}
        if step.kind == "downsample":
            return {"downsampling": step.after.length * 4 * d // 2 * d}
        return {"head": d * self.num_classes} if step.kind == "head" else {}

    def read_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of what a scorer reads beyond what a block makes anyway: the attention received."""
        n, stage = step.before.patches, self.routed_stage
        return n * n // self.windows(stage) ** 2 * self.width_of(stage) if "received" in reads else 0

    def signal_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of the projections that a scorer reads, of all tokens after a step: queries and keys."""
        return 2 * step.after.length * self.width_of(self.routed_stage) ** 2 if "received" in reads else 0

    def activations(self, step: Step, compute: int) -> int:
        """Bytes that a step keeps of an image for its backward: as `vit_spec.ViTSpec.activations`, of windows.

        Args:
            compute: bytes of a number of the matrix products, 4 or 2.
        """
        stage = self.stage_of(step)
        tokens = step.before.length * self.width_of(stage)
        if step.kind == "attend":
            maps = self.heads[stage] * step.before.length**2 // self.windows(stage) ** 2
            return FLOAT32 * (tokens + maps) + compute * 5 * tokens + (compute * maps if compute != FLOAT32 else 0)
        if step.kind == "feed":
            return FLOAT32 * tokens + compute * 9 * tokens
        if step.kind == "downsample":
            merged = step.before.length * self.width_of(stage - 1)
            return (FLOAT32 + compute) * merged
        return 0


# The original's, which timm's names are of.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 96, "depth": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"width": 96, "depth": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"width": 128, "depth": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}


def _register(name: str, defaults: dict[str, Any]) -> None:
    @register_model(name)
    def make(
        width: int = defaults["width"],
        depth: Numbers = defaults["depth"],
        heads: Numbers = defaults["heads"],
        patch: int = 4,
        window: int = defaults["window"],
        image_size: int = defaults["image_size"],
        num_classes: int = 1000,
        drop_path: float = 0.0,
        gelu: str = "tanh",
    ) -> SwinSpec:
        one_number("width", width)
        depths = tuple(depth) if isinstance(depth, list | tuple) else (depth,)
        return SwinSpec(
            depths, one_a_stage("heads", heads, len(depths)), patch, image_size, drop_path, width, window, num_classes,
            gelu,
        )  # fmt: skip


for _size, _numbers in SIZES.items():
    _register(f"swin_{_size}_patch4_window7_224", _numbers | {"window": 7, "image_size": 224})
_register("swin_base_patch4_window12_384", SIZES["base"] | {"window": 12, "image_size": 384})
