"""What docs/method.md says to compute a formula can be found under that name."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

import decayprune

PAGE = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
ROOMS = "|".join(module.name for module in pkgutil.iter_modules(decayprune.__path__))
NAMED = sorted(set(re.findall(rf"`((?:{ROOMS})\.[\w.]+)`", PAGE)))


def test_the_page_names_functions() -> None:
    assert "surgery.cut.cut" in NAMED


@pytest.mark.parametrize("name", NAMED)
def test_a_named_function_exists(name: str) -> None:
    pkgutil.resolve_name(f"decayprune.{name}")
