from pathlib import Path

import pytest

from decayprune.app.report import Report
from decayprune.app.report.plots import norms, training
from run_folders import HISTORY, NORMS, make_run, unfinished, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_curves_mark_phases_rounds_and_the_accuracy_before(folder: Path) -> None:
    found = training(Report.read(folder))
    assert found is not None
    assert [(p.x, p.title) for p in found.phases] == [
        (0, "train"), (250, "prune"), (1000, "fine-tune"),
    ]  # fmt: skip
    assert found.rounds == [250, 500]
    names = [panel.name for panel in found.panels]
    assert names == ["accuracy", "loss", "MACs left, commitments counted"]
    assert [panel.reference is not None for panel in found.panels] == [True, False, True]
    assert found.cells[1].title == "step 9, train\nloss 1\nlearning rate 0.1\naccuracy 90.00 %"


def test_macs_left_are_drawn_over_the_whole_run_from_nothing_to_all(folder: Path) -> None:
    found = training(Report.read(folder))
    assert found is not None
    panel = found.panels[-1]
    heights = [float(point.split()[1]) for point in panel.line[1:].split("L")]
    # All of 100 % before pruning, what was committed while it went on, and what stayed after it.
    assert heights == pytest.approx([100 * (1 - v / 1.03) for v in (1, 1, 0.7, 0.7)], abs=0.01)
    assert panel.reference == pytest.approx(100 * (1 - 0.5 / 1.03), abs=0.01)
    assert panel.mark == "budget 50 %"
    assert [tick.label for tick in panel.ticks] == ["0 %", "50 %", "100 %"]
    write_lines(folder / "history.jsonl", HISTORY[:2])
    write_lines(folder / "events.jsonl", [])
    before = training(unfinished(folder))
    assert before is not None
    assert [p.name for p in before.panels] == ["accuracy", "loss"]


def test_another_metric_is_no_percentage(folder: Path) -> None:
    lines = [{**line, "metric": "f1"} for line in HISTORY]
    write_lines(folder / "history.jsonl", [{**lines[0], "accuracy": 12.5}, *lines[1:]])
    found = training(unfinished(folder))
    assert found is not None
    assert found.panels[0].name == "f1"
    assert not any("%" in tick.label for tick in found.panels[0].ticks)
    assert "f1 12.5" in found.cells[0].title


def test_the_loss_breaks_where_it_is_not_finite(folder: Path) -> None:
    losses = [1.0, 0.5, None, 0.5, 0.25]
    lines = [{"step": i, "phase": "train", "loss": v, "lr": 0.1} for i, v in enumerate(losses)]
    write_lines(folder / "history.jsonl", lines)
    write_lines(folder / "events.jsonl", [])
    found = training(unfinished(folder))
    assert found is not None
    assert [len(part.split("L")) for part in found.panels[0].line.split("M")[1:]] == [2, 2]
    assert "loss not finite" in found.cells[2].title


def test_a_run_without_any_finite_loss(folder: Path) -> None:
    write_lines(folder / "history.jsonl", [{**HISTORY[0], "loss": None}])
    found = training(unfinished(folder))
    assert found is not None
    assert found.panels == []


def test_trajectories_know_how_they_ended(folder: Path) -> None:
    found = norms(Report.read(folder))
    assert found is not None
    assert [t.outcome for t in found.trajectories] == ["pruned", "released"]
    released = found.trajectories[-1]
    assert released.title == "conv #1: released at step 14\nC_rate 0.5, C_len 0.25, W \u2013"
    assert released.last == "M500 51.92h0"  # half way in steps; half of the length, of 1.04


def test_a_structure_that_is_picked_again_makes_a_second_trajectory(folder: Path) -> None:
    again = [{"step": s, "structure": 1, "length": 0.4, "start": 0.5} for s in (30, 31)]
    write_lines(folder / "norms.jsonl", [*NORMS, *again])
    found = norms(Report.read(folder))
    assert found is not None
    assert sorted(t.outcome for t in found.trajectories) == ["decaying", "pruned", "released"]


def test_a_length_that_is_not_finite_is_a_gap(folder: Path) -> None:
    write_lines(folder / "norms.jsonl", [*NORMS[:3], {**NORMS[3], "length": None}])
    found = norms(Report.read(folder))
    assert found is not None
    assert (found.trajectories[0].line.count("L"), found.trajectories[0].last) == (2, "")
