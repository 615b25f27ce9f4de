"""The process of `against_pytorch.py` in which PyTorch works: like measure/bench/worker.py, and without MindSpore."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_vit import PyTorchStep
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from skipvit.measure.bench.timed import Timed, serve


class PyTorchBench(Timed):
    """Args: strong: PyTorch's fused kernels, see `pytorch_vit`."""

    def __init__(self, strong: bool):
        super().__init__()
        self.strong = strong

    def build(self, config: dict[str, Any], forward: str, training: bool, data: bool) -> str:
        """The network and a batch of random images; dense training is all there is."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(config["seed"])
        self.base = self.memory()
        model, batch = config["model"], config["data"]["batch_size"]
        self.train = PyTorchStep(config, self.strong)
        self.images = torch.randint(0, 256, (batch, model["image_size"], model["image_size"], 3), dtype=torch.uint8)
        self.labels = torch.randint(0, model["num_classes"], (batch,))
        return "cpu"

    def _step(self) -> Callable[[], Tensor]:
        return partial(self.train, self.images, self.labels)

    def operators(self, steps: int) -> list[tuple[str, int, float]]:
        """Name, calls and own milliseconds of a step's operators, heaviest first, by PyTorch's profiler."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.turn("step", steps)
        found = [(e.key, e.count // steps, e.self_cpu_time_total / 1000 / steps) for e in profiler.key_averages()]
        return sorted(found, key=lambda operator: -operator[2])

    def wait(self, result: Tensor) -> None:
        result.item()

    def skipped(self) -> int:
        return 0


if __name__ == "__main__":
    serve(PyTorchBench(strong=sys.argv[1] == "strong"), sys.argv[2:])
