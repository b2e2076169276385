"""Puts ``parity_support`` within reach and shares what is slow: the model and one run of each cache-dit version."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from parity_support.backend import Workshop
    from parity_support.cases import Case
    from parity_support.config import Trace
    from parity_support.generation import Studio
    from parity_support.peer import Job, Peer


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are faster so, and sums are taken in the same order here and in the peer's process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def studio() -> Studio:
    pytest.importorskip("diffusers")
    from parity_support.generation import Studio

    from dit_compile.demo.pipeline import MissingDemoDependency

    try:
        return Studio()
    except MissingDemoDependency as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def workshop(studio: Studio) -> Iterator[Workshop]:
    """The bundled model, compiled once for each structure."""
    from parity_support.backend import Workshop

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):  # all copies share the code object of FLUX's forward
        yield Workshop(studio.transformer)
    torch._dynamo.reset()


def start_peers(factory: pytest.TempPathFactory, name: str, cases: Iterable[Case]) -> dict[str, Peer]:
    """Each version of cache-dit that ``cases`` are about, with all the cases that it will be asked for."""
    from parity_support.peer import Peer

    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers' own
    jobs: dict[str, list[Job]] = {}
    for case in cases:
        jobs.setdefault(case.version, []).append(case.job)
    return {version: Peer(version, folder / f"{name}-{version}", mine) for version, mine in sorted(jobs.items())}


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Peer]:
    """Both versions of cache-dit, for the tests that run it."""
    from parity_support.cases import CASES
    from parity_support.drawn import drawn_cases

    return start_peers(tmp_path_factory, "cache-dit", [*CASES, *drawn_cases()])


def ask_live(peers: dict[str, Peer], case: Case) -> Trace:
    """The first question starts all cases of both versions, side by side."""
    from parity_support.peer import PeerUnavailable

    for peer in peers.values():
        peer.start()
    try:
        return peers[case.version].trace(*case.job)
    except PeerUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def live_trace(peers: dict[str, Peer]) -> Callable[[Case], Trace]:
    """What cache-dit does with a case, now and here."""
    return lambda case: ask_live(peers, case)


@pytest.fixture(scope="session")
def stored_trace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Trace]:
    """What cache-dit did with a case. It is run for cases that are not stored: new ones, or after a change to the model
    or to the version of hypothesis."""
    from parity_support import stored
    from parity_support.cases import CASES
    from parity_support.drawn import drawn_cases

    cases = [*CASES, *drawn_cases()]
    known = {
        name: trace for version in {case.version for case in cases} for name, trace in stored.read(version).items()
    }
    missing = [case for case in cases if stored.key(case) not in known]
    peers = start_peers(tmp_path_factory, "not-stored", missing)

    def trace(case: Case) -> Trace:
        found = known.get(stored.key(case))
        return ask_live(peers, case) if found is None else found

    return trace


@pytest.fixture(scope="session", params=["stored", pytest.param("live", marks=pytest.mark.slow)])
def peer_trace(request: pytest.FixtureRequest) -> Callable[[Case], Trace]:
    """What cache-dit does with a case: as it was stored in the fast tests, live in the slow ones."""
    answer: Callable[[Case], Trace] = request.getfixturevalue(f"{request.param}_trace")
    return answer
