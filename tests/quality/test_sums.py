"""The arithmetic of the quality table, on numbers small enough to do by hand."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quality_sums import at_cost, choose, costs_in_steps, figures, front, on_front

POINTS = [(10.0, 40.0), (12.0, 39.0), (14.0, 46.0), (14.0, 45.0), (20.0, 46.0), (6.0, 30.0)]
numbers = st.floats(0, 100, width=16)


def test_the_front_leaves_out_what_is_beaten():
    assert front(POINTS) == [(6.0, 30.0), (10.0, 40.0), (14.0, 46.0)]
    assert front([]) == []


@given(st.lists(st.tuples(numbers, numbers), min_size=1))
def test_the_front_is_what_nobody_beats(points):
    def beaten(point):
        cost, quality = point
        return any(c <= cost and q >= quality and (c, q) != point for c, q in points)

    assert front(points) == sorted({point for point in points if not beaten(point)})


@pytest.mark.parametrize(
    ("cost", "quality"),
    [(6, 30), (8, 35), (10, 40), (11, 41.5), (13, 44.5), (14, 46), (20, 46), (99, 46), (5.99, None)],
)
def test_equal_cost_means_straight_lines_on_the_front(cost, quality):
    assert at_cost(POINTS, cost) == (None if quality is None else pytest.approx(quality))


def test_nothing_has_no_quality():
    assert at_cost([], 10) is None


def test_the_best_within_the_limit_is_chosen():
    candidates = {"dear": (0.7, 60.0), "good": (0.5, 50.0), "worse": (0.49, 49.0), "cheap": (0.3, 40.0)}
    assert choose(candidates, {"most": 0.5, "less": 0.499, "least": 0.3}) == {
        "most": "good",
        "less": "worse",
        "least": "cheap",
    }
    with pytest.raises(ValueError, match=r"no candidate for 'least' costs 0\.2 or less"):
        choose(candidates, {"least": 0.2})


def test_names_on_the_front():
    points = {
        "a": (10.0, 40.0),
        "b": (14.0, 46.0),
        "dearer": (12.0, 40.0),
        "worse": (14.0, 45.9),
        "cheapest": (5.0, 1.0),
    }
    assert on_front(points) == ["a", "b", "cheapest"]


def record(index, branch, region, rows, reuse):
    return SimpleNamespace(index=index, branch=branch, region=region, rows=rows, action="reuse" if reuse else "compute")


def test_cost_of_a_batch_that_decides_as_one():
    records = [record(i, branch, 0, 0, i in (1, 3)) for i in range(4) for branch in (0, 1)]
    assert costs_in_steps(records, [11], 12, rows=3) == [pytest.approx(4 - 2 * 11 / 12)] * 3


def test_cost_of_rows_that_decide_for_themselves():
    reused = {(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 1)}  # (step, branch, row)
    records = [record(i, b, 0, row, (i, b, row) in reused) for i in range(4) for b in (0, 1) for row in (0, 1)]
    costs = costs_in_steps(records, [6], 12, rows=2)
    assert costs == pytest.approx([4 - 3 * 6 / 12 / 2, 4 - 1 * 6 / 12 / 2])


def test_cost_of_several_regions():
    records = [record(i, 0, region, 0, i == 1 and region == 1) for i in range(2) for region in (0, 1)]
    assert costs_in_steps(records, [3, 7], 12, rows=1) == pytest.approx([2 - 7 / 12])


def test_figures_are_means_and_the_worst():
    found = figures([10.0, 11.0], [40.0, math.inf], [0.9, 1.0])
    assert found == {"cost": 10.5, "psnr": 70.0, "worst_psnr": 40.0, "ssim": 0.95}
