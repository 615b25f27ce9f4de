"""`skipvit importance`: measure what a trained network's routes keep."""

from __future__ import annotations

from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.trained import add_trained, config_of, trained

EPILOG = """examples:
  skipvit importance runs/skipvit_mini_shapes
  skipvit importance RUN --scorers cls_attention,random --images 100
  skipvit importance RUN --masks masks/ --data.path /data/birds   masks/<class>/<image>.png, white on the object
  skipvit importance RUN --routes '[{start: 2, end: 5}]' --eval.main dense
                                                      of a dense run: where a route would begin

Writes RUN/importance/: importance.json, importance.txt, importance.png, kept.png. What is measured: docs/importance.md.
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit importance", "Measure what a trained network's routes keep.", EPILOG)
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="folder of a run")
    add_trained(parser)
    add("--scorers", metavar="A,B", help="scorers to measure; the usual ones if not given")
    add("--masks", metavar="FOLDER", help="masks of an image folder's validation images, as <class>/<image>.png")
    add("--images", type=int, default=200, metavar="N", help="validation images, evenly spaced (default: 200)")
    add("--out", metavar="FOLDER", help="where to write, instead of RUN/importance")
    config, options = from_words(parser, words, config_of)
    from skipvit.insight.importance import importance

    scorers = options.scorers.split(",") if options.scorers else None
    importance(trained(config, options), scorers, options.images, options.masks, options.out)
