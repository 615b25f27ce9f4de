"""Evaluate: `python eval.py RUN` prints top-1 and top-5, dense and routed."""

import sys

from skipvit.cli import door

if __name__ == "__main__":
    door("eval", sys.argv[1:])
