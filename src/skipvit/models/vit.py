"""The Vision Transformer (arXiv 2010.11929), top-down. Along routes it is walked by `routing.forward.Forward`.

Parameter names are timm's (`blocks.0.attn.proj.weight`, ...) except that q, k and v are three projections and the patch
projection is a matrix: both are the same arithmetic, laid out for speed (`skipvit convert` translates).
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from skipvit.models.layers import Attention, Block, Dense, LayerNorm, Mlp, PatchEmbed
from skipvit.models.positions import resize_weights
from skipvit.models.vit_spec import ViTSpec
from skipvit.routing.select import Leading


class ViT(nn.Cell):
    """A Vision Transformer.

    Initial weights: Xavier uniform; zeros for head, biases and [CLS]; position embedding with deviation width^-0.5.

    Args:
        spec: its numbers.
        fused_kernels: MindSpore's kernels of layer norm and GELU and its gradients of softmax and bias, right for
            Ascend; else the same functions written out, which is faster on CPU.
        dtype: of the matrix products, float32 (default) or float16; parameters, residual stream, layer norm and softmax
            are float32.
    """

    def __init__(self, spec: ViTSpec, fused_kernels: bool = False, dtype: Any = None):
        super().__init__()
        fused, dtype, width = fused_kernels, dtype or ms.float32, spec.width
        self.spec, self.width, self.patch, self.grid = spec, width, spec.patch, spec.grid()
        self.patch_embed = PatchEmbed(spec.patch, width, fused, dtype)
        if spec.prefix:
            self.cls_token = Parameter(initializer("zeros", (1, 1, width)), name="cls_token")
        positions = (1, spec.layout().length, width)
        self.pos_embed = Parameter(initializer(Normal(width**-0.5), positions), name="pos_embed")
        rates = np.linspace(0, spec.drop_path, spec.depth)
        self.blocks = nn.CellList(
            [
                Block(
                    width,
                    Attention(width, spec.heads, fused, dtype),
                    Mlp(width, spec.gelu == "erf", fused, dtype),
                    fused,
                    float(rates[i]),
                    2 * i,
                )
                for i in range(spec.depth)
            ]
        )
        self.norm = LayerNorm(width, fused)
        self.cls = Leading(1)
        self.head = Dense(width, spec.num_classes, fused, dtype, init="zeros")

    def construct(self, images, noise):
        """The dense forward: logits (B, classes) of images (B, H, W, 3), uint8 or float.

        Args:
            noise: float32 (B, at least 2 depth), uniform in [0, 1): columns 2 i and 2 i + 1 are for the drop path of
                block i.
        """
        x = self.embed(images)
        for block in self.blocks:
            x = block(x, noise)
        return self.classify(self.norm(x))

    def embed(self, images):
        """[CLS] and patch tokens with their position embedding: (B, 1 + patches, D)."""
        patches = ops.Cast()(self.patch_embed(images), ms.float32)
        cls = ops.BroadcastTo((patches.shape[0], 1, self.width))(self.cls_token)
        return ops.Concat(1)((cls, patches)) + self.positions(images.shape[1] // self.patch, 1)

    def positions(self, grid, prefix):
        """The position embedding for a grid of patches, (1, prefix + grid * grid, D): resized where it is not the
        network's own, so that one set of weights serves all image sizes."""
        if grid == self.grid:
            return self.pos_embed
        tokens = self.pos_embed.shape[1]
        patches = ops.Slice()(self.pos_embed, (0, prefix, 0), (1, tokens - prefix, self.width))
        patches = ops.Reshape()(patches, (tokens - prefix, self.width))
        patches = ops.MatMul()(resize_weights(self.grid, grid), patches)
        patches = ops.Reshape()(patches, (1, grid * grid, self.width))
        if prefix == 0:
            return patches
        return ops.Concat(1)((ops.Slice()(self.pos_embed, (0, 0, 0), (1, prefix, self.width)), patches))

    def locate(self, select, mask):
        """What blocks have to know of where the tokens of a route are: nothing.

        Args:
            select: the route's, see `routing.select.Selector`; mask: of its tokens, float32 0/1 (B, N).
        """
        return None

    def classify(self, y):
        """Logits (B, classes) of the last norm's tokens (B, N, D): the head reads [CLS]."""
        return self.head(ops.Reshape()(self.cls(y), (-1, self.width)))
