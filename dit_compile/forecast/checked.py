"""What a forecaster answers, checked: a plug-in that fails costs a step, never a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import CacheConfig
from .base import MAX_SNAPSHOTS, Forecaster

DAMPING = 0.6  # of those tried in benchmarks/heun.py, the one with the largest least gain at 12 and 14 steps


class ForecastError(Exception):
    """A forecaster failed or gave an answer that cannot be used; the message says which."""


def wanted_snapshots(forecaster: Forecaster, config: CacheConfig) -> int:
    """How many snapshots ``forecaster`` wants to be kept, 1 to ``MAX_SNAPSHOTS``.

    Raises:
        ForecastError: it raised, or wants another number.
    """
    try:
        count = forecaster.snapshots(config)
    except Exception as error:
        raise ForecastError(f"snapshots() raised {type(error).__name__}: {error}") from error
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SNAPSHOTS:
        raise ForecastError(f"snapshots() returned {count!r}, expected an integer from 1 to {MAX_SNAPSHOTS}")
    return count


def checked_weights(forecaster: Forecaster, steps: Sequence[int], now: float, config: CacheConfig) -> list[float]:
    """One finite weight for each of the latest snapshots that ``forecaster`` wants, zeros for older ones.

    ``steps`` are the steps of all snapshots in hand, rising, ``now`` is the step to predict (see ``Forecaster``); steps
    of one time count as one (``Times.points``). Of the newest snapshot's time nothing is to be predicted: it has all
    the weight.

    Raises:
        ForecastError: it raised, or its weights are not finite or of another number.
    """
    if now == steps[-1]:
        return [0.0] * (len(steps) - 1) + [1.0]
    used = steps[-wanted_snapshots(forecaster, config) :]
    try:
        weights = [float(weight) for weight in forecaster.weights(used, now, config)]
    except Exception as error:
        raise ForecastError(f"weights() raised {type(error).__name__}: {error}") from error
    if len(weights) != len(used):
        raise ForecastError(f"weights() returned {len(weights)} weights for {len(used)} snapshots")
    if not all(map(math.isfinite, weights)):
        raise ForecastError(f"weights() returned {weights}, which are not all finite")
    return [0.0] * (len(steps) - len(used)) + weights


def damped(weights: Sequence[float]) -> list[float]:
    """``DAMPING`` of ``weights``, and the rest of reuse.

    For solvers that evaluate twice at a time (Heun): the latents of the two differ by the solver's error, so snapshots
    lie beside the curve that a forecast prolongs, and what it adds to the newest one is too much.
    """
    return [DAMPING * weight + (1 - DAMPING) * (i == len(weights) - 1) for i, weight in enumerate(weights)]
