from pathlib import Path

import pytest

from decayprune.app.report import Report
from decayprune.app.report.timeline import timeline
from run_folders import finished, make_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_lanes_count_structures(folder: Path) -> None:
    found = timeline(Report.read(folder))
    assert found is not None
    (lane,) = found.lanes
    assert (lane.layer, lane.summary) == ("conv", "4 → 2, 1 released")
    states = [cell.title.split("\n")[:3] for cell in lane.cells]
    assert states[0] == ["step 10", "2 began to decay", "4 of 4 remain, 2 of them decaying"]
    assert states[1] == ["step 14", "1 released", "4 of 4 remain, 1 of them decaying"]
    assert states[-1] == ["step 28", "1 reached zero", "2 of 4 remain, 0 of them decaying"]
    assert lane.kept.endswith("V50H1000V100Z")  # two of four are left
    # Events from step 10 to 28 of 40: the axis goes on to 31, so that what was pruned is seen.
    assert 1000 * 18 / 21 - 1000 / 24 <= lane.cells[-1].x <= 1000 * 18 / 21


def test_lanes_count_heads_not_channels(folder: Path) -> None:
    report = finished(folder, widths=[{"layer": "conv", "before": 64, "after": 32}])
    found = timeline(report)
    assert found is not None
    assert found.lanes[0].summary == "4 → 2, 1 released"  # two heads of 16 channels left
