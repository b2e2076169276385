"""DiCache: the policy decides as diffusers' accumulating gate does, and both halves do what plain eager code does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("diffusers")

from parity_support.backend import agree, newest_trace
from parity_support.config import Knobs, Trace
from parity_support.oracle import Memory, OracleModel
from parity_support.tiny import Film, play, tiny_flux
from torch import Tensor, nn

import dit_compile
from dit_compile.config import CacheConfig
from dit_compile.policy import POLICIES, StepView

RULES = ("warmup_steps", "max_continuous_cached_steps", "residual_diff_threshold")
SESSIONS = itertools.count()


class DiCacheOracle(OracleModel):
    """The authors' FLUX forward in plain steps, with their probe of one block or more.

    ``gate`` decides by the stream behind the probe's blocks, summed over steps; without it by DBCache's rule. ``by``
    says what the alignment is measured on: that stream ("hidden"), or the effect of these blocks ("residual").
    """

    def __init__(self, transformer: nn.Module, knobs: Knobs, branches: int, by: str, limit: float, gate: bool) -> None:
        super().__init__(transformer, knobs, branches)
        self.by, self.limit, self.gate = by, limit, gate
        self.previous: dict[int, Tensor] = {}  # the probe of the last step, by the identity of its memory
        self.sums: dict[int, float] = {}
        self.windows: dict[int, list[Tensor]] = {}  # probes of computed steps
        self.gammas: list[float] = []

    def _region(
        self, memory: Memory, step: int, blocks: list[nn.Module], run: Callable, image: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        key, entry = id(memory), image
        image, text = run(blocks[: self.knobs.fn], image, text)
        probe = image if self.by == "hidden" else image - entry
        window = self.windows.setdefault(key, [])
        reused = self._gate(memory, step, image) if self.gate else self._decide(memory, step, image - entry)
        self.previous[key] = image
        if reused:
            self._count_hit(memory, step)
            gamma = 1.0
            if len(window) > 1:
                moved = (probe - window[-2]).abs().mean() / (window[-1] - window[-2]).abs().mean()
                gamma = float(moved.clip(1, self.limit))
                self.gammas.append(gamma)
            older, newest = (memory.image[-2:] * 2)[:2] if len(memory.image) == 1 else memory.image[-2:]
            return image + older[1] + gamma * (newest[1] - older[1]), text
        if not self.gate:
            memory.probe = image - entry
        window.append(probe)
        before = image
        image, text = run(blocks[self.knobs.fn :], image, text)
        memory.image.append((step, image - before))
        return image, text

    def _gate(self, memory: Memory, step: int, image: Tensor) -> bool:
        knobs, key = self.knobs, id(memory)
        if not memory.cached or memory.cached[-1] != step - 1:
            memory.run = 0
        if (
            step < knobs.warmup_steps
            or key not in self.previous
            or 0 <= knobs.max_continuous_cached_steps <= memory.run
        ):
            self.sums[key] = 0.0
            return False
        before = self.previous[key]
        memory.diffs[step] = float((image - before).abs().mean() / before.abs().mean())
        self.sums[key] = self.sums.get(key, 0.0) + memory.diffs[step]
        if self.sums[key] >= knobs.residual_diff_threshold:
            self.sums[key] = 0.0
            return False
        return True


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):  # all copies share the code object of FLUX's forward
        yield
    torch._dynamo.reset()


FILMS = [
    Film((0.5, 0.5, 0.2, 0.2, 0.1, 0.5, 1.0, 0.2, 0.2, 0.1, 0.5, 0.5), branches=2, seed=1),
    Film((1.0, 0.2, 0.2, 1.0, 0.5, 0.1, 0.1, 0.1, 1.0, 0.5, 0.2, 0.2, 0.2), branches=1, seed=2),
]


@pytest.mark.parametrize(
    ("policy", "probe", "threshold", "limit", "fn"),
    [("dicache", "hidden", 0.1, 1.5, 1), ("dicache", "hidden", 0.3, 3.0, 2), ("dbcache", "residual", 0.45, 3.0, 1)],
)
def test_backend_is_the_authors_algorithm(policy: str, probe: str, threshold: float, limit: float, fn: int) -> None:
    knobs = Knobs(fn, 0, warmup_steps=2, max_continuous_cached_steps=3, residual_diff_threshold=threshold)
    model = tiny_flux(3, 4)
    options = {"inner": "eager", "policy": policy, "forecast": "dicache", "dicache_limit": limit, "fn": fn}
    compiled: Any = torch.compile(model, backend="dit_cache", options=options)
    runtime = {name: getattr(knobs, name) for name in RULES}
    for film in FILMS:
        oracle = DiCacheOracle(model, knobs, film.branches, probe, limit, gate=policy == "dicache")
        outputs = play(oracle, film, False)
        trace = oracle.trace()
        expected = Trace(trace.cached, trace.diffs, outputs)
        assert any(1 < gamma < limit for gamma in oracle.gammas), "the alignment is at its limits: little is tested"
        with dit_compile.session(f"dicache-{next(SESSIONS)}", **runtime):
            ours = play(compiled, film, False)
        agree(newest_trace(model), expected, rel=1e-3)
        largest = max(float(output.abs().max()) for output in outputs)
        assert expected.max_error(Trace(outputs=ours)) <= 1e-5 * largest


def policy_decisions(name: str, probes: Iterable[Tensor], warmup: int, continuous: int, threshold: float) -> list[bool]:
    """Whether each step is reused, by a policy that compares with the previous step."""
    config = CacheConfig(
        policy=name, warmup_steps=warmup, max_continuous_cached_steps=continuous, residual_diff_threshold=threshold
    )
    policy, memory, run, decisions, before = POLICIES[name](), {}, 0, [], None
    for index, probe in enumerate(probes):
        view = StepView(index, 0, run, memory=memory)
        verdict = policy.before(view, config)
        if verdict is None and before is not None:
            diff = float((probe.float() - before.float()).abs().mean() / before.float().abs().mean())
            verdict = policy.after(view, config, diff)
        decisions.append(verdict is not None and verdict.reuse)
        run = run + 1 if decisions[-1] else 0
        before = probe
    return decisions


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from([0.01, 0.05, 0.1, 0.3]), min_size=5, max_size=25), st.integers(0, 4), st.integers(1, 5))
@pytest.mark.parametrize("name", ["dicache", "teacache"])
def test_the_accumulating_policies_decide_as_the_gate_of_diffusers(
    name: str, paces: list[float], warmup: int, continuous: int
) -> None:
    """The gate of SeaCacheConfig takes any indicator; its filter, which is not in it, makes the one of SeaCache."""
    gates = pytest.importorskip("diffusers.hooks.sea_cache", reason="diffusers before 0.42")
    random = torch.Generator().manual_seed(len(paces))
    probe, probes = torch.randn(4, 8, generator=random), []
    for pace in paces:
        probe = probe + pace * torch.randn(4, 8, generator=random)
        probes.append(probe)
    threshold = 0.2345
    config = gates.SeaCacheConfig(
        threshold=threshold, retention_steps=warmup, cache_end_steps=0, max_consecutive_cached=continuous
    )
    shared, state, expected = gates.SeaCacheSharedState(), gates.SeaCacheContextState(), []
    for index, each in enumerate(probes):
        step = gates._SeaCacheForwardMetadata(index, 1 - index / len(probes), len(probes))
        reused = not shared.resolve_gate(state, step, [each], config)
        state.consecutive_cached = state.consecutive_cached + 1 if reused else 0  # its block hooks do this
        expected.append(reused)
    assert policy_decisions(name, probes, warmup, continuous, threshold) == expected
