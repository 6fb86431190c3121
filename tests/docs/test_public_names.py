"""Public names: importable, documented in the docs, and their doctests hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import decayprune as dp

API = Path(__file__).parents[2] / "docs" / "api.md"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dp.__path__, "decayprune.")
    if not module.name.endswith("__main__")
)
OF_FRAMEWORKS = ("decayprune.integrations.", "decayprune.app.pretrained.minilm")


@pytest.mark.parametrize("name", dp.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert getattr(dp, name).__doc__
    if name != "__version__":
        assert re.search(rf"^::: decayprune\.{name}$", API.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("module", ["decayprune.hosts", "decayprune.structures"])
def test_names_of_packages_are_documented(module: str) -> None:
    listed = getattr(importlib.import_module(module), "__all__", [])
    page = API.read_text(encoding="utf-8")
    for name in listed:
        documented = f"::: {module}.{name}" in page or f"::: {module}\n" in page
        assert documented, f"docs/api.md does not mention {module}.{name}"


def test_all_is_sorted_and_complete() -> None:
    assert list(dp.__all__) == sorted(dp.__all__)
    public = {
        name
        for name, value in vars(dp).items()
        if not (name.startswith("_") or isinstance(value, ModuleType))
    }
    assert public == set(dp.__all__) - {"__version__"}


@pytest.mark.parametrize("name", MODULES)
def test_the_doctests_of_a_module(name: str) -> None:
    if name.startswith(OF_FRAMEWORKS):
        pytest.importorskip(name, reason="its framework is not installed")
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is for"
    assert doctest.testmod(module).failed == 0


def test_there_are_doctests() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    own = [name for name in MODULES if not name.startswith(OF_FRAMEWORKS)]
    examples = [t for n in own for t in finder.find(importlib.import_module(n)) if t.examples]
    assert len(examples) >= 3
