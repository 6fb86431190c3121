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


# ---------------------------------------------------------------- tests mirror src

SOURCE, UNIT = ROOT / "src" / "decayprune", ROOT / "tests" / "unit"

TESTED_ELSEWHERE = {
    # No behaviour of its own.
    "session/follower": "a protocol; every host fulfils it in tests/contract",
    "method/selector": "a protocol; every host fulfils it in tests/contract",
    "structures/tracing/marks": "records; what rules make of them is tested with the rules",
    # A published method is compared as a whole with its slow twin in tests/reference.
    "hosts/depgraph/chunks": "unit/hosts/depgraph/test_host.py",
    "hosts/depgraph/rehearsal": "unit/hosts/depgraph/test_host.py",
    "hosts/depgraph/removal": "unit/hosts/depgraph/test_host.py",
    "hosts/gate_decorator/gate_selection": "unit/hosts/gate_decorator/test_host.py",
    "hosts/gate_decorator/gates": "unit/hosts/gate_decorator/test_host.py",
    "hosts/gate_decorator/tick_rates": "unit/hosts/gate_decorator/test_host.py",
    "hosts/gate_decorator/ticks": "unit/hosts/gate_decorator/test_host.py",
    "hosts/otov2/directions": "unit/hosts/otov2/test_parts.py, against torch's own optimizers",
    "hosts/otov2/penalty": "unit/hosts/otov2/test_dhspg.py",
    "hosts/otov2/products": "unit/hosts/otov2/test_parts.py, against loops",
    "hosts/otov2/zero_invariant": "unit/hosts/otov2/test_dhspg.py",
    "hosts/otov2/zero_invariant_optimizer": "unit/hosts/otov2/test_dhspg.py and test_hesso.py",
}
"""Modules without a test of their own name, and where they are tested (in tests/)."""


def test_every_module_has_a_test_of_its_name_in_the_same_place() -> None:
    modules = {
        path.relative_to(SOURCE).with_suffix("").as_posix()
        for path in SOURCE.rglob("*.py")
        if not path.name.startswith("__")  # rooms re-export; test_public_names.py holds them
    }
    tested = {
        path.relative_to(UNIT).with_name(path.stem.removeprefix("test_")).as_posix()
        for path in UNIT.rglob("test_*.py")
    }
    without = modules - tested
    missing = sorted(without - TESTED_ELSEWHERE.keys())
    assert not missing, "add tests/unit/<room>/test_<module>.py"
    stale = sorted(TESTED_ELSEWHERE.keys() - without)
    assert not stale, "these are gone or have a test of their own: take them off the list"


def test_the_places_that_are_named_exist() -> None:
    for where in TESTED_ELSEWHERE.values():
        for page in re.findall(r"unit/\S+\.py", where):
            assert (ROOT / "tests" / page).is_file(), page
