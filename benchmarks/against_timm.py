"""A network of this project against timm's of the same name, on the same random weights: logits and every gradient.

    python benchmarks/against_timm.py swin_small_patch4_window7_224 pvt_v2_b2
    python benchmarks/against_timm.py pvt_small --original /path/to/PVT/classification/pvt.py

Needs PyTorch and timm. timm has no PVT of version 1: give the original's file. Prints the largest difference of a logit
and of a gradient, each as a share of the largest in its array; of the keys' biases there is none, their gradient is 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import timm
import torch
from mindspore import Tensor, nn

from skipvit.models.registry import model_spec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program


class Objective(nn.Cell):
    """A weighted sum of the logits, and the logits."""

    def __init__(self, forward: Forward, weights: np.ndarray):
        super().__init__(auto_prefix=False)
        self.forward, self.weights = forward, Tensor(weights)

    def construct(self, images):
        logits = self.forward(images)
        return (logits * self.weights).sum(), logits


def theirs(name: str, original: Path | None) -> Any:
    """The network of timm or of a file of the original's, each weight moved by noise so that none is zero."""
    torch.manual_seed(0)
    if original is None:
        network = timm.create_model(name)
    else:
        # Its timm is an old one: layers have moved, and the registry wants a module that was imported.
        text = original.read_text().replace("timm.models.layers", "timm.layers").replace("@register_model\n", "")
        text = text.replace("from timm.models.registry import register_model\n", "")
        spec: Any = importlib.util.spec_from_loader("original", None)
        module = importlib.util.module_from_spec(spec)
        exec(compile(text, str(original), "exec"), module.__dict__)
        network = getattr(module, name)()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def compare(name: str, original: Path | None) -> tuple[float, float, str]:
    """The differences of logits and gradients, and of which weight the latter is."""
    network, spec = theirs(name, original), model_spec(name, gelu="erf")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, spec.image_size, spec.image_size, 3)).astype(np.float32)
    weights = rng.normal(size=(2, spec.num_classes)).astype(np.float32)
    expected = network(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    (expected * torch.tensor(weights)).sum().backward()

    cell = spec.network()
    arrays = spec.from_timm({key: value.detach().numpy() for key, value in network.named_parameters()})
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(arrays[parameter.name]))
    objective = Objective(Forward(cell, compile_program(spec)), weights)
    (_, logits), found = ms.value_and_grad(objective, None, cell.trainable_params(), has_aux=True)(Tensor(images))
    gradients = spec.from_timm({key: value.grad.numpy() for key, value in network.named_parameters()})
    worst = max(
        (share(gradient.asnumpy(), gradients[parameter.name]), parameter.name)
        for parameter, gradient in zip(cell.trainable_params(), found)
        if not parameter.name.endswith("attn.k.bias")
    )
    return share(logits.asnumpy(), expected.detach().numpy()), *worst


def share(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--original", type=Path, help="file of the original's network, instead of timm")
    chosen = parser.parse_args()
    ms.set_context(mode=ms.GRAPH_MODE)
    for name in chosen.names:
        logits, gradients, where = compare(name, chosen.original)
        print(f"{name}: logits {logits:.1e}, gradients {gradients:.1e} ({where})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
