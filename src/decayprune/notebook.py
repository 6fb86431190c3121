"""Figures as an HTML table, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, title: str, below: str) -> str:
    """A table whose first column is words, and whose other columns are set as numbers.

    Args:
        head: Names of the columns.
        rows: Cells; whole numbers get commas.
        title: A line above it.
        below: A line under it; empty for none.
    """
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    foot = f"<p>{escape(below)}</p>" if below else ""
    return f"<p><b>{escape(title)}</b></p><table>{''.join(lines)}</table>{foot}"


def _row(tag: str, cells: Sequence[object]) -> str:
    words = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
    first, *others = (escape(word) for word in words)
    numbers = "".join(f'<{tag} style="text-align:right">{word}</{tag}>' for word in others)
    return f'<tr><{tag} style="text-align:left">{first}</{tag}>{numbers}</tr>'
