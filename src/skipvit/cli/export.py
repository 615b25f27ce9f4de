"""`skipvit export`: a trained network as MindIR, ONNX or timm's weights, checked, with a model card."""

from __future__ import annotations

from skipvit.cli.options import OneLineParser, batch_sizes, from_words
from skipvit.cli.trained import add_trained, config_of, trained

EPILOG = """Whatever is written is read again and run, MindIR by MindSpore and ONNX by ONNX Runtime, and compared with
the network on real images: the largest difference of a probability is printed. What does not agree is not kept. A model
card (.json, .md) goes with it.

examples:
  skipvit export runs/skipvit_mini_shapes --to onnx                uint8 NHWC in, probabilities out, batch 1
  skipvit export RUN --to mindir --batch_sizes 1,16 --dense        a file for each batch size
  skipvit export RUN --to onnx --input float32 --images images     normalised images in; compared on others
  skipvit export RUN --to safetensors                              weights with timm's names

exit code 1: the export failed, or does not agree with the network
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit export", "Export a trained network.", EPILOG)
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="folder of a run")
    add("--to", choices=("mindir", "onnx", "safetensors"), required=True, help="format")
    add_trained(parser)
    sizes = "images that a file takes at a time, a file each (default: 1)"
    add("--batch_sizes", type=batch_sizes, default=[1], metavar="N,N,...", help=sizes)
    pixels = "uint8: pixels, the normalisation is inside; float32: normalised pixels (default: uint8)"
    add("--input", choices=("uint8", "float32"), default="uint8", help=pixels)
    add("--out", metavar="FOLDER", help="where to write (default: export/ in the run's folder)")
    add("--images", nargs="+", metavar="PATH", help="images to compare on (default: the run's validation images)")
    add("--check", type=int, default=64, metavar="N", help="number of images to compare on (default: 64)")
    add("--tolerance", type=float, default=1e-4, metavar="X", help="largest difference allowed (default: 1e-4)")
    add("--licence", metavar="TEXT", help="of the weights, for the model card")
    config, o = from_words(parser, words, config_of)
    from skipvit.weights.card import LICENCE
    from skipvit.weights.export import export

    source = trained(config, o, "cpu" if o.to == "onnx" else "auto")
    numbers = {"batch_sizes": o.batch_sizes, "check": o.check, "tolerance": o.tolerance}
    export(source, o.to, o.out, input=o.input, images=o.images or (), licence=o.licence or LICENCE, **numbers)
