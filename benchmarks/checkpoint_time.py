"""Time and size of a checkpoint of a training run: everything that it needs to go on.

python benchmarks/checkpoint_time.py --config configs/skipvit_small_imagenet.yaml
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GLOG_v", "4")

from skipvit import load_config
from skipvit.engine import checkpoint, devices
from skipvit.engine.build import build_network, build_optimizer, build_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="skipvit_small_imagenet.yaml")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = load_config(options.config)
    device, _ = devices.start(config.device)
    network = build_network(config, device)
    optimizer = build_optimizer(config, network, steps_per_epoch=100 * config.optim.accumulate)
    parameters = [
        *network.get_parameters(),
        *optimizer.get_parameters(),
        *build_state(config, optimizer, device).saved(),
    ]
    writes, reads = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for step in range(options.rounds):
            begun = time.perf_counter()
            path = checkpoint.save(Path(name), checkpoint.Position(0, step, 100), parameters, keep=1)
            writes.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            checkpoint.read_run(path).restore(parameters)
            reads.append(time.perf_counter() - begun)
        size = path.stat().st_size / 2**20
    print(
        f"{config.name}: {sum(p.size for p in network.get_parameters()):,} parameters, checkpoint {size:.0f} MiB, "
        f"written in {statistics.median(writes):.2f} s, restored in {statistics.median(reads):.2f} s "
        f"(medians of {options.rounds})"
    )


if __name__ == "__main__":
    main()
