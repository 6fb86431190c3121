"""The notebooks run from the first cell to the last, and what they show has a table."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["prune_in_a_notebook", "watch_decays"]


def run(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell as a notebook does: its last expression is what it shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] for c in content["cells"] if c["cell_type"] == "code")
    names: dict[str, Any] = {}
    tables, words = [], []
    for cell in cells:
        value = run(cell, names)
        words.append(repr(value))
        if hasattr(value, "_repr_html_"):
            tables.append(value)
    assert tables
    assert all("<table>" in table._repr_html_() for table in tables)
    assert any("finished: compact() is next" in said for said in words)
    report = tables[-1]
    assert report.macs_after <= 0.5 * report.macs_before
