"""Forward and backward of one block of each stage of a network, and of one along a route: where a step's time goes.

    python benchmarks/block_times.py swin_small_patch4_window7_224 --batch_size 8

Prints milliseconds (medians) beside multiply-accumulates of an image's forward. The route's block includes taking the
kept tokens out.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from skipvit.models.arithmetic import blocks_of
from skipvit.models.registry import model_spec
from skipvit.routing.program import compile_program, first_routed_block
from skipvit.routing.select import SELECTORS
from skipvit.routing.spec import Route
from skipvit.util.text import table

ROUNDS = 7


class Alone(nn.Cell):
    """The sum of a block's output, of all tokens or of those that a route keeps."""

    def __init__(self, network: Any, block: int, select: Any = None):
        super().__init__(auto_prefix=False)
        self.network, self.block, self.select = network, block, select

    def construct(self, x, noise):
        block = self.network.blocks[self.block]
        if self.select is None:
            return block.feed(block.attend(x, noise, None)[0], noise, None).sum()
        mask = self.select.mask(x[:, :, 0])
        where = self.network.locate(self.select, mask)
        inside = self.select.take(x, mask)
        return block.feed(block.attend(inside, noise, where)[0], noise, where).sum()


def milliseconds(alone: Alone, x: Tensor, noise: Tensor) -> float:
    weights = alone.network.blocks[alone.block].trainable_params()
    take = ms.value_and_grad(alone, grad_position=0, weights=weights)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first compiles
        begun = time.perf_counter()
        take(x, noise)[1][0].asnumpy()
        seconds.append(time.perf_counter() - begun)
    return 1000 * float(np.median(seconds[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batch_size", type=int, default=8)
    chosen = parser.parse_args()
    ms.set_context(mode=ms.GRAPH_MODE)
    spec, rng, rows, first = model_spec(chosen.name), np.random.default_rng(0), [], 0
    network, program = spec.network().set_train(), compile_program(spec)
    noise = Tensor(rng.random((chosen.batch_size, program.noise_width), np.float32))
    routed = first_routed_block(spec)
    along = compile_program(spec, [Route(start=1, end=2, keep_ratio=0.45, scorer="magnitude")], "routed")
    for number, stage in enumerate(spec.stages(), 1):
        x = Tensor(rng.normal(size=(chosen.batch_size, stage.layout.length, stage.width)).astype(np.float32))
        block = first + (1 if stage.depth > 1 else 0)
        cases = [("all", None, program)]
        if first == routed:
            cases.append(
                (f"{along.selections[0].after.patches} of them", SELECTORS["gather"](along.selections[0]), along)
            )
        for tokens, select, of in cases:
            took = milliseconds(Alone(network, block, select), x, noise)
            macs = blocks_of(spec, of)[block].macs / 1e6
            rows.append((f"{number}", f"{stage.layout.patches}", tokens, f"{macs:.1f}", f"{took:.0f}"))
            print(table(rows[-1:], align=">><>>"), file=sys.stderr, flush=True)
        first += stage.depth
    print(table(rows, ["stage", "tokens", "that the block sees", "MMACs an image", "ms forward and backward"], ">><>>"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
