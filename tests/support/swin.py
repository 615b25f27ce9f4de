"""A Swin Transformer along routes in NumPy, float64, written from the papers and not from the code.

Tokens have rows and columns, windows are who may see whom, a cell is who shares both windows; all is row-major.
"""

import math

import numpy as np

from support.staged import Staged, gelu, softmax


class Swin(Staged):
    """Args: a `SwinSpec`; params: float64, by name. Routes are (start, end, keep_ratio, scorer, at)."""

    def __init__(self, spec, params):
        super().__init__(params)
        self.depths, self.heads, self.patch, self.window = spec.depths, spec.heads, spec.patch, spec.window

    def one(self, image, routes):
        x, grid, block, kept = self.embed(image), len(image) // self.patch, 0, []
        for stage, depth in enumerate(self.depths):
            if stage:
                x, grid = self.merge(x, grid, stage), grid // 2
                told = {"received": None, "tokens": x, "entered": None}
            stay, outside = None, None
            for index in range(depth):
                for start, _, ratio, scorer, at in routes:
                    if block == start and at == "block":
                        stay = self.choose(ratio, self.score(scorer, told), grid)
                        kept.append(stay)
                        outside, x = x, x[stay]
                entered, places = x, np.arange(grid * grid) if stay is None else stay
                shift = self.windows(grid)[0] // 2 * (index % 2) if grid > self.windows(grid)[0] else 0
                y, received = self.attention(block, x, places, grid, shift, stage)
                x = x + y
                for start, _, ratio, scorer, at in routes:
                    if block == start and at == "mlp":
                        told = {"received": received, "tokens": x, "entered": entered}
                        stay = self.choose(ratio, self.score(scorer, told), grid)
                        kept.append(stay)
                        outside, x = x, x[stay]
                x = x + self.mlp(block, x)
                told = {"received": received, "tokens": x, "entered": entered}
                block += 1
                if stay is not None and any(block == end for _, end, *_ in routes):
                    outside = outside.copy()
                    outside[stay] = x
                    x, stay = outside, None
                    told = {"received": None, "tokens": x, "entered": None}
        x = self.norm("norm", x)
        return x.mean(0) @ self.params["head.weight"].T + self.params["head.bias"], kept

    def windows(self, grid):
        return (min(self.window, grid),)

    def embed(self, image):
        p, grid = self.patch, len(image) // self.patch
        patches = [image[y * p : (y + 1) * p, x * p : (x + 1) * p].ravel() for y in range(grid) for x in range(grid)]
        return self.norm("patch_embed.norm", self.dense("patch_embed.proj", np.array(patches)))

    def merge(self, x, grid, stage):
        """(0, 0), (1, 0), (0, 1), (1, 1) of each 2 x 2, side by side."""
        x = x.reshape(grid, grid, -1)
        merged = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
        merged = self.norm(f"downsample.{stage - 1}.norm", merged.reshape(grid * grid // 4, -1))
        return merged @ self.params[f"downsample.{stage - 1}.reduction.weight"].T

    def attention(self, block, x, places, grid, shift, stage):
        """Of the tokens at some places: their change, and the attention that each receives, mean over queries and
        heads."""
        name, (window,), heads = f"blocks.{block}.attn", self.windows(grid), self.heads[stage]
        normed = self.norm(f"blocks.{block}.norm1", x)
        y, c = (places // grid - shift) % grid, (places % grid - shift) % grid
        together = (y[:, None] // window == y // window) & (c[:, None] // window == c // window)

        def region(r):
            return np.where(r < grid - window, 0, np.where(r < grid - shift, 1, 2)) if shift else np.zeros_like(r)

        apart = (region(y)[:, None] != region(y)) | (region(c)[:, None] != region(c))
        table = self.params[f"{name}.relative_position_bias_table"]
        half = (math.isqrt(len(table)) + 1) // 2 - 1
        down, right = y[:, None] - y + half, c[:, None] - c + half
        rows = np.clip(down, 0, 2 * half) * (2 * half + 1) + np.clip(right, 0, 2 * half)
        results, received = [], np.zeros(len(x))
        width = x.shape[1] // heads
        for head in range(heads):
            cut = slice(head * width, (head + 1) * width)
            q, k, v = (self.dense(f"{name}.{part}", normed)[:, cut] for part in "qkv")
            logits = q @ k.T / math.sqrt(width) + table[rows, head] + np.where(apart, -100.0, 0.0)
            logits[~together] = -np.inf
            weights = softmax(logits)
            results.append(weights @ v)
            received += weights.sum(0) / together.sum(0) / heads
        return self.dense(f"{name}.proj", np.concatenate(results, 1)), received

    def mlp(self, block, x):
        hidden = self.dense(f"blocks.{block}.mlp.fc1", self.norm(f"blocks.{block}.norm2", x))
        return self.dense(f"blocks.{block}.mlp.fc2", gelu(hidden))

    def choose(self, ratio, scores, grid):
        """The best of every cell: of the tokens that share their plain and their shifted window."""
        (window,) = self.windows(grid)
        cells, shift = {}, window // 2 if grid > window else 0
        for place in range(grid * grid):
            y, x = divmod(place, grid)
            plain = (y // window, x // window)
            moved = ((y - shift) % grid // window, (x - shift) % grid // window)
            cells.setdefault((plain, moved if shift else None), []).append(place)
        by_window = {}
        for (plain, _), members in cells.items():
            by_window.setdefault(plain, []).append(members)
        stay = []
        for members in by_window.values():
            total = max(1, round(ratio * window**2))
            shares = [len(m) * total / window**2 for m in members]
            counts = [int(s + 1e-9) for s in shares]
            while sum(counts) < total:
                rest = [s - c for s, c in zip(shares, counts)]
                counts[max(range(len(rest)), key=lambda i: (round(rest[i], 9), i))] += 1
            for m, count in zip(members, counts):
                stay += sorted(m, key=lambda place: -scores[place])[:count]
        return np.array(sorted(stay))
