"""Train: `python train.py` runs the demo, `python train.py --help` lists every option."""

import sys

from skipvit.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
