import pytest

from decayprune.app.report.axes import Axis, polyline, step_axis, step_ticks, ticks


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


def test_a_run_of_one_step_still_has_an_axis_and_ticks_are_whole_steps() -> None:
    axis = step_axis([7])
    assert (axis.low, axis.high) == (7, 8)
    assert [tick.label for tick in step_ticks(axis)] == ["7", "8"]


def test_ordinates_grow_downwards() -> None:
    axis = Axis(0, 4)
    assert (axis.x(1), axis.y(1)) == (250, 75)


def test_a_line_breaks_where_there_is_no_point() -> None:
    assert polyline([(0, 1), (2, 3), None, (4, 5.5)]) == "M0 1L2 3M4 5.5"
