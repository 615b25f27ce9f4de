"""`skipvit train`: train a network as a configuration says, into a run folder."""

from __future__ import annotations

from skipvit.cli.options import OneLineParser, from_words

DEMO = "skipvit_mini_shapes_cpu.yaml"
EPILOG = """examples:
  python train.py                                        the demo, about two minutes on two CPU cores
  python train.py --config configs/vit_mini_shapes_cpu.yaml
  python train.py --name keep30 --routes '[{start: 2, end: 5, keep_ratio: 0.3}]'
  python train.py --resume auto                          go on with a run that was stopped
"""


def parser() -> OneLineParser:
    result = OneLineParser("train.py", "Train a vision transformer with routes.", EPILOG)
    add = result.add_argument
    add("--config", default=DEMO, metavar="FILE", help="YAML file of the run, or a shipped one's name (default: demo)")
    add("--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)")
    add("--resume", choices=["never", "auto"], default="never", help="auto: go on from the newest checkpoint")
    add("--profile", action="store_true", help="write MindSpore's trace of ten steps into the run's folder")
    add("--check", action="store_true", help="only look whether the run could begin: config, folder, images, disk")
    return result


def main(words: list[str]) -> None:
    config, options = from_words(parser(), words)
    from skipvit import training

    if options.check:
        training.check(config, options.runs, options.resume)
    else:
        training.train(config, options.runs, options.resume, options.profile)
