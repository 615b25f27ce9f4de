"""The textbook dense ViT from MindSpore's packaged layers: what the benchmark compares with, and a second formulation for tests.

Strided convolution, one fused qkv projection that is cut apart, nn.LayerNorm, nn.GELU with erf. Parameter names are timm's
(nn.LayerNorm calls its weight and bias gamma and beta).
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from skipvit.models.sizes import Size
from skipvit.models.vit import PIXEL_MEAN, PIXEL_STD


class PlainAttention(nn.Cell):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Dense(width, 3 * width)
        self.proj = nn.Dense(width, width)

    def construct(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = ops.Softmax(-1)(ops.BatchMatMul(transpose_b=True)(q, k) * self.head_width**-0.5)
        return self.proj(ops.BatchMatMul()(attention, v).transpose(0, 2, 1, 3).reshape(batch, tokens, width))


class PlainMlp(nn.Cell):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Dense(width, 4 * width),
            nn.GELU(approximate=False),
            nn.Dense(4 * width, width),
        )

    def construct(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PlainBlock(nn.Cell):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm((width,), epsilon=1e-6), PlainAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm((width,), epsilon=1e-6), PlainMlp(width)

    def construct(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainPatchEmbed(nn.Cell):
    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch, pad_mode="valid", has_bias=True)

    def construct(self, x):
        x = self.proj(x)
        return x.reshape(x.shape[0], x.shape[1], -1).transpose(0, 2, 1)


class PlainViT(nn.Cell):
    """Dense ViT; takes what `models.vit.ViT` takes (uint8 NHWC, noise, routed) and ignores the last two."""

    def __init__(self, size: Size, image_size: int, patch: int, num_classes: int):
        super().__init__()
        tokens = (image_size // patch) ** 2
        self.patch_embed = PlainPatchEmbed(patch, size.width)
        self.cls_token = Parameter(initializer("zeros", (1, 1, size.width)), name="cls_token")
        self.pos_embed = Parameter(initializer(TruncatedNormal(0.02), (1, 1 + tokens, size.width)), name="pos_embed")
        self.blocks = nn.SequentialCell([PlainBlock(size.width, size.heads) for _ in range(size.depth)])
        self.norm = nn.LayerNorm((size.width,), epsilon=1e-6)
        self.head = nn.Dense(size.width, num_classes)
        self.mean, self.std = ms.Tensor(PIXEL_MEAN, ms.float32), ms.Tensor(PIXEL_STD, ms.float32)

    def construct(self, images, noise, routed=False):
        x = (images.astype(ms.float32) - self.mean) / self.std
        x = self.patch_embed(x.transpose(0, 3, 1, 2))
        cls = ops.BroadcastTo((x.shape[0], 1, x.shape[2]))(self.cls_token)
        x = self.blocks(ops.Concat(1)((cls, x)) + self.pos_embed)
        return self.head(self.norm(x)[:, 0])
