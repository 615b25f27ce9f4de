"""`skipvit cost`: what a configuration costs by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

from skipvit.cli.options import OneLineParser, from_words
from skipvit.measure.cost import cost
from skipvit.util.errors import UsageError
from skipvit.util.files import make_folder, replacing

IMAGES = (".png", ".svg", ".pdf")
EPILOG = """examples:
  skipvit cost --config configs/skipvit_small_imagenet.yaml
  skipvit cost --config configs/skipvit_small_imagenet.yaml --model.image_size 384 --out tokens.png

Counted are matrix products and what the backward keeps; docs/bench.md compares with measured times and memory.
"""


def main(words: list[str]) -> None:
    about = "What a configuration costs, by arithmetic: parameters, multiply-accumulates, memory, ideal gain."
    parser = OneLineParser("skipvit cost", about, EPILOG)
    add = parser.add_argument
    add("--config", default="skipvit_small_imagenet.yaml", metavar="FILE", help="YAML file of a run, or a shipped one")
    add("--json", action="store_true", help="print one JSON object")
    add("--out", metavar="FILE", help="draw the tokens that each block sees, as an image (.png, .svg, .pdf)")
    config, options = from_words(parser, words)
    out = Path(options.out) if options.out else None
    if out and out.suffix not in IMAGES:
        raise UsageError(f"--out: {out} is not an image file; use {', '.join(IMAGES)}")
    result = cost(config)
    print(json.dumps(result.as_dict()) if options.json else result.table())
    if out:
        make_folder(out.parent, "image's folder", "--out")
        with replacing(out) as partial:
            result.figure().savefig(partial, dpi=110)
