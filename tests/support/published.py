"""Published methods in NumPy and float64, on one image, each written down from its own rule: what it keeps and what
comes out.

An image is an array of tokens (n, D), [CLS] first, then the patches in order. Blocks are counted from 0.
"""

from __future__ import annotations

import numpy as np


class Net:
    """The parts of a ViT on arrays of tokens (n, D)."""

    def __init__(self, parameters, depth, heads, patch):
        self.p = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
        self.depth, self.heads, self.patch = depth, heads, patch

    def linear(self, name, x):
        return x @ self.p[name + ".weight"].T + self.p[name + ".bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.p[name + ".weight"] + self.p[name + ".bias"]

    def tokens(self, image):
        """Normalised float image (S, S, 3) to [CLS] and patches with their position embedding."""
        side, p = len(image) // self.patch, self.patch
        cut = [image[p * r : p * r + p, p * c : p * c + p].reshape(-1) for r in range(side) for c in range(side)]
        patches = self.linear("patch_embed.proj", np.array(cut, np.float64))
        return np.concatenate([self.p["cls_token"][0], patches]) + self.p["pos_embed"][0]

    def maps(self, b, x):
        """Attention of block b among tokens x: (heads, n, n); and the values (heads, n, d)."""
        y = self.norm(f"blocks.{b}.norm1", x)
        q, k, v = (
            self.linear(f"blocks.{b}.attn.{part}", y).reshape(len(x), self.heads, -1).swapaxes(0, 1) for part in "qkv"
        )
        e = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]))
        return e / e.sum(2, keepdims=True), v

    def of_cls(self, b, x):
        """What [CLS] pays each patch in block b, mean over heads: (n - 1,)."""
        return self.maps(b, x)[0].mean(0)[0, 1:]

    def attend(self, b, x):
        maps, v = self.maps(b, x)
        return x + self.linear(f"blocks.{b}.attn.proj", (maps @ v).swapaxes(0, 1).reshape(len(x), -1))

    def feed(self, b, x):
        h = self.linear(f"blocks.{b}.mlp.fc1", self.norm(f"blocks.{b}.norm2", x))
        return x + self.linear(f"blocks.{b}.mlp.fc2", h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))))

    def block(self, b, x):
        return self.feed(b, self.attend(b, x))

    def blocks(self, x, first, end):
        for b in range(first, end):
            x = self.block(b, x)
        return x

    def logits(self, x):
        return self.linear("head", self.norm("norm", x[0]))


def largest(score, count):
    """Positions of the `count` largest, in order of position."""
    return np.sort(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def with_cls(positions):
    return np.append(0, 1 + positions)


def dense(net, x):
    return net.blocks(x, 0, net.depth), []


def skipvit(net, x, drop, back, count, choose=None):
    """Before block `drop`, `count` patches are chosen, if nothing else is said those that [CLS] attended to most in the
    block before; only they and [CLS] go through the blocks until `back`, where all are together again, in their
    places."""
    x = net.blocks(x, 0, drop - 1)
    attention = net.of_cls(drop - 1, x)
    x = net.block(drop - 1, x)
    kept = largest(attention if choose is None else choose(attention), count)
    x[with_cls(kept)] = net.blocks(x[with_cls(kept)], drop, back)
    return net.blocks(x, back, net.depth), [kept]


def inverse(net, x, drop, back, count):
    """SkipViT the wrong way round."""
    return skipvit(net, x, drop, back, count, lambda attention: -attention)


def at_random(net, x, drop, back, count, draws):
    """SkipViT by lot; TREAD: a random part of the tokens goes through the route, the others are put back at its end."""
    return skipvit(net, x, drop, back, count, lambda _: draws)


def evenly(net, x, drop, back, count):
    """SkipViT on a grid: every position pays in `count`, and one is kept, for n, whenever as much has come together."""
    n, purse = len(x) - 1, 0
    chosen = np.zeros(n)
    for i in range(n):
        purse += count
        if purse >= n:
            chosen[i], purse = 1, purse - n
    return skipvit(net, x, drop, back, count, lambda _: chosen)


def sampled(net, x, drop, back, count, draws, temperature):
    """SkipViT with an exponential race: a patch arrives after a time of mean 1 / attention ** (1 / temperature), the
    first are kept."""
    race = -np.log(draws.astype(float))
    return skipvit(net, x, drop, back, count, lambda attention: -race / attention ** (1 / temperature))


def mixed(net, x, drop, back, count, draws, coin, share):
    """SkipViT, but by lot if the coin falls below the share."""
    return at_random(net, x, drop, back, count, draws) if coin < share else skipvit(net, x, drop, back, count)


def topk_pruning(net, x, drop, count):
    """From block `drop` on there are only [CLS] and the patches that it attended to most in the block before."""
    x = net.blocks(x, 0, drop - 1)
    kept = largest(net.of_cls(drop - 1, x), count)
    return net.blocks(net.block(drop - 1, x)[with_cls(kept)], drop, net.depth), [kept]


def evit(net, x, sites, counts):
    """In the blocks `sites`, after attention: the patches that [CLS] attends to least there are replaced by one token,
    their mean weighted by that attention, and only then the MLP follows. Tokens made so go on beside the patches."""
    patches, kept = np.arange(len(x) - 1), []
    for b in range(net.depth):
        attention = net.of_cls(b, x)[: len(patches)]
        x = net.attend(b, x)
        if b in sites:
            best = largest(attention, counts[sites.index(b)])
            rest = np.setdiff1d(np.arange(len(patches)), best)
            fused = (attention[rest] @ x[1 + rest]) / attention[rest].sum()
            x = np.concatenate([x[:1], x[1 + best], x[1 + len(patches) :], fused[None]])
            patches = patches[best]
            kept.append(patches)
        x = net.feed(b, x)
    return x, kept


def patchdropout(net, x, count, draws):
    """Of the embedded patches a random part is all that the network sees."""
    kept = largest(draws, count)
    return net.blocks(x[with_cls(kept)], 0, net.depth), [kept]


def random_ltd(net, x, first, end, count, draws):
    """Each block from `first` until `end` processes a random part of its own; the others pass it by."""
    x, kept = net.blocks(x, 0, first), []
    for b in range(first, end):
        kept.append(largest(draws[b - first], count))
        inside = with_cls(kept[-1])
        x[inside] = net.block(b, x[inside])
    return net.blocks(x, end, net.depth), kept


def idlevit(net, x, first, count):
    """Every block from `first` on selects among all tokens by the attention of [CLS] in the block before (worked out
    for the idle ones too); the others idle. After the last block only those that it selected are looked at."""
    x = net.blocks(x, 0, first - 1)
    given, x, kept = x, net.block(first - 1, x), []
    for b in range(first, net.depth):
        kept.append(largest(net.of_cls(b - 1, given), count))
        inside = with_cls(kept[-1])
        given, x = x, x.copy()
        x[inside] = net.block(b, given[inside])
    return x[inside], kept


def token_dropping(net, x, middle, count):
    """From the middle of the network half of the tokens are left out, and join the others again, in order, for the last
    block."""
    return skipvit(net, x, middle, net.depth - 1, count)
