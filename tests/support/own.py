"""A model and a scorer of a user's own, as in a file beside a configuration: nothing else names them.

`mean_vit` is a Vision Transformer without [CLS], whose head reads the mean of the patches; `keys_norm` ranks patches by
the norm of their keys to a power of its own.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ops

import skipvit
from skipvit.models.vit import ViT
from skipvit.models.vit_onnx import ViTGraph
from skipvit.models.vit_spec import ViTSpec


@dataclass(frozen=True)
class MeanViTSpec(ViTSpec):
    """No token in front of the patches."""

    prefix: int = 0

    def network(self, fused_kernels=False, dtype=None):
        return MeanViT(self, fused_kernels, dtype)

    def graph(self, builder):
        return MeanViTGraph(self, builder)


class MeanViT(ViT):
    """Reads the mean of all patches that are there at the end."""

    def embed(self, images):
        patches = ops.Cast()(self.patch_embed(images), ms.float32)
        return patches + self.positions(images.shape[1] // self.patch, 0)

    def classify(self, y):
        return self.head(ops.ReduceMean()(y, 1))


class MeanViTGraph(ViTGraph):
    """What differs of it in ONNX."""

    def classify(self, x):
        return self.dense("head", self.op("ReduceMean", x, axes=[1], keepdims=0))


@skipvit.register_model("mean_vit")
def mean_vit(**overrides):
    return MeanViTSpec(**({"width": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32} | overrides))


def keys_norm_onnx(graph, step, signals, noise):
    norm = graph.op("ReduceMean", graph.op("ReduceL2", signals["k"], axes=[-1], keepdims=0), axes=[1], keepdims=0)
    return graph.op("Pow", norm, np.float32(step.knobs["power"])), norm


@skipvit.register_scorer("keys_norm", reads=("k",), knobs={"power": (1.0, 0, 8)}, onnx=keys_norm_onnx)
def keys_norm(step, signals, noise, training):
    norm = ops.ReduceMean()(ops.Sqrt()(ops.ReduceSum()(ops.Square()(ops.Cast()(signals["k"], ms.float32)), -1)), 1)
    return ops.Pow()(norm, step.knobs["power"]), norm
