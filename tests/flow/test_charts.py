import re

import pytest

from danlu.flow.charts import Series, bar_mark, line_chart, range_mark, smooth, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.4, 3.6, [1, 1.5, 2, 2.5, 3, 3.5, 4]), (5, 5, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6])],
)
def test_ticks_are_round_and_enclose_the_range(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high, 5)
    assert found[0] <= low <= high <= found[-1]
    if low != high:
        assert found == expected


def test_smoothing_keeps_a_constant_and_halves_a_step_in_its_half_life() -> None:
    assert smooth([(x, 2.0) for x in range(5)], 3)[-1] == (4, 2.0)
    stepped = smooth([*((x, 0.0) for x in range(1000)), *((x, 1.0) for x in range(1000, 1010))], 10)
    assert stepped[-1][1] == pytest.approx(0.5, abs=0.01)


def test_thinning_keeps_the_mean_and_the_last_point() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1] == points[-1]
    assert all(0.4 < y < 0.6 for _, y in thinned[:-1])


def test_a_line_chart_places_its_ends_at_the_ends_of_the_axes() -> None:
    svg = line_chart([Series(name="loss", points=[(0, 0), (10, 10)], style="line-main")], "step", "loss", 960, 320)
    match = re.search(r'points="([\d.,]+) ([\d.,]+)"', svg)
    assert match is not None
    assert match.groups() == ("52.0,280.0", "836.0,14.0")


def test_a_chart_survives_one_point_equal_points_and_none() -> None:
    for points in ([(1.0, 2.0)], [(1.0, 2.0), (1.0, 2.0)]):
        assert "nan" not in line_chart([Series(name="a", points=points, style="line-main")], "x", "y")
    assert line_chart([Series(name="a", points=[], style="line-main")], "x", "y") == ""


def test_names_in_a_chart_are_escaped() -> None:
    assert "<b>" not in line_chart([Series(name="<b>", points=[(0, 1)], style="line-main")], "<b>", "<b>")


def test_marks_stay_inside_their_picture() -> None:
    assert 'width="100.00"' in bar_mark(1.7)
    assert 'width="0.00"' in bar_mark(0)
    assert "nan" not in range_mark(1, 1, 1, (1, 1))
