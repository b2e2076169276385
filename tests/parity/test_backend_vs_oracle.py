"""The backend does what the oracle does, on random FLUX models, random settings and random films."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

pytest.importorskip("diffusers")
pytest.importorskip("dit_compile.backend", exc_type=ImportError)

from parity_support.backend import Workshop, agree, newest_trace
from parity_support.config import Knobs, Scope, Trace
from parity_support.oracle import OracleModel
from parity_support.tiny import Film, play, tiny_flux
from tiers import examples, slow_unless

import dit_compile

FAST = ("chain-f2b1", "chain-cut-within-singles", "container-f2b1")  # both scopes, with and without guidance
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example is small as it is, and takes half a second
SESSIONS = itertools.count()
TOLERANCE = 1e-5  # relative to the largest value of the output


@dataclass(frozen=True)
class Structure:
    """What is compiled: a model and the places of its cuts."""

    name: str
    blocks: tuple[int, int]  # double, single
    fn: int
    bn: int
    scope: Scope = "chain"
    guidance: bool = False

    @functools.cached_property
    def workshop(self) -> Workshop:
        return Workshop(functools.partial(tiny_flux, *self.blocks, guidance=self.guidance))


STRUCTURES = [
    Structure("chain-f1", (4, 4), 1, 0),
    Structure("chain-f2b1", (3, 4), 2, 1),
    Structure("chain-cut-within-singles", (3, 4), 4, 1, guidance=True),
    Structure("chain-region-ends-at-a-list", (4, 3), 1, 3),
    Structure("container-f1", (3, 4), 1, 0, "container"),
    Structure("container-f2b1", (4, 4), 2, 1, "container", guidance=True),
]

LIMITS = st.sampled_from([-1, -1, 0, 1, 2, 3, 5])
# within a factor of four: a step that moves further than that is a jump, which ends history here (Slots.is_jump)
PACES = st.lists(st.sampled_from([0.2, 0.3, 0.5, 0.7]), min_size=8, max_size=14).map(tuple)


@st.composite
def cache_knobs(draw: st.DrawFn) -> dict[str, Any]:
    """Thresholds from off over those that the films cross to one that always hits."""
    return {
        "warmup_steps": draw(st.integers(0, 6)),
        "warmup_interval": draw(st.integers(1, 3)),
        "max_cached_steps": draw(LIMITS),
        "max_continuous_cached_steps": draw(LIMITS),
        "residual_diff_threshold": draw(st.sampled_from([0.0, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 0.95])),
        "forecast": draw(st.sampled_from(["reuse", "taylorseer", "newton"])),
        "taylor_order": draw(st.integers(1, 3)),
    }


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):  # all copies share the code object of FLUX's forward
        yield
    torch._dynamo.reset()


def oracle_trace(model: torch.nn.Module, knobs: Knobs, film: Film, guidance: bool) -> Trace:
    oracle = OracleModel(model, knobs, film.branches)
    outputs = play(oracle, film, guidance)
    trace = oracle.trace()
    return Trace(trace.cached, trace.diffs, outputs)


def is_borderline(trace: Trace, threshold: float) -> bool:
    """Whether rounding could turn a decision."""
    return any(abs(diff - threshold) <= 1e-4 for diffs in trace.diffs.values() for diff in diffs.values())


NAMED = slow_unless(lambda structure: structure.name in FAST, STRUCTURES, lambda structure: structure.name)


@examples(fast=4, slow=12)
@pytest.mark.parametrize("structure", NAMED)
def test_backend_is_the_oracle(structure: Structure, examples: int) -> None:
    @settings(max_examples=examples, phases=UNSHRUNK, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        compare(structure, data)

    check()


def compare(structure: Structure, data: st.DataObject) -> None:
    """One or two generations of drawn settings, by the compiled model and by the oracle."""
    knobs = Knobs(structure.fn, structure.bn, scope=structure.scope, **data.draw(cache_knobs()))
    branches = data.draw(st.integers(1, 3), "branches")
    films = [Film(data.draw(PACES), branches, seed) for seed in range(data.draw(st.integers(1, 2), "generations"))]
    model, compiled = structure.workshop.get(knobs.structure)
    expected = [oracle_trace(model, knobs, film, structure.guidance) for film in films]
    assume(not any(is_borderline(trace, knobs.residual_diff_threshold) for trace in expected))
    with dit_compile.session(f"film-{next(SESSIONS)}", **knobs.runtime()):
        for film, oracle in zip(films, expected, strict=True):
            outputs = play(compiled, film, structure.guidance)
            note(f"the oracle reuses {oracle.cached}")
            agree(newest_trace(model), oracle, rel=1e-3)
            largest = max(float(output.abs().max()) for output in oracle.outputs)
            assert oracle.max_error(Trace(outputs=outputs)) <= TOLERANCE * largest
