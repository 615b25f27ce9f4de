"""What the package says while it works: a logger, which the command line shows and a notebook may.

Progress goes to `log.info`, what a person should know and nothing fails for to `log.warning`; a line each.
"""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from skipvit.util.text import printable

log = logging.getLogger("skipvit")


class _Lines(logging.Handler):
    """Lines on stdout and warnings on stderr, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = "\n".join(map(printable, record.getMessage().split("\n")))  # names may be anything
            if record.levelno >= logging.WARNING:
                tqdm.write(f"warning: {text}", file=sys.stderr)
            else:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
        except OSError:
            pass  # a pipe whose other end is gone


def show() -> None:
    """Print what is logged, as the commands do."""
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
    log.setLevel(logging.INFO)
    log.propagate = False
