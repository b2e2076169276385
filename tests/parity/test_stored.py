"""The stored traces are those that cache-dit gives, and there is one for each case."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("diffusers")

from parity_support import stored
from parity_support.cases import CASES, Case
from parity_support.config import Trace
from parity_support.drawn import drawn_cases

PeerTrace = Callable[[Case], Trace]
VERSIONS = ("1.0.14", "1.5.3")
TOLERANCE = 1e-4  # between the machine on which they were recorded and this one


def differences(live: Trace, kept: Trace) -> Iterator[str]:
    """In words, nothing if there are none."""
    if live.cached != kept.cached:
        yield f"reuses {live.cached}, stored are {kept.cached}"
    elif live.diffs != {place: pytest.approx(diffs, rel=1e-3) for place, diffs in kept.diffs.items()}:
        yield f"diffs are {live.diffs}, stored are {kept.diffs}"
    elif (error := live.max_error(kept)) > TOLERANCE:
        yield f"pictures differ by {error:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_stored_traces_are_what_cache_dit_gives(version: str, live_trace: PeerTrace) -> None:
    kept = stored.read(version)
    cases = {stored.key(case): case for case in [*CASES, *drawn_cases()] if case.version == version}
    assert cases.keys() == kept.keys(), f"other cases than stored, run: {stored.COMMAND}"
    wrong = [f"{cases[key].name} {text}" for key in kept for text in differences(live_trace(cases[key]), kept[key])]
    assert not wrong, "\n".join([f"run {stored.COMMAND} if cache-dit is right", *wrong])


def test_every_named_case_is_stored() -> None:
    """Else the fast tests run cache-dit, which takes minutes."""
    kept = {key for version in VERSIONS for key in stored.read(version)}
    assert not [case.name for case in CASES if stored.key(case) not in kept], f"run: {stored.COMMAND}"


def test_a_stored_trace_comes_back(tmp_path) -> None:
    case = CASES[1]
    outputs = [torch.randn(1, 64, 48) for _ in range(3)]
    trace = Trace({(0, 0): [1, 2], (1, 0): []}, {(0, 0): {1: 0.1 + 0.2}, (1, 0): {}}, outputs, torch.randn(1, 64, 48))
    stored.write(case.version, [(case, trace)], {"torch": "0"}, tmp_path)
    [back] = stored.read(case.version, tmp_path).values()
    assert (back.cached, back.diffs) == (trace.cached, trace.diffs)
    assert trace.max_error(back) == back.max_error(trace) == 0.0
    outputs[1][0, 30, 20:40] += 1.0
    assert trace.max_error(back) == pytest.approx(1.0, abs=1e-5)


def test_keys_tell_cases_apart() -> None:
    cases = {(case.version, case.job): case for case in [*CASES, *drawn_cases()]}
    assert len({stored.key(case) for case in cases.values()}) == len(cases)
