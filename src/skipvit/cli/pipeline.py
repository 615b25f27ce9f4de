"""`skipvit pipeline`: how many training images a second this machine makes, and how many cores feed a device."""

from __future__ import annotations

import json

from skipvit.cli.options import OneLineParser, from_words
from skipvit.data.open import open_source
from skipvit.measure.pipeline import as_text, measure, report, thread_counts
from skipvit.util.cores import cores
from skipvit.util.errors import UsageError

EPILOG = """The data pipeline alone, on the training images: no network, no device. Each number of threads has its turn
in every round, and medians are printed. Processor time does not count what else runs on the machine; the images a
second do. Files that are read again come from the machine's memory.

examples:
  skipvit pipeline --data.path /data/imagenet
  skipvit pipeline --data.path /data/imagenet --config configs/vit_small_imagenet.yaml --need 2000 --threads 16
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit pipeline", "Time the data pipeline alone.", EPILOG)
    add = parser.add_argument
    add("--config", default="skipvit_small_imagenet.yaml", metavar="FILE", help="YAML file of a run")
    add("--threads", type=int, metavar="N", help="most threads to try (default: the machine's cores, at most 8)")
    add("--seconds", type=float, default=10.0, metavar="S", help="measured for each setting (default: 10)")
    add("--need", type=float, default=1000.0, metavar="X", help="images/s that a device takes (default: 1000)")
    add("--json", action="store_true", help="print one JSON object")
    config, options = from_words(parser, words)
    threads = min(cores(), 8) if options.threads is None else options.threads
    for name, value in {"threads": threads, "seconds": options.seconds, "need": options.need}.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"--{name}: {value:g} is not a number above 0")
    source = open_source(config, "train")
    settings = measure(config, source, thread_counts(threads), options.seconds)
    result = report(config, len(source), settings, options.need)
    print(json.dumps(result) if options.json else as_text(result))
