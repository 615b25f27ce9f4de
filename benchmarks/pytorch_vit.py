"""A plain Vision Transformer and its training step in PyTorch, eager, as timm writes them: for `against_pytorch.py`.

It does the work of `skipvit`'s dense training step on the same kind of batch: uint8 images are normalised and, if the
configuration says so, mixed (mixup; ours also has CutMix's box in the same expression); smoothed soft cross-entropy;
stochastic depth; backward; clipping by the global norm; AdamW that decays matrices; an average of the weights if there
is one. Ours also asks whether the gradients are finite.

`plain` writes attention out, has timm's GELU, with erf, and PyTorch's defaults. `strong` has PyTorch's fused attention
and AdamW, one call for all weights where there is one, and the configuration's GELU (ours: tanh).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, 0..255


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.scale, self.fused = heads, (width // heads) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class DropPath(nn.Module):
    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, drop_path: float, gelu: str, fused: bool):
        super().__init__()
        self.norm1, self.attn, self.drop_path = (
            nn.LayerNorm(width, eps=1e-6),
            Attention(width, heads, fused),
            DropPath(drop_path),
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, 4 * width),
            nn.GELU(approximate=gelu),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.fc2(self.act(self.fc1(self.norm2(x)))))


class PyTorchViT(nn.Module):
    """Logits (B, classes) of normalised images (B, 3, S, S). model: a configuration's, numbers written out."""

    def __init__(self, model: dict[str, Any], strong: bool):
        super().__init__()
        width, depth, heads = model["width"], model["depth"], model["heads"]
        tokens, patch = (model["image_size"] // model["patch"]) ** 2, model["patch"]
        gelu = "tanh" if strong and model["gelu"] == "tanh" else "none"
        rates = torch.linspace(0, model["drop_path"], depth).tolist()
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + tokens, width))
        self.blocks = nn.Sequential(*[Block(width, heads, rate, gelu, strong) for rate in rates])
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, model["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class PyTorchStep:
    """One training step of a configuration, given as plain values (`Config.model_dump`)."""

    def __init__(self, config: dict[str, Any], strong: bool):
        model, optim, self.augment, self.strong = config["model"], config["optim"], config["augment"], strong
        self.network = PyTorchViT(model, strong).train()
        self.weights = list(self.network.parameters())
        decayed = [p for p in self.weights if p.ndim in (2, 4)]  # matrices, and the patch embedding's
        others = [p for p in self.weights if p.ndim not in (2, 4)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=optim["lr"],
            betas=(optim["beta1"], optim["beta2"]),
            eps=optim["epsilon"],
            weight_decay=optim["weight_decay"],
            fused=strong or None,
        )
        self.smoothing, self.clip_norm, self.decay = (
            optim["label_smoothing"],
            optim["clip_norm"],
            config["ema"]["decay"],
        )
        self.average = [p.detach().clone() for p in self.weights] if self.decay else []
        self.mixes = (self.augment["mixup"] > 0 or self.augment["cutmix"] > 0) and self.augment["mix_prob"] > 0
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def __call__(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
        """Train on images uint8 (B, S, S, 3) and labels int64 (B,), mixed with their mirror; returns the loss."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        classes = self.network.head.out_features
        target = F.one_hot(labels, classes).float()
        if self.mixes:
            x, target = (batch * weight + batch.flip(0) * (1 - weight) for batch in (x, target))
        target = target * (1 - self.smoothing) + self.smoothing / classes
        loss = -(target * self.network(x).log_softmax(-1)).sum(-1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.weights, self.clip_norm, foreach=self.strong or None)
        self.optimizer.step()
        self._move_average()
        return loss.detach()

    @torch.no_grad()
    def _move_average(self) -> None:
        if self.strong and self.decay:
            torch._foreach_lerp_(self.average, self.weights, 1 - self.decay)
        else:
            for average, weight in zip(self.average, self.weights):
                average.lerp_(weight, 1 - self.decay)
