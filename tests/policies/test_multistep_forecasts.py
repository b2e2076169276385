"""Adams-Bashforth, MeanCache and DiCache against their formulas, written plainly over arrays of features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from dit_compile.config import CacheConfig
from dit_compile.forecast import FORECASTERS, checked_weights

PROPERTY = settings(derandomize=True, deadline=None)
AHEAD = st.integers(1, 8)


@st.composite
def uneven_steps(draw, least=1, most=6):
    gaps = draw(st.lists(st.integers(1, 4), min_size=least - 1, max_size=most - 1))
    return [int(step) for step in np.cumsum([draw(st.integers(0, 20)), *gaps])]


def weights_of(name, steps, now, **config):
    return np.array(FORECASTERS.instance(name).weights(steps, now, CacheConfig(**config)))


# --- Adams-Bashforth


@pytest.mark.parametrize(
    ("order", "betas"), [(1, [1]), (2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12])], ids=["1", "2", "3"]
)
@pytest.mark.parametrize("gap", [1, 3])
def test_adams_bashforth_has_the_coefficients_of_the_textbook(order, betas, gap):
    """One gap ahead of equal gaps; the slopes are those of numpy's polynomials."""
    steps = [gap * i for i in range(2 * order)]
    values = np.sin(np.array(steps) / 5.0)
    slopes = []
    for end in range(len(steps) - 1, len(steps) - 1 - order, -1):
        window = slice(end - order, end + 1)
        through = Polynomial.fit(steps[window], values[window], order)
        slopes.append(through.deriv()(steps[end]))
    expected = values[-1] + gap * np.dot(betas, slopes)
    assert weights_of("adams_bashforth", steps, steps[-1] + gap, taylor_order=order) @ values == pytest.approx(expected)


@PROPERTY
@given(st.data(), st.integers(1, 3), AHEAD)
def test_adams_bashforth_is_exact_on_polynomials_of_its_order_with_uneven_gaps(data, order, ahead):
    steps = data.draw(uneven_steps(least=2 * order))[-2 * order :]
    power = Polynomial([0] * order + [1])  # around the latest step, where rounding is smallest
    values, truth = power(np.array(steps, float) - steps[-1]), power(float(ahead))
    got = weights_of("adams_bashforth", steps, steps[-1] + ahead, taylor_order=order) @ values
    assert got == pytest.approx(truth, rel=1e-6, abs=1e-6 * np.abs(values).max())


@PROPERTY
@given(st.integers(2, 3), uneven_steps(least=6), AHEAD)
def test_adams_bashforth_is_no_newton(order, steps, ahead):
    """The same snapshots one order higher are missed, though there are enough of them for a polynomial through all."""
    steps = steps[-2 * order :]
    power = Polynomial([0] * (order + 1) + [1])
    values, truth = power(np.array(steps, float) - steps[-1]), power(float(ahead))
    got = weights_of("adams_bashforth", steps, steps[-1] + ahead, taylor_order=order) @ values
    assert abs(got - truth) > 1e-3 * truth


@pytest.mark.parametrize(("order", "held"), [(0, 1), (1, 2), (2, 4), (3, 6), (5, 6)])
def test_adams_bashforth_keeps_twice_its_order(order, held):
    assert FORECASTERS.instance("adams_bashforth").snapshots(CacheConfig(taylor_order=order)) == held


@PROPERTY
@given(uneven_steps(least=1, most=3), AHEAD, st.integers(1, 5))
def test_adams_bashforth_begins_with_the_straight_line(steps, ahead, order):
    line = weights_of("newton", steps[-2:], steps[-1] + ahead, taylor_order=1)
    got = weights_of("adams_bashforth", steps, steps[-1] + ahead, taylor_order=order)
    np.testing.assert_allclose(got, [*[0.0] * (len(steps) - len(line)), *line], atol=1e-9)


# --- MeanCache


def euler(outputs_at, computed, now, span, sigmas):
    """Output of step ``now`` by the authors' formulas on a trajectory of latents: Euler's method with ``sigmas``, and
    the outputs ``outputs_at`` of computed steps; those of the others are forecast."""
    latents, outputs = [np.zeros(3)], []
    for i in range(now + 1):
        if i in computed:
            outputs.append(outputs_at[i])
        else:
            start = max(i - span, 0)
            mean = (latents[i] - latents[start]) / (sigmas[i] - sigmas[start])
            jvp = (outputs[start] - mean) / (sigmas[i] - sigmas[start])
            outputs.append(outputs[-1] - jvp * (sigmas[i + 1] - sigmas[i]))
        latents.append(latents[-1] + outputs[-1] * (sigmas[i + 1] - sigmas[i]))
    return outputs[now]


@PROPERTY
@given(uneven_steps(), AHEAD, st.integers(1, 6))
def test_meancache_is_the_authors_forecast_on_an_euler_trajectory(steps, ahead, span):
    """The generation begins with the oldest snapshot."""
    steps = [step - steps[0] for step in steps]
    now = steps[-1] + ahead
    features = np.sin(np.outer(steps, [0.1, 0.3, 0.5]) + np.arange(3)) + 2
    wanted = euler(dict(zip(steps, features, strict=True)), steps, now, span, np.linspace(1, 0, now + 2))
    got = weights_of("meancache", steps, now, meancache_span=span) @ features
    np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8)


def test_meancache_of_span_one_is_reuse():
    assert weights_of("meancache", [0, 2, 3], 7, meancache_span=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("span", [2, 3, 6])
def test_meancache_adds_less_than_half_of_a_steady_change(span):
    steps = list(range(6))
    got = weights_of("meancache", steps, 6, meancache_span=span) @ np.array(steps, float)
    assert got == pytest.approx(5 + (span - 1) / (2 * span))


# --- DiCache


@pytest.mark.parametrize(
    ("now", "limit", "gamma"),
    [(8, 1.5, 1.25), (9, 1.5, 1.5), (11, 1.5, 1.5), (11, 2, 2), (10.2, 2, 1.8), (6.5, 1.5, 1.0), (3, 1.5, 1.0)],
)
def test_dicache_prolongs_the_line_within_its_limits(now, limit, gamma):
    """Snapshots of steps 3 and 7: every 4 steps, or as much as the probe has moved between them, are 1."""
    assert weights_of("dicache", [3, 7], now, dicache_limit=limit) == pytest.approx([1 - gamma, gamma])


def test_dicache_reuses_a_single_snapshot():
    assert weights_of("dicache", [3], 5).tolist() == [1.0]


def test_a_measured_moment_need_not_be_later_than_the_snapshots():
    config = CacheConfig(forecast="dicache")
    assert checked_weights(FORECASTERS.instance("dicache"), [1, 3, 7], 6.5, config) == [0.0, 0.0, 1.0]
