"""The results of the field zoo as one document, and as a page by family."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from .families import FAMILIES
from .measure import BUDGET


def document(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All results by family, with what they were measured with."""
    packages = ["torch", *(family for family in FAMILIES if " " not in family)]
    installed = {d.name.replace("-", "_"): d.version for d in metadata.distributions()}
    versions = {package: installed.get(package, "not installed") for package in packages}
    versions = {"cpu": platform.machine(), "threads": "1", **versions}
    families = {
        family: {name: rows[name] for name in names if name in rows}
        for family, names in FAMILIES.items()
    }
    return {"machine": versions, "budget": BUDGET, "families": families}


def page(found: dict[str, Any]) -> str:
    """The page as Markdown."""
    families: dict[str, dict[str, Any]] = found["families"]
    lines = [
        "# The field zoo",
        "",
        "What people really prune, from configurations, with random weights and small inputs: a",
        f"budget of {found['budget']:.0%} of the MACs, two decay steps under a random loss, the",
        "cut, outputs compared on inputs that the library has not seen, in evaluation and in",
        "training mode, a training step after, saved and loaded. The error is the largest",
        "difference of an output, relative to the largest, in float32; left alone is what stays",
        "whole, but for a single layer that is the output. Seconds are of building on one CPU",
        "thread of a busy machine. Made by `python benchmarks/field_zoo.py --collect` "
        f"({', '.join(f'{k} {v}' for k, v in found['machine'].items())}).",
        "",
        "| family | models | pruned to budget, exact | refused | failed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    totals = [0, 0, 0, 0]
    for family, rows in families.items():
        counts = _counts(rows)
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        lines.append(f"| {family} | {' | '.join(map(str, counts))} |")
    lines.append(f"| **all** | {' | '.join(f'**{n}**' for n in totals)} |")
    for family, rows in families.items():
        if rows:
            lines += ["", f"## {family[0].upper()}{family[1:]}", "", *_table(rows)]
    return "\n".join([*lines, ""])


def _counts(rows: dict[str, dict[str, Any]]) -> list[int]:
    outcomes = [row["outcome"] for row in rows.values()]
    pruned, refused = outcomes.count("pruned"), outcomes.count("refused")
    return [len(rows), pruned, refused, len(rows) - pruned - refused]


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| model | parameters | left | MACs left | error | build | left alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in rows.items():
        before = f"{row['params_before'] / 1e6:.2f} M" if "params_before" in row else ""
        build = f"{row['build_seconds']:.1f} s" if "build_seconds" in row else ""
        if row["outcome"] != "pruned":
            words = f"**{row['outcome']}**: {_cell(row.get('words', ''))}"
            lines.append(f"| {name} | {before} | | | | {build} | {words} |")
            continue
        error = max(row.get("error_evaluation", 0), row.get("error_training", 0))
        lines.append(
            f"| {name} | {before} | {row['params_after'] / 1e6:.2f} M "
            f"| {row['macs_after'] / row['macs_before']:.1%} | {error:.0e} | {build} "
            f"| {_left(row['left_alone'])} |"
        )
    return lines


def _left(reasons: list[tuple[str, int, str]]) -> str:
    """What stays, each kind of reason once, with the first layer and how many more."""
    kinds: dict[str, tuple[int, str]] = {}
    for reason, count, first in reasons:
        kind = reason.partition(" (")[0]
        if (kind, count) == ("the model's output", 1):
            continue
        known = kinds.get(kind, (0, first))
        kinds[kind] = (known[0] + count, known[1])
    words = [
        f"{kind}: `{first}`{f' and {count - 1} more' if count > 1 else ''}"
        for kind, (count, first) in kinds.items()
    ]
    return _cell("; ".join(words))


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 400 else f"{text[:400]} …"
