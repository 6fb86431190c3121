"""Every example runs from start to end, as a reader would run it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_the_four_examples_are_there() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"plain_loop", "amp_accumulation", "own_importance", "resume"} <= names


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    shown = capsys.readouterr().out
    assert "structures removed" in shown  # the report of compact(): it went all the way
    assert len(example.read_text(encoding="utf-8").splitlines()) < 120
