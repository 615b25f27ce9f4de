"""Memory of training on one device by formula, bytes: what must be there, without a framework's workspaces and its base."""

from __future__ import annotations

from skipvit.measure.macs import Sequence
from skipvit.models.sizes import Size

FLOAT32 = 4


def block_activations(sequence: Sequence, size: Size, compute: int) -> int:
    """What one block keeps of an image for its backward.

    Of N tokens of width d: the standardised input of each norm in float32 (2 N d); and of the compute type the inputs of q, k
    and v, these three, the values' mean (5 N d), the MLP's input, its hidden layer before and after GELU (9 N d). Attention after
    softmax (heads x N^2) in float32, and once more where the compute type is another. The count is that of arXiv 2205.05198 for
    a layer without dropout.

    Args:
        compute: bytes of a number of the matrix products, 4 or 2.
    """
    attention, mlp = sequence.attention * size.width, sequence.mlp * size.width
    maps = size.heads * sequence.attention**2
    halves = compute * (5 * attention + 9 * mlp)
    return FLOAT32 * (attention + mlp + maps) + halves + (compute * maps if compute != FLOAT32 else 0)


def activations(size: Size, sequences: tuple[Sequence, ...], compute: int) -> int:
    """What all blocks keep of an image, see `analysis.macs.sequences`."""
    return sum(block_activations(sequence, size, compute) for sequence in sequences)


def state(parameters: int, trained: int, ema: bool, accumulate: bool) -> dict[str, int]:
    """What training keeps of every parameter, and besides of those that are trained, all float32."""
    copies = {"gradients": 1, "moments": 2}
    if ema:
        copies["averaged weights"] = 2  # and a place to put the trained ones aside during evaluation
    if accumulate:
        copies["accumulated gradients"] = 1
    return {"weights": FLOAT32 * parameters} | {name: FLOAT32 * count * trained for name, count in copies.items()}
