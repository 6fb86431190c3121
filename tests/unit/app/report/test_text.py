"""What is said of a run is true."""

import re
from pathlib import Path
from typing import Any

import pytest

from decayprune.app.report import Report
from decayprune.app.report.text import amount, rows, verdict
from run_folders import finished, make_run, unfinished


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def said(report: Report) -> str:
    return verdict(report.summary, report.trace)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "Half the compute (49.8 % of the MACs), 1.7x faster here, accuracy 97.2 % -> 97.0 %",
        ),
        ({"macs_after": 250}, "A quarter of the compute (25.0 % of the MACs), "),
        ({"macs_after": 400}, "40.0 % of the compute (MACs), "),
        ({"macs_after": 1000, "budget": {}}, "No compute saved (100.0 % of the MACs), "),
        ({"latency_after_ms": 6.8}, "2.0x slower here"),
        ({"latency_after_ms": 6.8}, "; for speed, bound the time itself with --latency-budget"),
        ({"latency_after_ms": 3.4}, "; for speed, bound the time itself with --latency-budget"),
        ({"latency_after_ms": 3.4}, "no faster here"),
        ({"latency_after_ms": 3.1}, "1.10x faster here"),
        ({"budget": {"macs": 0.4}}, "; the budget of 40.0 % of the MACs was missed"),
        ({"budget": {"params": 0.4}}, "; the budget of 40.0 % of the parameters was missed"),
    ],
)
def test_verdict(folder: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in said(finished(folder, **changes))


def test_what_is_faster_needs_no_advice(folder: Path) -> None:
    assert "--latency-budget" not in said(finished(folder))


def test_a_met_budget_is_not_called_missed(folder: Path) -> None:
    assert "missed" not in said(finished(folder, budget={"macs": 0.498, "params": 0.5}))


def test_table(folder: Path) -> None:
    shown = str(Report.read(folder))
    assert re.search(r"^accuracy +97\.20 % +97\.00 % +-0\.20 points$", shown, re.MULTILINE)
    assert re.search(r"^MACs +1\.00 k +498 +49\.8 % left$", shown, re.MULTILINE)
    assert re.search(r"^parameters +20\.0 k +9\.00 k +45\.0 % left$", shown, re.MULTILINE)
    pattern = r"^latency \(batch 32\) +3\.4 ms +2 ms +1\.7x as fast$"
    assert re.search(pattern, shown, re.MULTILINE)
    assert "structures: 3 decayed, 1 released, 2 removed" in shown
    assert "by at most 1e-06 (relative 2e-07)" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.isascii()  # prints on every terminal, whatever its encoding


def test_another_metric_is_told_as_it_is(folder: Path) -> None:
    changes = {"metric": "loss", "accuracy_before": 1.25, "accuracy_after": 1.3}
    report = finished(folder, **changes, judged_on="a held-out fifth")
    assert "loss 1.25 -> 1.3" in said(report)
    assert re.search(r"^loss +1\.25 +1\.3 +\+0\.05$", str(report), re.MULTILINE)
    assert "loss was measured on a held-out fifth" in str(report)


def test_table_of_an_unfinished_run(folder: Path) -> None:
    shown = str(unfinished(folder))
    assert "Unfinished: the last trace of the run is step 40, phase 'finetune'" in shown
    assert "3 decayed, 1 released, 2 pruned" in shown


def test_rows_cover_what_is_measured(folder: Path) -> None:
    report = Report.read(folder)
    assert report.summary is not None
    names = [row.name for row in rows(report.summary)]
    assert names == ["accuracy", "MACs", "parameters", "latency (batch 32)"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9996, "10.0 k"),
        (999_600, "1.00 M"),
        (4.1e12, "4.10 T"),
    ],
)
def test_amount(number: float, shown: str) -> None:
    assert amount(number) == shown
