"""The Vision Transformer (arXiv 2010.11929) with routes, top-down: parts, block, network.

Parameter names are timm's (`blocks.0.attn.proj.weight`, ...) except that q, k and v are three projections and the
patch projection is a matrix: both are the same arithmetic, laid out for speed (`skipvit convert` translates).
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from skipvit.models.kernels import NORM_EPSILON, AddBias, Attend, AttendByHand, NormalizeRows, TanhGelu
from skipvit.models.sizes import Size
from skipvit.routing.routing import Formulation, Leading, Route, Router, resolve
from skipvit.routing.scorers import cls_row

# Channel statistics of ImageNet on the 0..255 scale: the field's normalisation for uint8 images.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Dense(nn.Cell):
    """y = x W^T + b over the last axis: (B, N, in) -> (B, N, out) or (B, in) -> (B, out), of the compute dtype.

    Args:
        fused: MindSpore's gradient of the bias; else written out.
        dtype: of the product; the weights themselves are float32.
        init: of the weight. Xavier's scale follows the width, so that narrow networks learn from the start too.
    """

    def __init__(self, inputs: int, outputs: int, fused: bool, dtype: ms.Type, init="XavierUniform"):
        super().__init__()
        self.inputs, self.outputs, self.dtype = inputs, outputs, dtype
        self.weight = Parameter(initializer(init, (outputs, inputs)), name="weight")
        self.bias = Parameter(initializer("zeros", (outputs,)), name="bias")
        self.add_bias = ops.BiasAdd() if fused else AddBias()

    def construct(self, x):
        rows = ops.Cast()(ops.Reshape()(x, (-1, self.inputs)), self.dtype)
        y = ops.MatMul(transpose_b=True)(rows, ops.Cast()(self.weight, self.dtype))
        return ops.Reshape()(self.add_bias(y, ops.Cast()(self.bias, self.dtype)), x.shape[:-1] + (self.outputs,))


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis in float32, epsilon 1e-6 as in timm's ViT."""

    def __init__(self, width: int, fused: bool):
        super().__init__()
        self.width, self.fused = width, fused
        self.weight = Parameter(initializer("ones", (width,)), name="weight")
        self.bias = Parameter(initializer("zeros", (width,)), name="bias")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=NORM_EPSILON)
        self.normalize_rows = NormalizeRows()

    def construct(self, x):
        if self.fused:
            return self.norm(x, self.weight, self.bias)[0]
        y, _, _ = self.normalize_rows(ops.Reshape()(x, (-1, self.width)), self.weight, self.bias)
        return ops.Reshape()(y, x.shape)


class PatchEmbed(nn.Cell):
    """Cut images into patches and project each: (B, H, W, 3) -> (B, tokens, D).

    A reshape and a matrix product: the same arithmetic as a convolution whose stride is its kernel.
    uint8 images are normalised with the ImageNet mean and deviation here, in the graph; float images are taken as normalised.
    """

    def __init__(self, image_size: int, patch: int, width: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.grid, self.patch = image_size // patch, patch
        self.proj = Dense(patch * patch * 3, width, fused, dtype, Normal((patch * patch * 3) ** -0.5))
        self.mean = Tensor(np.array(PIXEL_MEAN * patch * patch, np.float32))
        self.inverse_std = Tensor(1 / np.array(PIXEL_STD * patch * patch, np.float32))

    def construct(self, images):
        batch = images.shape[0]
        x = ops.Reshape()(images, (batch, self.grid, self.patch, self.grid, self.patch * 3))
        x = ops.Transpose()(x, (0, 1, 3, 2, 4))  # (B, rows, columns, patch, patch * 3)
        x = ops.Reshape()(x, (batch, self.grid * self.grid, self.patch * self.patch * 3))
        if images.dtype == ms.uint8:
            x = (ops.Cast()(x, ms.float32) - self.mean) * self.inverse_std
        return self.proj(x)


class Attention(nn.Cell):
    """Multi-head self-attention: (B, N, D) -> (B, N, D), and its q, k, v (B, heads, N, d) for the scorers."""

    def __init__(self, width: int, heads: int, fused: bool, dtype: ms.Type):
        super().__init__()
        self.width, self.heads = width, heads
        self.attend = Attend() if fused else AttendByHand()
        self.head_width = width // heads
        # Three projections, not a fused one: cutting a fused product apart costs a slow strided slice.
        self.q = Dense(width, width, fused, dtype)
        self.k = Dense(width, width, fused, dtype)
        self.v = Dense(width, width, fused, dtype)
        self.proj = Dense(width, width, fused, dtype)

    def split(self, x):
        x = ops.Reshape()(x, (x.shape[0], x.shape[1], self.heads, self.head_width))
        return ops.Transpose()(x, (0, 2, 1, 3))

    def keys_values(self, x):
        return self.split(self.k(x)), self.split(self.v(x))

    def construct(self, x):
        q = self.split(self.q(x))
        k, v = self.keys_values(x)
        y, _ = self.attend(q * (self.head_width**-0.5), k, v)
        return self.proj(ops.Reshape()(ops.Transpose()(y, (0, 2, 1, 3)), x.shape)), q, k, v


class Gelu(nn.Cell):
    """GELU: its tanh approximation (written out, unless fused: the packaged kernel is slow on CPU), or exact erf."""

    def __init__(self, exact: bool, fused: bool):
        super().__init__()
        self.exact, self.fused = exact, fused
        self.by_tanh = TanhGelu()

    def construct(self, x):
        if self.fused and not self.exact:
            return ops.GeLU()(x)
        x = ops.Cast()(x, ms.float32)
        if self.exact:
            return 0.5 * x * (1.0 + ops.Erf()(x * 0.7071067811865476))
        y, _ = self.by_tanh(x)
        return y


class Mlp(nn.Cell):
    """Two-layer perceptron, four times as wide inside: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, exact_gelu: bool, fused: bool, dtype: ms.Type):
        super().__init__()
        self.fc1 = Dense(width, 4 * width, fused, dtype)
        self.act = Gelu(exact_gelu, fused)
        self.fc2 = Dense(4 * width, width, fused, dtype)

    def construct(self, x):
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Cell):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per sample, scales the rest by 1 / (1 - rate)."""

    def __init__(self, rate: float, noise_column: int):
        super().__init__()
        self.rate, self.column = rate, noise_column

    def construct(self, x, noise):
        if not self.training or self.rate == 0:
            return x
        batch = x.shape[0]
        draw = ops.Slice()(noise, (0, self.column), (batch, 1))
        keep = ops.Cast()(ops.GreaterEqual()(draw, self.rate), x.dtype) / (1.0 - self.rate)
        return x * ops.Reshape()(keep, (batch, 1, 1))


class Block(nn.Cell):
    """Pre-norm transformer block: (B, N, D) -> (B, N, D), and the attention's q, k, v. The residual stream is float32."""

    def __init__(
        self, width: int, heads: int, exact_gelu: bool, fused: bool, drop_path: float, noise_column: int, dtype: ms.Type
    ):
        super().__init__()
        self.norm1 = LayerNorm(width, fused)
        self.attn = Attention(width, heads, fused, dtype)
        self.drop_path1 = DropPath(drop_path, noise_column)
        self.norm2 = LayerNorm(width, fused)
        self.mlp = Mlp(width, exact_gelu, fused, dtype)
        self.drop_path2 = DropPath(drop_path, noise_column + 1)

    def construct(self, x, noise):
        x, q, k, v = self.attend(x, noise)
        return self.feed(x, noise), q, k, v

    def attend(self, x, noise):
        """The first half, in which tokens meet; and q, k, v."""
        y, q, k, v = self.attn(self.norm1(x))
        return x + self.drop_path1(ops.Cast()(y, x.dtype), noise), q, k, v

    def feed(self, x, noise):
        """The second half, each token on its own."""
        return x + self.drop_path2(ops.Cast()(self.mlp(self.norm2(x)), x.dtype), noise)

    def keys_values(self, x):
        """k, v (B, heads, N, d) that this block would compute from the tokens x (B, N, D)."""
        return self.attn.keys_values(self.norm1(x))


class ViT(nn.Cell):
    """Vision Transformer whose forward runs dense or along its routes, over the same parameters.

    All randomness comes in from outside as `noise`, so a step can be repeated exactly: uniform numbers in [0, 1), columns
    2i and 2i + 1 for the drop path of block i, then those of the routes' scorers (one a patch token for `random`).

    Initial weights are those of the original ViT's code (arXiv 2010.11929): Xavier uniform, a zero head, biases and [CLS].

    Args:
        size: width, depth and heads.
        image_size, patch: side of the square image and of a patch, pixels; patch divides image_size.
        num_classes: width of the head's output.
        routes: see `routing.Route`.
        formulation: `gather` or `matmul`, see `routing.Router`.
        drop_path: drop rate of the last block, linear from 0 at the first.
        exact_gelu: erf GELU, for weights that were trained with it; else the tanh form.
        fused_kernels: MindSpore's layer norm and GELU kernels and its gradients of softmax and bias, right for Ascend; else the
            same functions written out, which is faster on CPU.
        dtype: of the matrix products, float32 or float16; parameters, residual stream, layer norm and softmax are float32.

    Raises:
        ValueError: a shape or a route that cannot work, in one line.
    """

    def __init__(
        self,
        size: Size,
        image_size: int,
        patch: int,
        num_classes: int,
        routes: list[Route] | tuple[Route, ...] = (),
        formulation: Formulation = "gather",
        drop_path: float = 0.0,
        exact_gelu: bool = False,
        fused_kernels: bool = False,
        dtype: ms.Type = ms.float32,
    ):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"model.patch: {patch} does not divide image_size {image_size}")
        if size.width % size.heads:
            raise ValueError(f"model.heads: {size.heads} does not divide width {size.width}")
        self.depth, self.width = size.depth, size.width
        self.tokens = (image_size // patch) ** 2
        self.patch_embed = PatchEmbed(image_size, patch, size.width, fused_kernels, dtype)
        self.cls_token = Parameter(initializer("zeros", (1, 1, size.width)), name="cls_token")
        self.pos_embed = Parameter(
            initializer(Normal(size.width**-0.5), (1, 1 + self.tokens, size.width)), name="pos_embed"
        )
        rates = np.linspace(0, drop_path, size.depth)
        self.blocks = nn.CellList(
            [
                Block(size.width, size.heads, exact_gelu, fused_kernels, float(rates[i]), 2 * i, dtype)
                for i in range(size.depth)
            ]
        )
        self.norm = LayerNorm(size.width, fused_kernels)
        self.cls = Leading(1)
        self.head = Dense(size.width, num_classes, fused_kernels, dtype, init="zeros")
        self.spans = resolve(routes, size.depth, self.tokens)
        self.routers, self.noise_width = _routers(self.spans, formulation, 2 * size.depth)
        self.all_positions = Tensor(np.arange(self.tokens, dtype=np.int32)[None])

    def construct(self, images, noise, routed=True):
        """Logits (B, classes) of images (B, H, W, 3) uint8 or float, given noise float32 (B, noise_width)."""
        return self.trace(images, noise, routed)[0]

    def trace(self, images, noise, routed):
        """Everything that `activation_names` names, logits first. What a graph does not use is not computed."""
        x = self.embed(images)
        outputs, selections = (x,), ()
        q, k, v, at = x, x, x, 0
        positions = ops.BroadcastTo((images.shape[0], self.tokens))(self.all_positions)
        if routed:
            for r in range(len(self.routers)):
                router = self.routers[r]
                x, q, k, v, outputs = self.run(x, q, k, v, noise, at, router.start, outputs)
                if router.parts_block:
                    x, q, k, v = self.blocks[router.start].attend(x, noise)
                ranking, weights = router.score(q, k, v, noise)
                mask = router.mask(ranking)
                kept_positions = router.compose(positions, mask)
                selections = selections + (kept_positions, ranking)
                inside = router.enter(x, mask, weights)
                if router.parts_block:
                    inside = self.blocks[router.start].feed(inside, noise)
                    outputs = outputs + (inside,)
                before, q, k, v, outputs = self.run(
                    inside, q, k, v, noise, router.first_block, router.last_block, outputs
                )
                inside, q, k, v, outputs = self.run(before, q, k, v, noise, router.last_block, router.end, outputs)
                if router.restores:
                    if self.scores_at(r + 1, router.end) and router.last_block < router.end:
                        # The next scorer ranks every token, so its keys must cover those that bypassed this block too;
                        # its query, [CLS], is the same.
                        k, v = self.blocks[router.end - 1].keys_values(router.leave(before, x, mask))
                    x = router.leave(inside, x, mask)
                else:
                    x, positions = inside, kept_positions
                at = router.end
        x, q, k, v, outputs = self.run(x, q, k, v, noise, at, self.depth, outputs)
        y = self.norm(x)
        logits = self.head(ops.Reshape()(self.cls(y), (-1, self.width)))
        attention = ops.ReduceMean()(cls_row(q, k), 1)
        return (logits,) + outputs + (y, attention) + selections

    def embed(self, images):
        """[CLS] and patch tokens with their position embedding: (B, 1 + tokens, D)."""
        patches = ops.Cast()(self.patch_embed(images), ms.float32)
        cls = ops.BroadcastTo((patches.shape[0], 1, self.width))(self.cls_token)
        return ops.Concat(1)((cls, patches)) + self.pos_embed

    def run(self, x, q, k, v, noise, start, end, outputs):
        """Blocks [start, end); q, k, v of the last one, or those given if there is none."""
        for i in range(start, end):
            x, q, k, v = self.blocks[i](x, noise)
            outputs = outputs + (x,)
        return x, q, k, v, outputs

    def scores_at(self, r, block):
        """Whether route r exists, starts at `block` and reads the attention of the block before."""
        return r < len(self.routers) and self.routers[r].start == block and self.routers[r].reads_before


def _routers(spans, formulation: Formulation, noise_width: int) -> tuple[nn.CellList, int]:
    """A router a span, and the width of the noise with the columns that they read added."""
    routers = []
    for span in spans:
        routers.append(Router(span, formulation, noise_width))
        noise_width += routers[-1].noise_columns
    return nn.CellList(routers), noise_width


def activation_names(vit: ViT, routed: bool) -> tuple[str, ...]:
    """Names of what `ViT.trace` returns, in its order.

    `logits`, `embed`, `blocks.N` (outputs; inside a route, of the kept tokens), `norm`, `cls_attention` (what [CLS] attends to
    in the last block, mean over heads: float32 (B, sequence)), and for each route `routes.N.kept` (original positions, int32
    (B, kept)) and `routes.N.ranking` (float32 (B, tokens)).
    """
    names = ["logits", "embed", *(f"blocks.{i}" for i in range(vit.depth)), "norm", "cls_attention"]
    if routed:
        names += [f"routes.{r}.{what}" for r in range(len(vit.spans)) for what in ("kept", "ranking")]
    return tuple(names)


class Activations(nn.Cell):
    """Named intermediate activations of a network, for tests, images and analysis.

    >>> kept = Activations(vit, ["routes.0.kept"]).by_name(images, noise)["routes.0.kept"]

    Raises:
        ValueError: a name that is not in `activation_names(vit, routed)`.
    """

    def __init__(self, vit: ViT, names: list[str] | tuple[str, ...], routed: bool = True):
        super().__init__(auto_prefix=False)
        known = activation_names(vit, routed)
        for name in names:
            if name not in known:
                raise ValueError(f"activation {name!r} does not exist; there are {', '.join(known)}")
        self.network, self.routed, self.names = vit, routed, tuple(names)
        self.indices = tuple(known.index(name) for name in names)

    def construct(self, images, noise):
        everything = self.network.trace(images, noise, self.routed)
        chosen = ()
        for i in self.indices:
            chosen = chosen + (everything[i],)
        return chosen

    def by_name(self, images: Tensor, noise: Tensor) -> dict[str, np.ndarray]:
        """The activations as NumPy arrays under their names."""
        return {name: value.asnumpy() for name, value in zip(self.names, self(images, noise))}
