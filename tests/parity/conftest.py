"""Puts ``parity_support`` within reach and shares what is slow: the model and one run of each cache-dit version."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
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
    from parity_support.peer import Peer


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


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Peer]:
    """Both versions of cache-dit, each with all the cases that it will be asked for."""
    from parity_support.cases import CASES
    from parity_support.drawn import drawn_cases
    from parity_support.peer import Peer

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers' own
    cases = [*CASES, *drawn_cases()]
    return {
        version: Peer(version, folder / f"cache-dit-{version}", [case.job for case in cases if case.version == version])
        for version in sorted({case.version for case in cases})
    }


@pytest.fixture(scope="session")
def peer_trace(peers: dict[str, Peer]) -> Callable[[Case], Trace]:
    """What cache-dit does with a case. The first question starts all cases of both versions, side by side."""
    from parity_support.peer import PeerUnavailable

    def trace(case: Case) -> Trace:
        for peer in peers.values():
            peer.start()
        try:
            return peers[case.version].trace(*case.job)
        except PeerUnavailable as reason:
            pytest.skip(str(reason))

    return trace
