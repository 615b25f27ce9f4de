"""`skipvit bench`: training and inference throughput of several configs in one interleaved run."""

from __future__ import annotations

import json
from pathlib import Path

from skipvit.cli.options import OneLineParser, batch_sizes, from_words
from skipvit.measure.bench.variants import bench
from skipvit.util.errors import UsageError
from skipvit.util.files import replacing

EPILOG = """The first config's dense forward is the baseline. Each config adds its other forwards, or the dense one if
it has no other. Keys such as --data.batch_size 16 are for all configs. How it is measured: docs/bench.md.

examples:
  skipvit bench configs/skipvit_small_imagenet.yaml --data.batch_size 16
  skipvit bench configs/skipvit_small_imagenet.yaml --mode inference --batch_sizes 1,4,16,64 --out speed.png
  skipvit bench a.yaml b.yaml c.yaml --parts --with_data --json > bench.json

exit code 1: a ratio is too uncertain to be reported, or a process died
"""


def parser() -> OneLineParser:
    result = OneLineParser("skipvit bench", "Time training or inference of several configs side by side.", EPILOG)
    add = result.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="YAML files of runs")
    add("--mode", choices=("training", "inference"), default="training", help="whole steps, or forwards alone")
    add("--batch_sizes", type=batch_sizes, metavar="N,N,...", help="one after another (default: each config's own)")
    add("--parts", action="store_true", help="also forward, backward, update and routing alone (training)")
    add("--with_data", action="store_true", help="also with the config's own images (training)")
    add("--rounds", type=int, default=30, metavar="N", help="turns of each (default: 30)")
    widest = "widest 95 %% interval, as a share, with which a ratio is reported (default: 0.05)"
    add("--widest", type=float, default=0.05, metavar="X", help=widest)
    add("--out", metavar="FILE", help="draw speed-ups and memory into this .png")
    add("--json", action="store_true", help="print one JSON object")
    return result


def main(words: list[str]) -> None:
    config, o = from_words(parser(), words, lambda options: options.configs[0])
    others = [from_words(parser(), words, lambda _, file=file: file)[0] for file in o.configs[1:]]
    if o.out and (Path(o.out).suffix != ".png" or not Path(o.out).parent.is_dir()):
        raise UsageError(f"--out: {o.out} is not a .png file in a folder that exists")
    result = bench([config, *others], o.rounds, o.mode, o.batch_sizes, o.parts, o.with_data, o.widest)
    print(json.dumps(result.as_dict(), allow_nan=False) if o.json else result.table())
    if o.out:
        with replacing(Path(o.out)) as partial:
            result.figure().savefig(partial, dpi=110)
    result.refuse_uncertain()
