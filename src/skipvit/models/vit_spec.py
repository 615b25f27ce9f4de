"""What a Vision Transformer (arXiv 2010.11929) is, as numbers: shapes, names of its weights, costs. Without
MindSpore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from skipvit.models import vit_timm
from skipvit.models.registry import one_number, register_model
from skipvit.routing.layout import Layout, Stage
from skipvit.routing.program import Step

FLOAT32 = 4  # bytes
EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")


@dataclass(frozen=True)
class ViTSpec:
    """A classifier: patch embedding, [CLS], blocks of attention and an MLP four times as wide, a norm, a head.

    Attributes:
        width, depth, heads: of the tokens, blocks, attention.
        patch: side of a patch, pixels; divides image_size.
        image_size: side of the square images, pixels, that the position embedding is for.
        num_classes: width of the head's output.
        drop_path: drop rate of the last block, linear from 0 at the first.
        gelu: `tanh`, or `erf` for weights that were trained with it (timm, DeiT).

    Raises:
        ValueError: numbers that do not go together, in one line that names the key.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    image_size: int = 224
    num_classes: int = 1000
    drop_path: float = 0.0
    gelu: str = "tanh"
    prefix: int = 1
    routed_stage: ClassVar[int] = 0

    def __post_init__(self):
        self.layout()
        if self.width % self.heads:
            raise ValueError(f"model.heads: {self.heads} does not divide the width {self.width}")

    def grid(self, image_size: int | None = None) -> int:
        """Patches along a side."""
        size = image_size or self.image_size
        if size % self.patch:
            raise ValueError(f"model.patch: {self.patch} does not divide image_size {size}")
        return size // self.patch

    def layout(self, image_size: int | None = None) -> Layout:
        """Of the tokens that enter the first block."""
        return Layout(self.prefix, self.grid(image_size) ** 2)

    def stages(self, image_size: int | None = None) -> tuple[Stage, ...]:
        """One."""
        return (Stage(self.depth, self.width, self.layout(image_size)),)

    def at_size(self, image_size: int) -> ViTSpec:
        """The same for images of another size."""
        return replace(self, image_size=image_size)

    def network(self, fused_kernels: bool = False, dtype: Any = None) -> Any:
        """The cell, with newly drawn weights; see `models.vit.ViT`."""
        from skipvit.models.vit import ViT

        return ViT(self, fused_kernels, dtype)

    def graph(self, builder: Any) -> Any:
        """What writes the network's parts into an ONNX graph; see `models.vit_onnx.ViTGraph`."""
        from skipvit.models.vit_onnx import ViTGraph

        return ViTGraph(self, builder)

    # Weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight, by name, in the order of the network's parameters."""
        d = self.width
        shapes = {"cls_token": (1, 1, d)} if self.prefix else {}
        shapes |= {"pos_embed": (1, self.prefix + self.grid() ** 2, d)}
        shapes |= _with_bias("patch_embed.proj", d, 3 * self.patch**2)
        for i in range(self.depth):
            block = f"blocks.{i}."
            shapes |= _with_bias(block + "norm1", d)
            for part in ("q", "k", "v", "proj"):
                shapes |= _with_bias(f"{block}attn.{part}", d, d)
            shapes |= _with_bias(block + "norm2", d)
            shapes |= _with_bias(block + "mlp.fc1", 4 * d, d) | _with_bias(block + "mlp.fc2", d, 4 * d)
        return shapes | _with_bias("norm", d) | _with_bias("head", self.num_classes, d)

    def timm_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same under timm's names, see `models.vit_timm`."""
        return vit_timm.timm_shapes(self.shapes())

    def from_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in timm's layout in ours."""
        return vit_timm.from_timm(params)

    def to_timm(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in our layout in timm's."""
        return vit_timm.to_timm(params)

    family = "a ViT"
    published = "a timm vit_* or deit_*, not distilled, without registers"
    timm_head = ("head.weight", "head.bias")

    def elsewhere(self) -> tuple[str, ...]:
        """Lines of Python that make this network of timm's class."""
        act = "" if self.gelu == "erf" else ', act_layer="gelu_tanh"'
        return (
            "from timm.models.vision_transformer import VisionTransformer",
            f"network = VisionTransformer(img_size={self.image_size}, patch_size={self.patch}, "
            f"num_classes={self.num_classes}, embed_dim={self.width}, depth={self.depth}, num_heads={self.heads}{act})",
        )

    def positions(self) -> dict[str, int]:
        """Weights that belong to places of a square grid, and how many of their rows in front do not."""
        return {"pos_embed": self.prefix}

    def described(self) -> str:
        """Its numbers, for people."""
        return f"depth {self.depth}, width {self.width}, patch {self.patch}, image {self.image_size}"

    def like(self, shapes: Mapping[str, tuple[int, ...]]) -> ViTSpec:
        """The same of another size, as far as shapes of weights, in either layout, tell it; of heads they do not: 1."""
        return replace(self, heads=1, **vit_timm.numbers_of(shapes, self.prefix))

    def parameters(self) -> int:
        """How many numbers the weights are."""
        total = 0
        for shape in self.shapes().values():
            count = 1
            for side in shape:
                count *= side
            total += count
        return total

    def layer(self, name: str) -> int:
        """The layer of a weight for layer-wise learning rates, as BEiT (arXiv 2106.08254) counts: embeddings 0, block i
        i + 1, what follows depth + 1."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(EMBEDDINGS) else self.depth + 1

    def decays(self, name: str, ndim: int) -> bool:
        """Whether weight decay applies: matrices yes; biases, norms, [CLS] and the position embedding no."""
        return ndim == 2

    # Costs

    def products(self, step: Step) -> dict[str, int]:
        """Multiply-accumulates of a step for one image, by part; only matrix products count.

        A block on N tokens: q, k, v and output projection 4 N d^2, attention 2 N^2 d, MLP 8 N d^2.
        """
        n, d = step.before.length, self.width
        if step.kind == "embed":
            return {"patch embedding": step.before.patches * 3 * self.patch**2 * d}
        if step.kind == "attend":
            return {"attention projections": 4 * n * d**2, "attention": 2 * n**2 * d}
        if step.kind == "feed":
            return {"MLP": 8 * n * d**2}
        return {"head": d * self.num_classes} if step.kind == "head" else {}

    def read_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of what a scorer reads beyond what a block makes anyway: the [CLS] row, the attention
        received."""
        row = step.before.length if "cls_row" in reads else 0
        return (row + (step.before.patches**2 if "received" in reads else 0)) * self.width

    def signal_products(self, step: Step, reads: tuple[str, ...]) -> int:
        """Multiply-accumulates of the projections that a scorer reads, of all tokens after a step: keys, and q and v if
        it does."""
        projections = 1 + ("q" in reads or "received" in reads) + ("v" in reads)
        return step.after.length * self.width**2 * projections

    def activations(self, step: Step, compute: int) -> int:
        """Bytes that a step keeps of an image for its backward.

        Of N tokens of width d: the standardised input of each norm in float32 (N d each); and of the compute type the
        inputs of q, k and v, these three, the values' mean (5 N d), the MLP's input, its hidden layer before and after
        GELU (9 N d).
        Attention after softmax (heads x N^2) in float32, and once more where the compute type is another. The count is
        that of arXiv 2205.05198 for a layer without dropout.

        Args:
            compute: bytes of a number of the matrix products, 4 or 2.
        """
        tokens = step.before.length * self.width
        if step.kind == "attend":
            maps = self.heads * step.before.length**2
            return FLOAT32 * (tokens + maps) + compute * 5 * tokens + (compute * maps if compute != FLOAT32 else 0)
        return FLOAT32 * tokens + compute * 9 * tokens if step.kind == "feed" else 0


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


# Widths, depths and heads as in DeiT (arXiv 2012.12877) and timm, which the names are of.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


SHAPES = {
    (16, 224): ("tiny", "small", "base", "large"),
    (16, 384): ("tiny", "small", "base", "large"),
    (32, 224): ("small", "base", "large"),
    (32, 384): ("small", "base", "large"),
    (8, 224): ("small", "base"),
}


def _register(name: str, size: str, patch: int, image_size: int) -> None:
    defaults = dict(zip(("width", "depth", "heads"), SIZES[size]))

    @register_model(name)
    def make(
        width: int = defaults["width"],
        depth: int = defaults["depth"],
        heads: int = defaults["heads"],
        patch: int = patch,
        image_size: int = image_size,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        gelu: str = "tanh",
    ) -> ViTSpec:
        for key, value in {"width": width, "depth": depth, "heads": heads}.items():
            one_number(key, value)
        return ViTSpec(width, depth, heads, patch, image_size, num_classes, drop_path, gelu)


for (_patch, _image_size), _sizes in SHAPES.items():
    for _size in _sizes:
        _register(f"vit_{_size}_patch{_patch}_{_image_size}", _size, _patch, _image_size)
