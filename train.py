"""Train: `python train.py` runs the demo, `python train.py --help` lists every option."""

import sys

from skipvit.cli import door

if __name__ == "__main__":
    door("train", sys.argv[1:])
