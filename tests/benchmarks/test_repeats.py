"""Repeats stand together as long as machine and versions are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_repeats_of_one_machine_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from repeats import add

    file = tmp_path / "figures.json"
    add(file, {"torch": "2.6"}, {"rows": [1]})
    add(file, {"torch": "2.6"}, {"rows": [2]})
    assert json.loads(file.read_text())["repeats"] == [{"rows": [1]}, {"rows": [2]}]
    add(file, {"torch": "2.7"}, {"rows": [3]})
    assert json.loads(file.read_text()) == {
        "machine": {"torch": "2.7"},
        "repeats": [{"rows": [3]}],
    }
