"""Evaluate: `python eval.py RUN` prints top-1 and top-5, dense and routed."""

import sys

from skipvit.cli import run

if __name__ == "__main__":
    sys.exit(run("eval", sys.argv[1:]))
