"""A report as blocks of text, tables and figures: one self-contained HTML page, or Markdown with PNG files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from skipvit.util.files import write_whole
from skipvit.util.text import printable


@dataclass
class Heading:
    text: str


@dataclass
class Text:
    """Paragraphs; with `bullets` a list. What stands between backticks is code."""

    lines: Sequence[str]
    bullets: bool = False


@dataclass
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Plot:
    """A figure, or the PNG file of one; the name of its file and what it shows."""

    name: str
    figure: Figure | bytes
    caption: str

    @cached_property
    def png(self) -> bytes:
        return self.figure if isinstance(self.figure, bytes) else to_png(self.figure)

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


Block = Heading | Text | Table | Plot


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def to_html(title: str, blocks: list[Block]) -> str:
    """One page that needs nothing else."""
    # Names come from files that anybody may have written. What is no plain text is a piece that is rendered already.
    shown: Any = {"finalize": lambda value: printable(value) if type(value) is str else value}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **shown)
    pairs = [(type(block).__name__, block) for block in blocks]
    return environment.get_template("report.html.jinja").render(title=title, blocks=pairs)


def to_markdown(title: str, blocks: list[Block], folder: Path) -> str:
    """Markdown; the figures are written into `folder` as PNG files and named there."""
    parts, taken = [f"# {_escaped(title)}"], set[str]()
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {_escaped(block.text)}")
        elif isinstance(block, Text):
            lines = [f"- {_escaped(line)}" if block.bullets else _escaped(line) for line in block.lines]
            parts.append(("\n" if block.bullets else "\n\n").join(lines))
        elif isinstance(block, Table):
            rows = [block.head, ["---", *["---:"] * (len(block.head) - 1)], *block.rows]
            lines = [" | ".join(_escaped(cell).replace("|", "\\|") for cell in row) for row in rows]
            parts.append("\n".join(f"| {line} |" for line in lines))
        else:
            file, caption = _file(block.name, taken), _escaped(block.caption)
            write_whole(folder / file, block.png)
            parts.append(f"![{caption}]({file})\n\n{caption}")
    return "\n\n".join(parts) + "\n"


def _escaped(line: str) -> str:
    """Text that means nothing else in Markdown; what stands between backticks is left as code."""
    parts = printable(line).split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\<*\[\]])", r"\\\1", part) for i, part in enumerate(parts))


def _file(name: str, taken: set[str]) -> str:
    """A name for a figure's file, like no other one's, whatever labels have in common when they are made plain."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    numbered = (plain, *(f"{plain}_{i}" for i in range(2, 2 + len(taken))))
    free = next(candidate for candidate in numbered if candidate.lower() not in taken)
    taken.add(free.lower())
    return f"{free}.png"
