"""A network ready to be called, from a model's name and a list of routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import context

from skipvit.models.registry import model_spec
from skipvit.routing.forward import Forward
from skipvit.routing.program import compile_program
from skipvit.routing.select import Formulation
from skipvit.routing.spec import Route


def create_model(
    name: str,
    routes: Iterable[Route | dict[str, Any]] = (),
    num_classes: int = 1000,
    formulation: Formulation | None = None,
    outputs: Iterable[str] = ("logits",),
    dtype: Any = None,
    seed: int = 0,
    **overrides: Any,
) -> Forward:
    """A network with newly drawn weights, along its routes.

    >>> network = create_model("vit_small_patch16_224", routes=[{"start": 4, "end": 11, "keep_ratio": 0.45}])
    >>> logits = network(images)  # uint8 (B, 224, 224, 3) -> float32 (B, 1000)

    For training, give it the random numbers of a step: `network.set_train()(images, noise)` with noise float32
    (B, network.noise_width), uniform in [0, 1). In graph mode (`mindspore.set_context(mode=0)`) it compiles to one
    static graph.

    Args:
        name: of `list_models()`, as in timm.
        routes: see `Route`; none: the dense network.
        formulation: `gather` or `matmul`; None: matmul on Ascend, else gather.
        outputs: names of what it returns, of `network.program.makes`.
        dtype: of the matrix products, float32 (default) or float16.
        seed: of the weights and of the noise where none is given.
        overrides: what differs from the model's own: `image_size`, `patch`, `width`, `depth`, `heads`, `drop_path`,
            `gelu`.

    Raises:
        ValueError: no such model, numbers that do not go together, a route that cannot run; one line.
    """
    spec = model_spec(name, num_classes=num_classes, **overrides)
    given = [route if isinstance(route, Route) else Route(**route) for route in routes]
    program = compile_program(spec, given, "routed" if given else "dense")
    on_ascend = context.get_context("device_target") == "Ascend"
    seed_weights(seed)
    network = spec.network(on_ascend, dtype or ms.float32)
    return Forward(network, program, formulation or ("matmul" if on_ascend else "gather"), outputs, seed)


def seed_weights(seed: int) -> None:
    """Initial weights follow from a seed: MindSpore draws them with NumPy's global generator and its own."""
    ms.set_seed(seed)
    np.random.seed(seed)
