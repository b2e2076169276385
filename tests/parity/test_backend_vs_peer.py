"""The backend is cache-dit: the same steps are reused and the same picture comes out, on the bundled FLUX model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("dit_compile.backend", exc_type=ImportError)

from parity_support.backend import Workshop, agree, newest_trace
from parity_support.cases import BY_NAME, CASES, Case
from parity_support.config import Trace
from parity_support.generation import Studio
from tiers import slow_unless

import dit_compile

PeerTrace = Callable[[Case], Trace]
TOLERANCE = 1e-4
# Each structure is a compilation of some seconds. One in the fast tier for each scope, with and without last blocks.
FAST = [(8, 0, "chain"), (1, 2, "chain"), (1, 0, "container"), (1, 1, "container")]
NAMED = slow_unless(
    lambda case: case.knobs.structure in FAST, [case for case in CASES if case.for_backend], lambda case: case.name
)


@pytest.mark.parametrize("case", NAMED)
def test_backend_is_cache_dit(case: Case, studio: Studio, peer_trace: PeerTrace, workshop: Workshop) -> None:
    peer = peer_trace(case)
    model, compiled = workshop.get(case.knobs.structure)
    with dit_compile.session(case.name, **case.knobs.runtime()):
        drawn = studio.draw(studio.pipeline(compiled), case.branches)
    agree(newest_trace(model), peer, rel=1e-3)
    assert drawn.max_error(peer) <= TOLERANCE


@pytest.mark.parametrize(
    "name", [pytest.param("chain-f4-taylor1-cfg", marks=pytest.mark.slow), "container-1.5.3-f1b1-mc2-taylor2-cfg"]
)
def test_the_same_through_options_alone(name: str, studio: Studio, peer_trace: PeerTrace, workshop: Workshop) -> None:
    """No session and no second call: what a user writes. A second picture must not remember the first."""
    case = BY_NAME[name]
    peer = peer_trace(case)
    model, compiled = workshop.compile(case.knobs.options())
    pipe = studio.pipeline(compiled)
    for _ in range(2):
        drawn = studio.draw(pipe, case.branches)
        agree(newest_trace(model), peer, rel=1e-3)
        assert drawn.max_error(peer) <= TOLERANCE
