import pytest

from decayprune.app.report.axes import Axis, ticks


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis(0, 1000), ["0", "200", "400", "600", "800", "1000"]),
        (Axis(0.93, 0.98), ["0.93", "0.94", "0.95", "0.96", "0.97", "0.98"]),
        (Axis(0.005, 200, log=True), ["0.01", "0.1", "1", "10", "100"]),
        (Axis(0.3, 0.6, log=True), ["0.3", "0.4", "0.5", "0.6"]),
    ],
)
def test_ticks(axis: Axis, labels: list[str]) -> None:
    assert [tick.label for tick in ticks(axis, "{:g}".format)] == labels


def test_ticks_lie_where_they_say() -> None:
    places = [tick.at for tick in ticks(Axis(1, 100, log=True), "{:g}".format)]
    assert places == [0, 50, 100]
