"""The committed figures of the pretrained models are those of the committed runs."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PRETRAINED = Path(__file__).resolve().parents[2] / "benchmarks" / "pretrained"


@pytest.fixture(scope="module")
def tables() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PRETRAINED))
        yield importlib.import_module("tables")


@pytest.fixture(scope="module")
def runs(tables: ModuleType) -> dict[str, tuple[list[dict[str, Any]], int]]:
    return {task: tables.read(folder / "runs") for task, folder in tables.RESULTS.items()}


def test_pages(tables: ModuleType, runs: dict[str, Any]) -> None:
    for task, (of_task, left_out) in runs.items():
        committed = (tables.RESULTS[task] / "tables.md").read_text()
        text = "\n".join(tables.document(task, of_task, left_out))
        assert committed.startswith(text + "\n"), "run python benchmarks/tables.py"


def test_columns_of_the_docs(tables: ModuleType, runs: dict[str, Any]) -> None:
    of_task = {task: found for task, (found, _) in runs.items()}
    for name in tables.COLUMNS:
        committed = json.loads((PRETRAINED.parent / "results" / f"{name}.json").read_text())
        found = json.loads(json.dumps(tables.column(name, of_task)))
        assert found == committed, "run python benchmarks/tables.py"


def test_a_mean_is_that_of_its_files(tables: ModuleType) -> None:
    name, arm = "pretrained_short", "sensitive_abrupt"
    files = PRETRAINED.glob(f"results/runs/{arm}-0.25-300-s*.json")
    expected = statistics.fmean(100 * json.loads(file.read_text())["accuracy"] for file in files)
    column = json.loads((PRETRAINED.parent / "results" / f"{name}.json").read_text())
    found = column["arms"][arm]["accuracies"]
    assert statistics.fmean(found) == pytest.approx(expected, abs=1e-3)
    assert len(found) >= 7
