"""`skipvit audit`: look for operators that an Ascend 910A runs slowly or not at all."""

from __future__ import annotations

import json

from skipvit.cli.options import OneLineParser, from_words
from skipvit.util.errors import RunError, UsageError

EPILOG = """The training and evaluation step of each forward are built as for Ascend, compiled by MindSpore on the
CPU as far as no device is needed, and read operator by operator. What that proves and what not: docs/audit.md.

examples:
  skipvit audit --config configs/skipvit_small_imagenet.yaml
  skipvit audit --config configs/skipvit_small_imagenet.yaml --routing gather   the formulation for the CPU

exit code 1: an operator that would not run on the AI cores, a dynamic shape, or a graph that does not compile
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit audit", "Look for operators that an Ascend 910A runs slowly or not at all.", EPILOG)
    add = parser.add_argument
    add("--config", default="skipvit_small_imagenet.yaml", metavar="FILE", help="YAML file of a run")
    add("--devices", type=int, default=8, metavar="N", help="devices that average their gradients (default: 8)")
    add("--json", action="store_true", help="print one JSON object")
    config, options = from_words(parser, words)
    if options.devices < 1:
        raise UsageError(f"--devices: {options.devices} is not a number of devices; use 1 or more")
    from skipvit.ascend.audit import as_dict, as_text, audit, wrong

    graphs = audit(config, options.devices)
    print(json.dumps(as_dict(graphs)) if options.json else as_text(graphs))
    if wrong(graphs):
        raise RunError(f"{wrong(graphs)} operators are not for the AI cores of an Ascend 910A; the findings name them")
