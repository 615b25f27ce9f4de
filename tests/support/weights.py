"""Random weights for networks that are not trained."""

import numpy as np

from skipvit.models.vit_spec import ViTSpec


def random_weights(width, depth, patch, grid, classes, seed):
    """`drawn` for a ViT."""
    return drawn(ViTSpec(width, depth, 1, patch, patch * grid, classes).shapes(), seed)


def drawn(shapes, seed):
    """Values for all weights of a network by name, float32: large enough that attention is far from flat and that
    classes differ.
    """
    rng, values = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        scale, centre = 0.3, 0.0
        if name.endswith("weight") and len(shape) == 2:
            scale = (1.2 if ".q." in name or ".k." in name else 0.6) * shape[1] ** -0.5
        elif name.endswith("weight"):
            centre = 1.0
        elif name in ("cls_token", "pos_embed"):
            scale = 1.0
        values[name] = (centre + scale * rng.normal(size=shape)).astype(np.float32)
    return values


def load(network, values):
    """Give a network's parameters values by name."""
    from mindspore import Tensor

    for parameter in network.get_parameters():
        parameter.set_data(Tensor(values[parameter.name]))
