"""HiCache, FoCa and Spectrum against their formulas, written plainly over arrays of features.

The references fit, solve and differentiate the features themselves; weights appear nowhere in them.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev, hermite

from dit_compile.config import CacheConfig
from dit_compile.forecast import FORECASTERS, MAX_SNAPSHOTS

WITH_DIFFERENCES = 3  # as for TaylorSeer
PROPERTY = settings(derandomize=True, deadline=None)
AHEAD = st.integers(1, 8)
NAMES = ["hicache", "foca", "spectrum"]
CONFIGS = st.builds(
    CacheConfig,
    taylor_order=st.integers(0, 5),
    hicache_sigma=st.floats(0, 1),
    spectrum_degree=st.integers(1, 5),
    spectrum_ridge=st.floats(1e-6, 1e6),
    spectrum_mix=st.floats(0, 1),
    num_steps=st.none() | st.integers(1, 100),
)


@st.composite
def uneven_steps(draw, least=1, most=MAX_SNAPSHOTS, start=0, largest=5):
    """Numbers of computed steps, oldest first, with gaps between 1 and ``largest``."""
    gaps = draw(st.lists(st.integers(1, largest), min_size=least - 1, max_size=most - 1))
    return [int(step) for step in np.cumsum([draw(st.integers(start, start + 20)), *gaps])]


def predict(name, steps, features, now, config):
    """What a runtime does: the latest snapshots, weighted."""
    forecaster = FORECASTERS[name]()
    held = forecaster.snapshots(config)
    weights = forecaster.weights(steps[-held:], now, config)
    return np.tensordot(weights, np.asarray(features, float)[-held:], axes=1)


def features_of(steps):
    """Smooth but nothing that a polynomial hits: one row for each step."""
    t = np.asarray(steps, float)[:, None]
    return np.sin(t / np.array([3.0, 7.0, 15.0]) + np.array([0.0, 1.0, 2.0])) * np.array([1.0, 5.0, -20.0]) + 3


# --- the formulas


def hicache(steps, features, now, config):
    """TaylorSeer's ladder of differences, carried from store to store, under numpy's physicists' polynomials."""
    ladder, last = [], None
    for step, feature in zip(steps, features, strict=True):
        fresh = [feature]
        for older in ladder[: config.taylor_order] if step >= WITH_DIFFERENCES else []:
            fresh.append((fresh[-1] - older) / (step - last))
        ladder, last = fresh, step
    sigma = config.hicache_sigma
    basis = [hermite.hermval(sigma * (now - last), [0] * i + [1]) * sigma**i for i in range(len(ladder))]
    return sum(b / math.factorial(i) * d for i, (b, d) in enumerate(zip(basis, ladder, strict=True)))


def foca(steps, features, now, config):
    """BDF2 by its definition, for any gaps: the parabola through two known points and the unknown one has the slope."""
    steps, features = steps[-3:], features[-3:]
    if len(steps) == 1:
        return features[0]
    times = np.array(steps, float) - now
    through = np.linalg.solve(np.vander(times, increasing=True), features)  # a line or a parabola, around ``now``
    slope = sum(i * c * times[-1] ** (i - 1) for i, c in enumerate(through) if i)
    rows = [[1, t, t * t] for t in times[-2:]] + [[0, 1, 0]]  # q(older), q(latest), q'(now): the slope, lagged
    predictor = np.linalg.solve(rows, np.stack([*features[-2:], slope]))[0]
    ahead = now - steps[-1]
    return features[-1] + ahead / 2 * (slope + (predictor - features[-1]) / ahead)


def spectrum(steps, features, now, config):
    """Ridge regression as least squares with one more row for each coefficient."""
    total, degree = max(config.num_steps or 50, now), config.spectrum_degree
    latest, changes = features[-1], features - features[-1]
    taus = 2 * np.array([*steps, now]) / total - 1
    *design, at_now = chebyshev.chebvander(taus, degree)
    rows = np.vstack([design, math.sqrt(config.spectrum_ridge) * np.eye(degree + 1)])
    values = np.vstack([changes, np.zeros((degree + 1, features.shape[1]))])
    fitted = latest + at_now @ np.linalg.lstsq(rows, values, rcond=None)[0]
    line = latest
    if len(steps) > 1:
        line = latest + (latest - features[-2]) * (now - steps[-1]) / (steps[-1] - steps[-2])
    return config.spectrum_mix * fitted + (1 - config.spectrum_mix) * line


REFERENCES = {"hicache": hicache, "foca": foca, "spectrum": spectrum}


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(steps=uneven_steps(), ahead=AHEAD, config=CONFIGS)
def test_weights_give_what_the_formula_gives(name, steps, ahead, config):
    held = FORECASTERS[name]().snapshots(config)
    steps, now = steps[-held:], steps[-1] + ahead
    weights = FORECASTERS[name]().weights(steps, now, config)
    wanted = REFERENCES[name](steps, features_of(steps), now, config)
    assert predict(name, steps, features_of(steps), now, config) == pytest.approx(
        wanted, rel=1e-6, abs=1e-6 * (1 + sum(map(abs, weights)))
    )


def mistakes(steps, now):
    """(steps, now) as a forecaster would see them with a wrong sign, horizon or gap."""
    return {
        "sign": (steps, 2 * steps[-1] - now),
        "one short": (steps, now - 1),
        "one far": (steps, now + 1),
        "nominal gaps": ([steps[-1] - 2 * i for i in range(len(steps))][::-1], now),
    }


@pytest.mark.parametrize("mistake", mistakes([0], 1))
@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(gaps=st.lists(st.sampled_from([3, 5, 7]), min_size=5, max_size=5), ahead=st.integers(2, 6))
def test_mistakes_of_sign_horizon_and_gap_are_noticed(name, mistake, gaps, ahead):
    steps = [int(step) for step in np.cumsum([4, *gaps])]
    now = steps[-1] + ahead
    config = CacheConfig(taylor_order=1, spectrum_mix=0.25)
    weights = FORECASTERS[name]().weights
    steps = steps[-FORECASTERS[name]().snapshots(config) :]
    wrong_steps, wrong_now = mistakes(steps, now)[mistake]
    line = np.array(steps, float)
    wanted = REFERENCES[name](steps, line[:, None], now, config)[0]
    assert line @ weights(steps, now, config) == pytest.approx(wanted)
    assert line @ weights(wrong_steps, wrong_now, config) != pytest.approx(wanted, abs=0.05)


# --- what holds for all of them


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(
    steps=uneven_steps(largest=10**6),
    ahead=st.integers(1, 10**6),
    config=CONFIGS,
    value=st.floats(-1e3, 1e3).filter(lambda value: abs(value) > 1e-3),
)
def test_weights_are_finite_and_exact_on_constants(name, steps, ahead, config, value):
    held = FORECASTERS[name]().snapshots(config)
    assert 1 <= held <= MAX_SNAPSHOTS
    steps = steps[-held:]
    weights = FORECASTERS[name]().weights(steps, steps[-1] + ahead, config)
    assert len(weights) == len(steps) and all(map(math.isfinite, weights))
    scale = 1 + sum(map(abs, weights))
    assert math.fsum(w * value for w in weights) == pytest.approx(value, abs=1e-9 * abs(value) * scale)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(step=st.integers(0, 100), ahead=AHEAD, config=CONFIGS)
def test_one_snapshot_is_reuse(name, step, ahead, config):
    assert FORECASTERS[name]().weights([step], step + ahead, config) == [1.0]


# --- HiCache


@PROPERTY
@given(uneven_steps(least=2, start=WITH_DIFFERENCES), AHEAD, st.integers(1, 5), st.floats(0, 1))
def test_hicache_forecasts_a_part_of_a_line_that_sigma_sets(steps, ahead, order, sigma):
    config = CacheConfig(taylor_order=order, hicache_sigma=sigma)
    change = predict("hicache", steps, steps, steps[-1] + ahead, config) - steps[-1]
    assert change == pytest.approx(2 * sigma**2 * ahead, abs=1e-6)


@PROPERTY
@given(uneven_steps(), AHEAD)
def test_hicache_of_order_one_is_taylorseer_at_the_root_of_a_half(steps, ahead):
    config = CacheConfig(taylor_order=1, hicache_sigma=math.sqrt(0.5))
    hermites, powers = (
        predict(name, steps, features_of(steps), steps[-1] + ahead, config) for name in ("hicache", "taylorseer")
    )
    assert hermites == pytest.approx(powers)


def test_hicache_of_order_two_by_hand() -> None:
    """sigma 1/2, k = 4: H_1(2) = 4 and H_2(2) = 14, so D_1 counts 4/2 = 2 times and D_2 14/4/2 = 1.75 times."""
    config = CacheConfig(taylor_order=2)
    assert predict("hicache", [3, 4, 5], [0, 0, 1], 9, config) == pytest.approx(1 + 2 * 1 + 1.75 * 1)


# --- FoCa


@PROPERTY
@given(uneven_steps(least=2, most=3), AHEAD, st.integers(-9, 9), st.integers(-9, 9))
def test_foca_is_exact_on_lines_with_uneven_gaps(steps, ahead, a, b):
    values, now = [a + b * step for step in steps], steps[-1] + ahead
    assert predict("foca", steps, values, now, CacheConfig()) == pytest.approx(a + b * now, abs=1e-9 * 500)


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_foca_has_the_coefficients_of_the_paper_where_all_gaps_are_equal(gap):
    """Equations 6 and 7 with h the gap; the corrector is the mean of the predictor and of a step along the slope."""
    older, old, latest = np.eye(3)
    slope = (3 * latest - 4 * old + older) / (2 * gap)
    predictor = 4 / 3 * latest - 1 / 3 * old + 2 / 3 * gap * slope
    got = FORECASTERS["foca"]().weights([7, 7 + gap, 7 + 2 * gap], 7 + 3 * gap, CacheConfig())
    assert got == pytest.approx((predictor + latest + gap * slope) / 2)


@PROPERTY
@given(uneven_steps(least=3, most=3), AHEAD)
def test_foca_looks_at_the_curve(steps, ahead):
    """On t^2 it errs by h^2/2 + h^2 (1 + u) / (1 + 2u) with u = h / gap, less than a line (h^2 + h gap) would."""
    now, gap = steps[-1] + ahead, steps[-1] - steps[-2]
    error = now**2 - predict("foca", steps, [step**2 for step in steps], now, CacheConfig())
    u = ahead / gap
    assert error == pytest.approx(ahead**2 / 2 + ahead**2 * (1 + u) / (1 + 2 * u), abs=1e-6)
    assert error < ahead**2 + ahead * gap


def foca_of_cache_dit(steps, values, now):
    """cache-dit 1.5.3's calibrator: forecasts enter the rolling pair, and differences are not divided by gaps."""
    before, anchor = values[-2:]
    rolling = [before, anchor]
    for step in range(steps[-1] + 1, now + 1):
        ahead, change = step - steps[-1], (anchor - before) + (rolling[1] - rolling[0])
        share = min(1, 3 / ahead)
        forecast = share * (anchor + min(ahead, 3) / 2 * change) + (1 - share) * anchor
        rolling = [rolling[1], forecast]
    return rolling[1]


def test_foca_is_not_the_rule_of_cache_dit() -> None:
    """On the line t with gaps 1 and 4, two steps ahead: the truth is 12; the other rule counts 8 steps too many."""
    steps, config = [5, 6, 10], CacheConfig()
    assert foca_of_cache_dit(steps, steps, 11) == 14
    assert predict("foca", steps, steps, 11, config) == pytest.approx(11)
    assert foca_of_cache_dit(steps, steps, 12) == 18
    assert predict("foca", steps, steps, 12, config) == pytest.approx(12)
    assert foca_of_cache_dit([5, 6], [5, 6], 7) == 7  # right while no step is skipped


# --- Spectrum


@PROPERTY
@given(uneven_steps(least=2), AHEAD, CONFIGS)
def test_spectrum_without_its_fit_is_the_line_through_the_latest_two(steps, ahead, config):
    config = CacheConfig(num_steps=config.num_steps, spectrum_ridge=config.spectrum_ridge, spectrum_mix=0)
    assert predict("spectrum", steps, steps, steps[-1] + ahead, config) == pytest.approx(steps[-1] + ahead)


@PROPERTY
@given(uneven_steps(least=6, largest=3), AHEAD, st.integers(1, 2))
def test_spectrum_with_a_tiny_ridge_follows_polynomials_of_its_degree(steps, ahead, degree):
    """Of the ridge, hardly anything is left: the error is a small part of what reuse would make."""
    config = CacheConfig(spectrum_degree=degree, spectrum_ridge=1e-6, spectrum_mix=1, num_steps=50)
    now = steps[-1] + ahead
    taus = [2 * step / 50 - 1 for step in [*steps, now]]
    *values, truth = chebyshev.chebval(np.array(taus), np.ones(degree + 1))
    got = predict("spectrum", steps, values, now, config)
    assert got == pytest.approx(truth, abs=0.01 * max(abs(value - truth) for value in values))


def test_spectrum_counts_to_fifty_where_the_number_of_steps_is_not_known() -> None:
    weights = FORECASTERS["spectrum"]().weights
    steps = [0, 1, 2, 5, 8]
    unknown, fifty, short = (weights(steps, 10, CacheConfig(num_steps=number)) for number in (None, 50, 28))
    assert unknown == fifty != short
    assert weights(steps, 80, CacheConfig()) == weights(steps, 80, CacheConfig(num_steps=80))  # tau stays within 1
