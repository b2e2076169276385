"""FoCa: the predictor and corrector of the paper, which we have, and the calibrator of that name in cache-dit 1.5.3."""

from __future__ import annotations

import pytest
from parity_support.config import FOCA_SCHEDULE
from parity_support.peer import Peer, PeerUnavailable

from dit_compile.config import CacheConfig
from dit_compile.forecast import FORECASTERS


def test_foca_continues_a_line() -> None:
    """The value of step t is t."""
    foca, steps, ours, truth = FORECASTERS["foca"](), [], [], []
    for step, action in enumerate(FOCA_SCHEDULE):
        if action == "c":
            steps = [*steps, step][-3:]
        else:
            weights = foca.weights(steps, step, CacheConfig())
            ours.append(sum(weight * value for weight, value in zip(weights, steps, strict=True)))
            truth.append(step)
    assert truth == [3, 4, 5, 7, 8, 9, 11, 12, 13]
    assert ours == pytest.approx(truth)


@pytest.mark.slow
def test_foca_of_cache_dit_is_another_rule_and_misses_a_line(peers: dict[str, Peer]) -> None:
    """On the same line. Theirs takes a difference over four steps for one step, and forecasts for values."""
    try:
        theirs = peers["1.5.3"].foca()
    except PeerUnavailable as reason:
        pytest.skip(str(reason))
    assert theirs == [3, 4, 5, 8.5, 12.5, 18, 8, 12, 22]
