"""Random settings against cache-dit 1.0.14 and 1.5.3: the same steps are reused and the same picture comes out.

The bundled FLUX model over 28 steps, as one chain and as its two lists, with and without guidance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("dit_compile.backend", exc_type=ImportError)

from parity_support.backend import Workshop, agree, newest_trace
from parity_support.cases import Case
from parity_support.config import Trace
from parity_support.drawn import CUTS, drawn_cases
from parity_support.generation import STEPS, Studio
from parity_support.oracle import oracle_trace
from tiers import slow_unless

import dit_compile

PeerTrace = Callable[[Case], Trace]
TOLERANCE = 1e-4
CASES = drawn_cases()
FAST = [(2, 3, "chain"), (1, 2, "container")]  # each structure is a compilation of some seconds
NAMED = slow_unless(lambda case: case.knobs.structure in FAST, CASES, lambda case: case.name)


@pytest.mark.parametrize("case", NAMED)
def test_same_steps_and_same_picture(case: Case, studio: Studio, peer_trace: PeerTrace, workshop: Workshop) -> None:
    """Where 1.0.14 counts streaks its own way, which we do not, the oracle is compared in our stead."""
    peer = peer_trace(case)
    if case.for_backend:
        model, compiled = workshop.get(case.knobs.structure)
        with dit_compile.session(case.name, **case.knobs.runtime()):
            drawn = studio.draw(studio.pipeline(compiled), case.branches)
        agree(newest_trace(model), peer, rel=1e-3)
    else:
        drawn = oracle_trace(studio, case, case.version)
        agree(drawn, peer, rel=1e-5 if peer.excerpts is None else 1e-4)  # see test_oracle_vs_peer.py
    assert drawn.max_error(peer) <= TOLERANCE


def test_enough_is_drawn(peer_trace: PeerTrace) -> None:
    """At least 40 configurations of ours, which vary every setting and differ in what they reuse."""
    ours = [case for case in CASES if case.for_backend]
    assert len({case.job for case in ours}) >= 40
    assert {case.version for case in ours} == {"1.0.14", "1.5.3"}
    assert {case.branches for case in ours} == {1, 2}
    assert {case.knobs.structure for case in ours} == {(*cut, scope) for scope, cuts in CUTS.items() for cut in cuts}
    for setting, least in {
        "warmup_steps": 8,
        "warmup_interval": 4,
        "max_cached_steps": 5,
        "max_continuous_cached_steps": 6,
        "residual_diff_threshold": 12,
        "taylor_order": 3,
        "forecast": 2,
    }.items():
        assert len({getattr(case.knobs, setting) for case in ours}) >= least, setting
    reused = Counter(tuple(peer_trace(case).cached[0, 0]) for case in ours)
    assert len(reused) >= 25, "too many configurations lead to the same"
    assert reused[()] <= len(ours) // 3, "too many reuse nothing"
    assert max(map(len, reused)) > STEPS // 2
