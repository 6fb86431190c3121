"""How figures are laid out: Markdown tables, and a line about the machine."""

from __future__ import annotations

from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay rows out as Markdown; the first column is left-aligned, the others right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine(found: dict[str, Any]) -> str:
    """What it was measured on, in one line."""
    return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in found.items())
