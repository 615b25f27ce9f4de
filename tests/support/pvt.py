"""Pyramid Vision Transformers along routes in NumPy, float64, written from the papers and not from the code; all tokens
are row-major, convolutions are sums over their kernels."""

import math

import numpy as np

from support.staged import Staged, gelu, softmax


class PVT(Staged):
    """Args: a `PVTSpec`; params: float64, by name. Routes are (start, end, keep_ratio, scorer)."""

    def __init__(self, spec, params):
        super().__init__(params)
        self.spec = spec

    def one(self, image, routes):
        spec, x, block, kept, grid = self.spec, image, 0, [], len(image)
        for stage, depth in enumerate(spec.depths):
            x, grid = self.tokens(stage, x, grid)
            stay, told = None, {"tokens": x}
            for _ in range(depth):
                for start, _, ratio, scorer in routes:
                    if block == start:
                        stay = self.choose(ratio, self.score(scorer, told), grid, spec.reductions[stage])
                        kept.append(stay)
                        outside, x = x, x[stay]
                entered = x
                y, received = self.attention(block, stage, x, stay, grid)
                x = x + y
                x = x + self.mlp(block, stage, x, stay, grid)
                told = {"received": received, "tokens": x, "entered": entered}
                block += 1
                if stay is not None and any(block == end for _, end, *_ in routes):
                    outside = outside.copy()
                    outside[stay] = x
                    x, stay = outside, None
            if spec.version == 2 and stage < len(spec.depths) - 1:
                x = self.norm(f"norms.{stage}", x, 1e-6)
        x = self.norm("norm", x, 1e-6)
        x = x[0] if spec.version == 1 else x.mean(0)
        return x @ self.params["head.weight"].T + self.params["head.bias"], kept

    def tokens(self, stage, x, grid):
        """Of the image or the stage before; and the new grid."""
        name = f"downsample.{stage - 1}" if stage else "patch_embed"
        stride, x = (2 if stage else self.spec.patch), x.reshape(grid, grid, -1)
        if self.spec.version == 2:
            kernel, bias = self.params[f"{name}.proj.weight"], self.params[f"{name}.proj.bias"]
            y = convolved(x, kernel, stride) + bias
            return self.norm(f"{name}.norm", y.reshape(-1, len(bias)), 1e-5), grid // stride
        new = grid // stride
        cut = [x[r * stride :][:stride, c * stride :][:, :stride].ravel() for r in range(new) for c in range(new)]
        y = self.norm(f"{name}.norm", self.dense(f"{name}.proj", np.array(cut)), 1e-5)
        if stage == len(self.spec.depths) - 1:
            y = np.concatenate([self.params[f"{name}.cls_token"][0], y])
        return y + self.params[f"{name}.pos_embed"][0], new

    def attention(self, block, stage, x, stay, grid):
        """The change of the tokens that are there, and what each one's cell receives of attention."""
        name, spec, cell = f"blocks.{block}.attn", self.spec, self.spec.reductions[stage]
        normed = self.norm(f"blocks.{block}.norm1", x, 1e-6)
        keyed, cells = normed, np.arange(len(x))
        if cell > 1:
            places = np.arange(grid * grid) if stay is None else stay
            rows, columns = places // grid // cell, places % grid // cell
            names = sorted(set(zip(rows, columns)))
            cells = np.array([names.index(pair) for pair in zip(rows, columns)])
            inside = [normed[cells == i].ravel() for i in range(len(names))]  # row-major within the cell
            keyed = self.norm(f"{name}.norm", self.dense(f"{name}.sr", np.array(inside)), 1e-5)
        heads, result, received = spec.heads[stage], [], np.zeros(len(keyed))
        width = x.shape[1] // heads
        for head in range(heads):
            cut = slice(head * width, (head + 1) * width)
            q, k, v = (self.dense(f"{name}.{p}", of)[:, cut] for p, of in (("q", normed), ("k", keyed), ("v", keyed)))
            logits = q @ k.T / math.sqrt(width)
            weights = softmax(logits)
            result.append(weights @ v)
            received += weights.mean(0) / heads
        return self.dense(f"{name}.proj", np.concatenate(result, 1)), received[cells]

    def mlp(self, block, stage, x, stay, grid):
        name = f"blocks.{block}.mlp"
        hidden = self.dense(f"{name}.fc1", self.norm(f"blocks.{block}.norm2", x, 1e-6))
        if self.spec.version == 2:
            canvas = np.zeros((grid * grid, hidden.shape[1]))
            places = np.arange(grid * grid) if stay is None else stay
            canvas[places] = hidden
            kernel = self.params[f"{name}.dwconv.weight"]
            full = np.einsum("oikl,op->opkl", kernel, np.eye(len(kernel)))  # each channel for itself
            hidden = convolved(canvas.reshape(grid, grid, -1), full, 1).reshape(grid * grid, -1)[places]
            hidden = hidden + self.params[f"{name}.dwconv.bias"]
        return self.dense(f"{name}.fc2", gelu(hidden))

    def choose(self, ratio, scores, grid, cell):
        """The cells with the largest mean."""
        side = grid // cell
        means = scores.reshape(side, cell, side, cell).mean((1, 3)).ravel()
        best = np.argsort(-means, kind="stable")[: max(1, round(ratio * len(means)))]
        places = np.arange(grid * grid)
        return places[np.isin(places // grid // cell * side + places % grid // cell, best)]


def convolved(x, kernel, stride):
    """(H, W, C) with (D, C, K, K), zeros beyond the border: (H / stride, W / stride, D)."""
    side, rows, columns = kernel.shape[-1], x.shape[0], x.shape[1]
    padded = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    result = 0
    for r in range(side):
        for c in range(side):
            part = padded[r : r + rows : stride, c : c + columns : stride]
            result = result + part @ kernel[:, :, r, c].T
    return result
