"""One rank of a run whose rank 1 overflows at one step; started by msrun from test_distributed.py.

    overflow_worker.py FOLDER STEPS AT

Writes FOLDER/rank_<r>.npz: the weights after all steps, and the reports of the steps.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

import numpy as np
from mindspore import Tensor, nn, ops

from skipvit.config.config import Config
from skipvit.engine import devices
from skipvit.engine.build import build_forward, build_loss, build_network
from skipvit.engine.optim import AdamW
from skipvit.engine.state import TrainingState
from skipvit.engine.step import TrainStep

MODEL = {"width": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 10}


class Factor(nn.Cell):
    """The loss times the first number of the noise, which is not used otherwise."""

    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, images, labels, noise, mix, scale):
        factor = ops.Reshape()(ops.Slice()(noise, (0, 0), (1, 1)), ())
        return self.loss(images, labels, noise, mix, scale) * factor


def main() -> None:
    folder, steps, at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _, shard = devices.start("cpu")
    routes = [{"start": 1, "end": 2, "keep_ratio": 0.5}]
    data = {"kind": "image_folder", "path": "."}
    config = Config.model_validate({"model": MODEL, "routes": routes, "data": data})
    network = build_network(config, "cpu")
    loss = Factor(build_loss(config, build_forward(config, "cpu", network, "routed"), False, 32))
    optimizer = AdamW(network.trainable_params(), np.full(steps, 1e-3), 0.9, 0.999, 1e-3, 0.05)
    state = TrainingState(optimizer.parameters, ema_decay=0.9, loss_scale=1024.0)
    average = devices.gradient_average(optimizer.parameters, shard)
    step = TrainStep(loss, optimizer, state, 1.0, average, shard.world_size)
    rng = np.random.default_rng(shard.rank)  # every rank has images of its own
    reports = []
    for number in range(steps):
        noise = np.ones((4, max(1, config.noise_width())), np.float32)
        if shard.rank == 1 and number == at:
            noise[0, 0] = np.inf
        images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, 4, dtype=np.int32)
        batch = (images, labels, noise, np.zeros(6, np.float32))
        reports.append(step(*map(Tensor, batch)).asnumpy())
    values = {p.name: p.asnumpy() for p in [*network.get_parameters(), *optimizer.get_parameters(), *state.saved()]}
    np.savez(folder / f"rank_{shard.rank}.npz", reports=np.stack(reports), **values)


main()
