"""Random weights for networks that are not trained."""

import numpy as np

from skipvit.weights.convert import Geometry, expected_shapes


def random_weights(width, depth, patch, grid, classes, seed):
    """All weights of a ViT by name, float32: large enough that attention is far from flat and that classes differ."""
    rng, values = np.random.default_rng(seed), {}
    for name, shape in expected_shapes(Geometry(depth, width, patch, grid, classes), timm=False).items():
        scale, centre = 0.3, 0.0
        if name.endswith("weight") and len(shape) == 2:
            scale = (1.2 if ".q." in name or ".k." in name else 0.6) * shape[1] ** -0.5
        elif name.endswith("weight"):
            centre = 1.0
        elif name in ("cls_token", "pos_embed"):
            scale = 1.0
        values[name] = (centre + scale * rng.normal(size=shape)).astype(np.float32)
    return values
