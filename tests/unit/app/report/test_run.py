"""The report: what is read is checked, and what is said is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decayprune.app.report import Report
from run_folders import (
    EVENTS,
    HISTORY,
    event,
    finished,
    make_run,
    page_of,
    summary,
    unfinished,
    write_lines,
)

NEWER = {"metric", "judged_on", "repeat", "latency_form"}
"""What reports of version 0.2 do not hold."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class TestReading:
    def test_json_is_what_was_read(self, folder: Path) -> None:
        report = Report.read(folder)
        assert json.loads(report.to_json()) == summary()
        assert (len(report.events), len(report.history), len(report.norms)) == (6, 4, 14)
        assert report.finished

    def test_an_unfinished_run_says_how_far_it_came(self, folder: Path) -> None:
        report = unfinished(folder)
        assert not report.finished
        assert json.loads(report.to_json()) == {
            "format": "decayprune-report", "version": 1, "finished": False, "last_step": 40,
            "decayed": 3, "released": 1, "pruned": 2,
        }  # fmt: skip

    def test_a_run_that_has_only_begun_is_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "settings.json").write_text("{}")
        report = Report.read(tmp_path)
        assert report.trace.last_step == 0
        assert "<h1>Unfinished" in page_of(report, tmp_path)

    def test_a_line_cut_short_by_a_kill_is_passed_over(self, folder: Path) -> None:
        path = folder / "events.jsonl"
        path.write_bytes(path.read_bytes() + b'{"step": 29, "kind": "rel\xc3')
        assert len(Report.read(folder).events) == len(EVENTS)

    def test_a_last_line_without_newline_counts(self, folder: Path) -> None:
        path = folder / "events.jsonl"
        path.write_text(path.read_text().rstrip("\n"))
        assert len(Report.read(folder).events) == len(EVENTS)

    def test_figures_that_are_not_finite_are_none(self, folder: Path) -> None:
        lines = '{"step": 41, "phase": "finetune", "loss": NaN, "lr": 0.1}\n'
        (folder / "history.jsonl").write_text(lines)
        assert Report.read(folder).history[0].loss is None

    def test_unknown_fields_are_passed_over(self, folder: Path) -> None:
        assert finished(folder, invented=1).finished

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="Give the --out folder"):
            Report.read(tmp_path / "none")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"found none of these in .*Give the --out folder"):
            Report.read(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (
                {"accuracy_after": "high"},
                "'accuracy_after': expected a finite number",
            ),
            (
                {"accuracy_after": float("nan")},
                "'accuracy_after': expected a finite.*None",
            ),
            ({"macs_before": True}, "'macs_before': expected a whole number > 0, found True"),
            ({"macs_after": 0}, "'macs_after': expected a whole number > 0"),
            ({"latency_after_ms": 0}, "'latency_after_ms': expected a number from 1e-9"),
            ({"seconds": 10**400}, "'seconds': expected a finite number"),
            ({"rounds": [1.5]}, "'rounds': expected a list of steps"),
            ({"settings": {"a": [1]}}, "'settings': expected an object of texts, numbers"),
            ({"widths": {}}, "'widths': expected a list"),
            (
                {"widths": [{"layer": "a", "before": 1}]},
                r"'widths'\[0\]: expected the field 'after'",
            ),
            ({"machine": "fast"}, "'machine': expected a JSON object"),
            ({"limits": {"stop": -1, "decay_steps": 1}}, "'limits', 'stop': expected a whole"),
            ({"host": 3}, "'host': expected a text or null"),
            ({"format": "other"}, "'format': 'decayprune-report'"),
            ({"version": 2}, "expected version 1 of the report, found 2; read it with"),
        ],
    )
    def test_damaged_figures_are_named(
        self, folder: Path, changes: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(ValueError, match=expected):
            finished(folder, **changes)

    @pytest.mark.parametrize("missing", sorted(summary().keys() - NEWER))
    def test_every_field_is_required(self, folder: Path, missing: str) -> None:
        content = summary()
        del content[missing]
        (folder / "report.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=missing):
            Report.read(folder)

    def test_a_report_of_an_older_version_is_read(self, folder: Path) -> None:
        content = {name: value for name, value in summary().items() if name not in NEWER}
        (folder / "report.json").write_text(json.dumps(content))
        found = Report.read(folder).summary
        assert found is not None
        assert (found.metric, found.judged_on, found.repeat) == ("accuracy", "the test split", "")

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[" * 100_000, b"[1]", b"\xff\xfe", b"1" * 9999]
    )
    def test_damaged_json(self, folder: Path, content: bytes) -> None:
        (folder / "report.json").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"report\.json: expected .*, found .* run the command"
        ):
            Report.read(folder)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("nonsense", "line 7: expected JSON"),
            ('{"step": 1}\n', "line 7: expected the field 'kind'"),
            ('{"step": -1, "kind": "decay"}\n', "line 7, 'step': expected a whole number"),
            (json.dumps(event(1, "vanish", 0)), "'kind': expected one of 'decay'"),
            (json.dumps({**event(1, "decay", 0), "kind": []}), "'kind': expected one of"),
        ],
    )
    def test_damaged_lines_are_named(self, folder: Path, line: str, expected: str) -> None:
        with (folder / "events.jsonl").open("a") as file:
            file.write(line)
        with pytest.raises(ValueError, match=expected):
            Report.read(folder)

    def test_an_error_stays_short(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="expected a text") as caught:
            finished(folder, model=["x" * 100_000])
        assert len(str(caught.value)) < 600

    def test_steps_of_the_pruner_alone_are_refused(self, folder: Path) -> None:
        write_lines(folder / "events.jsonl", [event(0, "decay", 0)])
        with pytest.raises(ValueError, match="steps counted over the whole run"):
            Report.read(folder)

    def test_steps_that_start_again_in_a_phase_are_refused(self, folder: Path) -> None:
        write_lines(folder / "history.jsonl", [*HISTORY, {**HISTORY[-1], "step": 1}])
        with pytest.raises(ValueError, match=r"history\.jsonl: expected steps counted over"):
            Report.read(folder)
