"""`skipvit mindrecord`: an image folder into MindRecord files."""

from __future__ import annotations

import argparse
from pathlib import Path

from skipvit.cli.options import OneLineParser
from skipvit.data.classes import refuse_other_classes
from skipvit.data.sources.image_folder import open_split
from skipvit.data.sources.mindrecord_writer import convert

LARGEST_SHARD = 1_000_000
SPLITS = ("train", "val")

DESCRIPTION = """\
Convert an image folder (FOLDER/<split>/<class>/<image>) into MindRecord files in OUT. Images are copied as they are,
not decoded. Interrupted, it goes on where it was when it is started again with the same words."""

EPILOG = """\
each record has: image (the encoded image), label (int32, position of the class among the sorted class names), name
(<class>/<image>). OUT/<split>.json lists classes and files.

example:
  skipvit mindrecord imagenet imagenet_mindrecord"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit mindrecord", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="image folder to read")
    add("out", type=Path, metavar="OUT", help="folder to write; created if it is not there")
    add("--split", nargs="+", choices=SPLITS, default=SPLITS, help="what to convert (default: both)")
    add("--shard_size", type=_shard_size, default=10000, metavar="N", help="images a file (default: 10000)")
    options = parser.parse_args(words)
    sources = {split: open_split(options.folder, split) for split in dict.fromkeys(options.split)}
    if len(sources) == 2:
        refuse_other_classes(sources["train"], sources["val"])
    for split, source in sources.items():
        print(convert(source, options.out, split, options.shard_size))


def _shard_size(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= LARGEST_SHARD:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {LARGEST_SHARD}")
    return int(word)
