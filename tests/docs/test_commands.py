"""Command lines shown in the docs parse, and tables show the committed figures."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.docs.test_blocks import PAGES, ROOT

from decayprune.app.cli.app import app

SHELL = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
LINES = sorted(
    {
        line.partition("decayprune ")[2]
        for page in PAGES
        for block in SHELL.findall(page.read_text(encoding="utf-8"))
        for line in block.splitlines()
        if re.search(r"(^|&& )decayprune ", line)
    }
)
OPTIONS: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "options.py"))
with pytest.MonkeyPatch.context() as path:  # as python docs/tables.py has it
    path.syspath_prepend(str(ROOT / "docs"))
    TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_there_are_command_lines() -> None:
    assert any(line == "prune" for line in LINES)
    assert len(LINES) >= 8


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").touch()  # what --config reads
    name, *arguments = shlex.split(line)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands
    commands[name].make_context(name, arguments)  # raises for an unknown option or a wrong value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert TABLES["filled"](text) == text, "run python docs/tables.py"


def test_the_options_are_those_of_the_command() -> None:
    text = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    assert OPTIONS["filled"](text) == text, "run python docs/options.py"
    shown = set(re.findall(r"<!-- options:(\w+) -->", text))
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_a_table_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "machine": {"cpu": "abacus", "threads": 1},
        "repeats": 3,
        "bars": {"idle": 0.02},
        "figures": {"idle": 0.0123},
    }
    (tmp_path / "overhead.json").write_text(json.dumps(found))
    monkeypatch.setitem(TABLES["filled"].__globals__, "RESULTS", tmp_path)
    text = "a\n<!-- table:overhead -->\nold\n<!-- /table -->\nb\n<!-- table:x -->\n<!-- /table -->"
    new = TABLES["filled"](text)
    assert "| idle | 0.0123 | 0.02 |" in new
    assert "Median of 3; cpu abacus, threads 1." in new
    assert "old" not in new
    assert new.endswith("<!-- /table -->\nb\n<!-- table:x -->\n<!-- /table -->")
