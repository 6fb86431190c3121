"""The plan of the house in docs/design.md is the house."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_every_room_is_on_the_plan() -> None:
    plan = set(re.findall(r"^[├└]── ([\w.]+)/?", PAGE, re.MULTILINE))
    rooms = {
        path.name
        for path in (ROOT / "src" / "decayprune").iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert plan == rooms


def test_the_layers_are_those_that_are_held() -> None:
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    held = re.findall(r'^  "([^"]+)",$', config.partition("layers = [")[2].partition("]")[0], re.M)
    shown = PAGE.partition("## Who may import whom")[2].partition("```text\n")[2].partition("```")
    assert shown[0].splitlines() == held
