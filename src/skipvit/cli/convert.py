"""`skipvit convert`: timm weights (.safetensors) to a checkpoint (.ckpt), and back."""

from __future__ import annotations

from pathlib import Path

from skipvit.cli.options import OneLineParser

DESCRIPTION = """\
Turn timm or DeiT weights (.safetensors) into a MindSpore checkpoint (.ckpt) of this project's ViT, or back.
The endings of the two files decide the direction; depth, width, patch, image and classes are read from the source.
Weights are kept bit for bit in float32 (float16 and bfloat16 are widened to it, which loses nothing).
Entries of a training checkpoint that are not the model's (optimizer.*, trainer.*) are left out."""

EPILOG = """\
example:
  skipvit convert deit_small.safetensors deit_small.ckpt

timm's ViTs are trained with the exact (erf) GELU: run their weights with --model.gelu erf. Two more things are not part
of the weights: the number of heads (in timm and DeiT a head is 64 wide), and the normalisation of images (ours is
ImageNet's mean and deviation, as in DeiT; timm's augreg weights were trained with 0.5 and 0.5)."""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit convert", DESCRIPTION, EPILOG)
    parser.add_argument("source", type=Path, help="weights to read: .safetensors or .ckpt")
    parser.add_argument("target", type=Path, help="file to write, with the other ending; must not exist")
    options = parser.parse_args(words)
    from skipvit.weights.convert import convert

    print(convert(options.source, options.target))
