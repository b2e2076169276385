"""Forecast weights, judged by what they predict for series whose continuation is known.

All arithmetic here is exact (fractions), except for the weights under test, which are float64.
"""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dit_compile.config import CacheConfig
from dit_compile.forecast import FORECASTERS, MAX_SNAPSHOTS, checked_weights, damped
from dit_compile.forecast.checked import DAMPING

WITH_DIFFERENCES = 3  # TaylorSeer takes differences from this step on
ALL = [
    "reuse", "taylorseer", "newton", "hicache", "foca", "spectrum", "adams_bashforth", "meancache", "dicache",
]  # fmt: skip
NAMES = st.sampled_from(ALL)
AHEAD = st.integers(1, 8)


@st.composite
def uneven_steps(draw, least=1, most=MAX_SNAPSHOTS, start=0):
    """Numbers of computed steps, oldest first, with gaps between 1 and 5."""
    gaps = draw(st.lists(st.integers(1, 5), min_size=least - 1, max_size=most - 1))
    steps = [draw(st.integers(start, start + 20))]
    for gap in gaps:
        steps.append(steps[-1] + gap)
    return steps


def predict(name, steps, values, now, order, forecaster=None):
    """What a runtime does: the latest snapshots, weighted."""
    config = CacheConfig(taylor_order=order)
    forecaster = forecaster or FORECASTERS[name]()
    held = forecaster.snapshots(config)
    steps, values = steps[-held:], values[-held:]
    weights = forecaster.weights(steps, now, config)
    assert len(weights) == len(steps)
    return float(sum(Fraction(w) * Fraction(v) for w, v in zip(weights, values, strict=True)))


def close(got, wanted, values):
    """Equal but for the rounding of weights whose sum is 1."""
    return math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-7 * (1 + max(abs(float(v)) for v in values)))


def polynomial(coefficients, step):
    return sum(Fraction(c) * step**i for i, c in enumerate(coefficients))


def taylorseer_by_values(steps, values, now, order):
    """TaylorSeer as cache-dit runs it: a table of differences of the values, carried from store to store.

    Its clock stands one behind the step and must be above 1 for a difference; each is divided by the latest gap.
    """
    table, last = [None] * (order + 1), None
    for step, value in zip(steps, values, strict=True):
        fresh = [Fraction(value)] + [None] * order
        for i in range(order):
            if table[i] is None or step - 1 <= 1:
                break
            fresh[i + 1] = (fresh[i] - table[i]) / (step - last)
        table, last = fresh, step
    k = now - last
    return float(sum(d * k**i / math.factorial(i) for i, d in enumerate(table) if d is not None))


@given(NAMES, uneven_steps(), AHEAD, st.integers(0, 5))
def test_weights_sum_to_one(name, steps, ahead, order):
    """A region whose effect never changes is forecast exactly, whatever the forecaster."""
    config = CacheConfig(taylor_order=order)
    held = FORECASTERS[name]().snapshots(config)
    assert 1 <= held <= MAX_SNAPSHOTS
    weights = FORECASTERS[name]().weights(steps[-held:], steps[-1] + ahead, config)
    assert math.isclose(sum(weights), 1.0, abs_tol=1e-9 * (1 + sum(map(abs, weights))))


@given(uneven_steps(), AHEAD, st.integers(0, 5))
def test_reuse_is_the_latest_snapshot(steps, ahead, order):
    assert predict("reuse", steps, steps, steps[-1] + ahead, order) == steps[-1]
    assert FORECASTERS["reuse"]().weights(steps, steps[-1] + ahead, CacheConfig()) == [0.0] * (len(steps) - 1) + [1.0]


@given(st.data(), st.integers(0, 4), AHEAD)
def test_newton_is_exact_on_polynomials_of_its_order_with_uneven_gaps(data, order, ahead):
    steps = data.draw(uneven_steps(least=order + 1))
    coefficients = data.draw(st.lists(st.integers(-9, 9), min_size=order + 1, max_size=order + 1))
    values = [polynomial(coefficients, step) for step in steps]
    truth = float(polynomial(coefficients, steps[-1] + ahead))
    assert close(predict("newton", steps, values, steps[-1] + ahead, order), truth, [*values, truth])


@given(st.data(), st.integers(0, 3), AHEAD)
def test_newton_is_not_exact_one_order_higher(data, order, ahead):
    """The error is the leading coefficient times the product of all distances, so it is never zero."""
    steps = data.draw(uneven_steps(least=order + 1))[-order - 1 :]
    values, now = [step ** (order + 1) for step in steps], steps[-1] + ahead
    error = now ** (order + 1) - predict("newton", steps, values, now, order)
    assert math.isclose(error, math.prod(now - step for step in steps), rel_tol=1e-6)


@given(uneven_steps(least=1, most=3), AHEAD, st.integers(2, 5))
def test_newton_uses_the_snapshots_there_are(steps, ahead, order):
    """Early in a generation there are fewer snapshots than the order asks for."""
    degree = len(steps) - 1
    values = [step**degree for step in steps]
    truth = (steps[-1] + ahead) ** degree
    assert close(predict("newton", steps, values, steps[-1] + ahead, order), truth, [*values, truth])


@given(uneven_steps(least=2, start=WITH_DIFFERENCES), AHEAD, st.integers(1, 5), st.integers(-9, 9), st.integers(-9, 9))
def test_taylorseer_is_exact_on_lines_with_uneven_gaps_at_any_order(steps, ahead, order, a, b):
    values, truth = [a + b * step for step in steps], a + b * (steps[-1] + ahead)
    assert close(predict("taylorseer", steps, values, steps[-1] + ahead, order), truth, [*values, truth])


def test_taylorseer_of_order_two_misses_a_parabola_by_twelve():
    """Gap 4, three steps ahead: backward differences in a Taylor series give -3 for 9; the true polynomial gives 9."""
    steps, now = [4, 8, 12], 15
    around_the_latest = [(step - 12) ** 2 for step in steps]
    assert predict("taylorseer", steps, around_the_latest, now, 2) == pytest.approx(-3)
    assert predict("newton", steps, around_the_latest, now, 2) == pytest.approx(9)
    assert predict("taylorseer", steps, [step**2 for step in steps], now, 2) == pytest.approx(225 - 12)


@given(st.integers(1, 9), st.integers(1, 9), AHEAD, st.integers(WITH_DIFFERENCES, 20))
def test_taylorseer_of_order_two_is_exact_on_parabolas_only_by_coincidence(older, latest, ahead, start):
    """For gaps g (older) and h (latest) and k steps ahead its error on t^2 is k^2 (g - h) / 2h - k h, seldom zero."""
    steps = [start, start + older, start + older + latest]
    now = steps[-1] + ahead
    wrong = predict("taylorseer", steps, [step**2 for step in steps], now, 2) - now**2
    assert wrong == pytest.approx(ahead**2 * (older - latest) / (2 * latest) - ahead * latest, abs=1e-6)
    assert (abs(wrong) < 1e-6) == (ahead * (older - latest) == 2 * latest**2)


@settings(max_examples=300)
@given(st.data(), st.integers(0, 5), AHEAD)
def test_taylorseer_equals_the_recurrence_over_values(data, order, ahead):
    """Weights over the last ``order + 1`` snapshots give what a table of differences over the whole history gives."""
    steps = data.draw(uneven_steps(most=12))
    if data.draw(st.booleans()):
        steps = [step - steps[0] for step in steps]  # from the first step of a generation on
    values = data.draw(st.lists(st.integers(-50, 50), min_size=len(steps), max_size=len(steps)))
    now = steps[-1] + ahead
    wanted = taylorseer_by_values(steps, values, now, order)
    scale = 1 + abs(wanted) + 50 * (2 * (ahead + 1)) ** order
    assert predict("taylorseer", steps, values, now, order) == pytest.approx(wanted, abs=1e-9 * scale)


@pytest.mark.parametrize(
    ("steps", "weights"),
    [
        ([0], [1]),
        ([0, 1], [0, 1]),
        ([1, 2], [0, 1]),  # no difference before step 3 ...
        ([2, 3], [-1, 2]),  # ... and from there on one
        ([0, 3], [-1 / 3, 4 / 3]),
        ([3, 5], [-1 / 2, 3 / 2]),
    ],
)
def test_taylorseer_takes_no_difference_before_step_three(steps, weights):
    got = FORECASTERS["taylorseer"]().weights(steps, steps[-1] + 1, CacheConfig(taylor_order=1))
    assert got == pytest.approx(weights)


@given(uneven_steps(), AHEAD)
def test_order_zero_is_reuse(steps, ahead):
    for name in ("taylorseer", "newton", "hicache", "adams_bashforth"):
        assert predict(name, steps, steps, steps[-1] + ahead, 0) == steps[-1]


# --- would these tests notice the mistakes that peers have made?


class Mutant:
    """A forecaster that is right but for the step that it believes to predict, the gaps that it sees, or the snapshots
    that get its weights."""

    def __init__(self, name, now=lambda steps, now: now, seen=lambda steps: steps, given=lambda weights: weights):
        self._real, self._now, self._seen, self._given = FORECASTERS[name](), now, seen, given

    def snapshots(self, config):
        return self._real.snapshots(config)

    def weights(self, steps, now, config):
        return self._given(self._real.weights(self._seen(steps), self._now(steps, now), config))


MISTAKES = {
    "sign": lambda name: Mutant(name, now=lambda steps, now: 2 * steps[-1] - now),
    "one short": lambda name: Mutant(name, now=lambda steps, now: now - 1),
    "one far": lambda name: Mutant(name, now=lambda steps, now: now + 1),
    "swapped": lambda name: Mutant(name, given=lambda weights: [*weights[:-2], *weights[:-3:-1]]),
    "nominal gaps": lambda name: Mutant(name, seen=lambda steps: [steps[-1] - 2 * i for i in range(len(steps))][::-1]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["taylorseer", "newton", "adams_bashforth"])
@given(steps=uneven_steps(least=2, start=12), ahead=AHEAD)
def test_mistakes_of_sign_horizon_and_gap_are_noticed_on_a_line(name, mistake, steps, ahead):
    if mistake == "nominal gaps":
        assume(steps[-1] - steps[-2] != 2)
    now = steps[-1] + ahead
    assert close(predict(name, steps, steps, now, 1), now, [now])
    assert not close(predict(name, steps, steps, now, 1, MISTAKES[mistake](name)), now, [now])


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("order", [2, 3])
@given(data=st.data(), ahead=AHEAD)
def test_newton_of_a_higher_order_notices_them_on_its_power(order, mistake, data, ahead):
    steps = data.draw(uneven_steps(least=order + 1, most=order + 1, start=12))
    if mistake == "nominal gaps":
        assume(any(b - a != 2 for a, b in itertools.pairwise(steps)))
    values, now = [step**order for step in steps], steps[-1] + ahead
    right = predict("newton", steps, values, now, order)
    wrong = predict("newton", steps, values, now, order, MISTAKES[mistake]("newton"))
    assert right == pytest.approx(now**order, rel=1e-9)
    assert abs(wrong - now**order) > 1e-6 * now**order


def test_nothing_is_predicted_for_the_time_of_the_newest_snapshot():
    """Whatever the forecaster: a second evaluation at one time is reused as it is."""
    config = CacheConfig()
    for name in ALL:
        weights = checked_weights(FORECASTERS.instance(name), [0, 2, 3], 3, config)
        assert weights == [0.0, 0.0, 1.0]


def test_damping_keeps_the_sum_of_weights():
    weights = damped([-1.0, 2.0])
    assert weights == pytest.approx([-DAMPING, 1 + DAMPING]) and sum(weights) == pytest.approx(1.0)
