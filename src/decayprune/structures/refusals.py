"""Widths that are left alone, in words: each reason once, however many layers share it."""

from __future__ import annotations

from collections.abc import Iterable

from decayprune.structures.structure_map import Refusal


def alike(refusals: Iterable[Refusal]) -> list[list[Refusal]]:
    """Refusals of one reason together; its particulars, in parentheses, may differ."""
    kinds: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        kinds.setdefault(refusal.reason.partition(" (")[0], []).append(refusal)
    return list(kinds.values())


def by_weight(refusals: Iterable[Refusal]) -> list[str]:
    """Each reason with its widest layer, in a line; first what keeps the most channels."""
    lines = []
    for kind in sorted(alike(refusals), key=lambda kind: -sum(r.width for r in kind)):
        widest = max(kind, key=lambda r: r.width)
        more = f" and {len(kind) - 1} more" if len(kind) > 1 else ""
        name = f"`{widest.layer}`" if widest.layer else "the model itself"
        lines.append(f"{name} ({widest.width} wide){more}: {widest.reason}")
    return lines
