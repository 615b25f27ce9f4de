"""Text for people: tables, one-line errors, quantities, names that are safe to print, what a misspelt word meant."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MOST_OF_A_LINE = 300  # characters of an error that is not ours
MOST_OF_A_NAME = 60  # characters of a name or value that somebody else wrote
MOST_OF_AN_ERROR = 600
GAP = "  "


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), align: str = "", indent: int = 0) -> str:
    """Columns of fixed width, two spaces between them.

    Args:
        rows: cells of any type, shown by `str`; None is an empty cell. A row may have fewer cells than the others.
        head: a title for each column; a title may have several lines.
        align: `<` or `>` for each column. Without it, columns of numbers (`12`, `-0.5`, `95.10 %`, `1.40 x`) are
            right-aligned.
        indent: spaces before each line.
    """
    body = [["" if cell is None else str(cell) for cell in row] for row in rows]
    count = max(map(len, [head, *body]), default=0)
    body = [row + [""] * (count - len(row)) for row in body]
    align = align or "".join(">" if _all_numbers([row[i] for row in body]) else "<" for i in range(count))
    top = _head_lines([*head, *[""] * (count - len(head))]) if any(head) else []
    widths = [max(map(_width, column), default=0) for column in zip(*top, *body)]
    lines = []
    for row in [*top, *body]:
        spaces = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]
        cells = (space + cell if side == ">" else cell + space for cell, space, side in zip(row, spaces, align))
        lines.append(f"{' ' * indent}{GAP.join(cells)}".rstrip())
    return "\n".join(lines)


def _head_lines(head: Sequence[str]) -> list[list[str]]:
    """Titles of several lines as rows, the last line of each in the last row."""
    parts = [title.split("\n") for title in head]
    height = max(map(len, parts))
    return [list(row) for row in zip(*([""] * (height - len(part)) + part for part in parts))]


def _all_numbers(cells: list[str]) -> bool:
    """Whether a column is one of numbers; `-` stands for one that is not known."""
    cells = [cell for cell in cells if cell not in ("", "-")]
    return bool(cells) and all(re.match(r"[-+±]?\.?\d[^:]*$", cell) for cell in cells)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line: its first that says something, or the error's type."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return printable(f"{where}{error.strerror}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -=\t")]
    return printable(lines[0][:MOST_OF_A_LINE] if lines else type(error).__name__)


def printable(name: str) -> str:
    """A name for a line of text: line breaks, a terminal's escapes, bytes that are no UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def shortened(text: str, most: int = MOST_OF_A_NAME) -> str:
    """A name or value of any length and content for an error: printable, its middle left out if it is long."""
    text = printable(text if len(text) <= 2 * most else f"{text[:most]}{text[-most:]}")
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-(most // 3) + 3 :]}"


def as_utf8(name: str) -> str:
    """A file's name as MindRecord files and JSON keep it: of bytes that are no UTF-8 question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON; numbers that are not finite become null, as it has none."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def for_figure(name: str) -> str:
    """A name for a figure of matplotlib, which would read `$` as the beginning of a formula."""
    return printable(name).replace("$", r"\$")


def counted(number: int, one: str, many: str | None = None) -> str:
    """E.g. `1 image`, `12,000 images`; `many` where an s does not make the plural."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """E.g. `42 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes, e.g. `512 MiB`, `4.6 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if one of the known words is likely meant, else nothing. See `meant`."""
    found = meant(word, known)
    return f"; did you mean {found}?" if found else ""


def meant(word: str, known: Iterable[str]) -> str | None:
    """Which one of the known words is likely meant, if any.

    The last part of a dotted key counts first, written out or by its initials: `--lr` and `learning_rate` mean
    `--optim.lr`.
    """
    known = [name for name in known if name.strip("-")]
    ends: dict[str, list[str]] = {}
    for name in known:
        ends.setdefault(_end(name), []).append(name)
    end = _end(word)
    initials = "".join(part[0] for part in end.split("_") if part) if "_" in end else end
    same_end = ends.get(end) or ends.get(initials) or []
    close = difflib.get_close_matches(word, same_end or known, n=1, cutoff=0 if same_end else 0.6) or [
        ends[e][0] for e in difflib.get_close_matches(end, ends, n=1, cutoff=0.7)
    ]
    return close[0] if close else None


def _end(name: str) -> str:
    """`warmup_epochs` of `--optim.warmup-epochs`."""
    return name.rpartition(".")[2].strip("-").replace("-", "_")
