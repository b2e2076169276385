"""The oracle's forecasts on numbers whose continuation is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("diffusers")

from parity_support.oracle import newton, reuse, taylorseer


def history(steps: list[int], power: int) -> list[tuple[int, torch.Tensor]]:
    return [(step, torch.tensor(float(step**power), dtype=torch.float64)) for step in steps]


@given(st.lists(st.integers(0, 30), min_size=4, max_size=8, unique=True), st.integers(1, 8), st.integers(0, 3))
def test_newton_continues_polynomials_of_its_order_over_uneven_gaps(steps: list[int], ahead: int, order: int) -> None:
    steps = sorted(steps)
    target = steps[-1] + ahead
    assert newton(history(steps, order), target, order).item() == pytest.approx(target**order, rel=1e-9)


@given(st.integers(0, 3), st.integers(1, 8))
def test_taylorseer_continues_a_line_and_only_a_line(first: int, ahead: int) -> None:
    steps = list(range(first, first + 5))
    assert taylorseer(history(steps, 1), steps[-1] + ahead, 1).item() == pytest.approx(steps[-1] + ahead)


def test_taylorseer_has_no_slope_before_its_fourth_step() -> None:
    values = history([0, 1, 2], 1)
    assert taylorseer(values, 3, 1).item() == reuse(values, 3, 1).item() == 2.0
    assert newton(values, 3, 1).item() == 3.0


def test_taylorseer_misses_a_quadratic_over_uneven_gaps() -> None:
    steps = [0, 1, 2, 3, 4, 6, 8, 9, 11]
    assert taylorseer(history(steps, 2), 12, 2).item() != pytest.approx(144.0)
    assert newton(history(steps, 2), 12, 2).item() == pytest.approx(144.0)
