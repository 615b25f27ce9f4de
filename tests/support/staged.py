"""What the forwards of Swin and PVT in NumPy have in common, float64."""

import numpy as np


class Staged:
    """Args: params: float64, by name. A family says what `one` image's logits and kept positions are."""

    def __init__(self, params):
        self.params = params

    def forward(self, images, routes=()):
        """Logits of normalised images (B, H, W, 3), and of each route the kept positions of each image.

        Args:
            routes: as the family's `one` takes them, blocks counted from the first of all.
        """
        logits, kept = zip(*(self.one(image.astype(np.float64), routes) for image in images))
        return np.stack(logits), kept

    def score(self, scorer, told):
        if scorer == "attention_received":
            return told["received"]
        if scorer == "magnitude":
            return np.abs(told["tokens"]).mean(1)
        return np.linalg.norm(told["tokens"] - told["entered"], axis=1)

    def dense(self, name, x):
        return x @ self.params[f"{name}.weight"].T + self.params[f"{name}.bias"]

    def norm(self, name, x, epsilon=1e-5):
        normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + epsilon)
        return normed * self.params[f"{name}.weight"] + self.params[f"{name}.bias"]


def softmax(logits):
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
