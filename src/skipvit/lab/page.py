"""A report as blocks of text, tables and figures: one self-contained HTML page, or Markdown with PNG files."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

DPI = 100

STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1b1f24; background: #fff;
       max-width: 1240px; margin: 0 auto; padding: 1.5rem 2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #d0d7de; }
p, li { max-width: 85ch; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #eaeef2; white-space: nowrap; }
th { border-bottom: 2px solid #afb8c1; vertical-align: bottom; white-space: normal; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr:hover td { background: #f6f8fa; }
figure { margin: 1rem 0; } figcaption { color: #57606a; font-size: 14px; max-width: 85ch; }
img { max-width: 100%; height: auto; } code { background: #f6f8fa; padding: .1rem .3rem; border-radius: 4px; font-size: 13px; }
@media print { body { padding: 0; } h2, figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    """Paragraphs; with `bullets` a list."""

    lines: tuple[str, ...]
    bullets: bool = False


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its file and what it shows."""

    name: str
    figure: Figure
    caption: str


Block = Heading | Text | Table | Plot


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def to_html(title: str, blocks: list[Block]) -> str:
    """One page that needs nothing else: no script, no font, no file, no network."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Text):
        lines = [_code(line) for line in block.lines]
        if block.bullets:
            return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
        return "".join(f"<p>{line}</p>" for line in lines)
    if isinstance(block, Table):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in block.head)
        rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    data = base64.b64encode(png(block.figure)).decode()
    caption = escape(block.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _code(line: str) -> str:
    """Text between backticks as code."""
    parts = escape(line).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def to_markdown(title: str, blocks: list[Block], folder: Path) -> str:
    """Markdown; the figures are written into `folder` as PNG files and named there."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block.text}")
        elif isinstance(block, Text):
            parts.append("\n".join(f"- {line}" for line in block.lines) if block.bullets else "\n\n".join(block.lines))
        elif isinstance(block, Table):
            parts.append(_markdown_table(block))
        else:
            (folder / f"{block.name}.png").write_bytes(png(block.figure))
            parts.append(f"![{block.caption}]({block.name}.png)\n\n{block.caption}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [table.head, ("---", *["---:"] * (len(table.head) - 1)), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
