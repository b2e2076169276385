"""Random interleavings of sessions over one graph give what each request gives alone.

Two to four sessions, each running requests of its own: one to three branches of guidance, of which some leave and come
back part-way, any number of steps, two resolutions, prompts that come back in later requests, latents that are one
tensor for all branches of a step or a copy for each; requests are abandoned, sessions forgotten, all state reset. The
oracle is told what the clock has to find out: where a generation begins, which step and which branch a call is of.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from direct_graph import DirectGraph, Oracle
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tiers import examples
from toys import latents

import dit_compile

OPTIONS = {
    "warmup_steps": 2,
    "residual_diff_threshold": 0.05,
    "max_continuous_cached_steps": 3,
    "forecast": "newton",
    "taylor_order": 1,
}
PROMPTS = [latents(1, tokens=3, seed=100 + i, width=4) for i in range(5)]
WIDTHS = {"small": 3, "large": 5}


@dataclass
class Request:
    """One generation: its inputs, step by step."""

    seed: int
    tokens: int
    attendance: list[tuple[int, ...]]  # the branches of each step, each a number of a prompt
    shared: bool
    oracle: Oracle
    first: int = 0  # the step at which the state was last forgotten

    def __post_init__(self):
        self.start, self.way = (latents(1, self.tokens, seed=2 * self.seed + i, width=4) for i in (0, 1))
        self.calls = [(step, branch) for step, branches in enumerate(self.attendance) for branch in branches]
        self.done = 0

    def next(self):
        """(step, prompt number, latents, timestep, prompt) of the next call."""
        step, branch = self.calls[self.done]
        if not self.shared or self.done == 0 or self.calls[self.done - 1][0] != step:
            self.x = self.start + 0.03 * step * self.way
        self.done += 1
        return step, branch, self.x, torch.tensor([1000.0 * (1 - step / len(self.attendance))]), PROMPTS[branch]


@st.composite
def attendances(draw):
    """Who is called at each step: branches in the order of their first call, of which some stay away for a while."""
    branches = draw(st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, max_size=3, unique=True))
    steps = draw(st.sampled_from([8, 5, 1, 2, 3, 6, 7, 9]))
    everybody = [tuple(branches)] * steps
    if len(branches) > 1 and steps > 3:
        away, leaves, returns = draw(st.tuples(st.sampled_from(branches), st.integers(2, steps), st.integers(3, 12)))
        for step in range(leaves, min(returns, steps)):
            everybody[step] = tuple(branch for branch in branches if branch != away)
    return everybody


MADE = {"machines": 0, "reused": 0, "calls": 0}


class Sessions(RuleBasedStateMachine):
    @initialize(first=st.lists(attendances(), min_size=2, max_size=4))
    def begin(self, first):
        MADE["machines"] += 1
        self.graph = DirectGraph(**OPTIONS)
        self.seeds = itertools.count()
        self.sessions = [dit_compile.session(f"s{i}", keep=True) for i in range(len(first))]
        self.requests = [Request(next(self.seeds), 5, attendance, True, Oracle(OPTIONS)) for attendance in first]

    @rule(who=st.integers(0, 3), attendance=attendances(), size=st.sampled_from(list(WIDTHS)), shared=st.booleans())
    def new_request(self, who, attendance, size, shared):
        """Also where the last one is not finished. Where it ended at its first step, the session must say so: the next
        one begins at the same time, and its first call may pass for one more branch of that step."""
        who %= len(self.sessions)
        last = self.requests[who]
        if last.done and last.calls[last.done - 1][0] == 0:
            self.graph.forget(f"s{who}")
        self.requests[who] = Request(next(self.seeds), WIDTHS[size], attendance, shared, Oracle(OPTIONS))

    @rule(who=st.integers(0, 3), calls=st.sampled_from([5, 1, 2, 3, 4, 7, 30]))
    def run(self, who, calls):
        """Some calls, which may end in the middle of a step."""
        who %= len(self.sessions)
        request = self.requests[who]
        with self.sessions[who]:
            for _ in range(min(calls, len(request.calls) - request.done)):
                step, branch, x, t, prompt = request.next()
                got = self.graph(x, t, prompt)
                wanted = request.oracle(step - request.first, branch, x, t, prompt)
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
                MADE["calls"] += 1
        MADE["reused"] += request.oracle.reused
        request.oracle.reused = 0

    @rule(turns=st.lists(st.integers(0, 3), min_size=3, max_size=20))
    def take_turns(self, turns):
        """Call by call."""
        for who in turns:
            self.run(who, 1)

    @rule(who=st.integers(0, 3))
    def forget(self, who):
        """The end of a session."""
        who %= len(self.sessions)
        if self.can_forget(who):
            self.graph.forget(f"s{who}")
            self.forgotten(who)

    @precondition(lambda self: all(map(self.can_forget, range(len(self.sessions)))))
    @rule()
    def reset(self):
        self.graph.forget()
        for who in range(len(self.sessions)):
            self.forgotten(who)

    def teardown(self):
        for session in getattr(self, "sessions", ()):
            session.close()  # its name is free again

    def can_forget(self, who):
        """Between steps, and where the next two have all branches: who is first to come is who is known."""
        request = self.requests[who]
        if request.done in (0, len(request.calls)):
            return True
        step, before = request.calls[request.done][0], request.calls[request.done - 1][0]
        return step != before and all(len(b) == len(request.attendance[0]) for b in request.attendance[step : step + 2])

    def forgotten(self, who):
        request = self.requests[who]
        if request.done < len(request.calls):
            request.first, request.oracle = request.calls[request.done][0], Oracle(OPTIONS)


@examples(fast=100, slow=1000)
def test_a_thousand_interleavings(examples):
    """A tenth of them in the fast tier."""
    before = dict(MADE)
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    made = {what: MADE[what] - before[what] for what in MADE}
    assert made["machines"] >= examples
    assert made["calls"] > 5 * examples and 0.1 < made["reused"] / made["calls"] < 0.9


@pytest.mark.parametrize(("warmup", "known"), [(2, False), (2, True), (0, True)])
def test_a_prompt_that_joins_first_at_the_second_step(warmup, known):
    """It takes the place of the prompt that was there, whose snapshot must not enter its forecasts.

    That prompts last is known when one comes back (``known``: in an earlier generation). Before, that step cannot be
    told from one of a pipeline that makes new prompt tensors for every call, and must lie in the warm-up.
    """
    options = {**OPTIONS, "warmup_steps": warmup}
    graph = DirectGraph(**options)
    generations = [[(0,)] * 3] * known + [[(0,)] + [(1, 0)] * 7]
    for number, attendance in enumerate(generations):
        newcomer, old = Oracle(options), Oracle(options)
        request = Request(number, 5, attendance, True, newcomer)
        for _ in request.calls:
            step, branch, x, t, prompt = request.next()
            got = graph(x, t, prompt)
            if step and branch == 0 and number == len(generations) - 1:  # it moves, and begins anew where it went
                torch.testing.assert_close(got, old(step, branch, x, t, prompt), rtol=1e-5, atol=1e-5)
            elif branch == 1:
                torch.testing.assert_close(got, newcomer(step, branch, x, t, prompt), rtol=1e-5, atol=1e-5)
    assert newcomer.reused >= 3 and old.reused >= 3


@pytest.mark.parametrize("shared", [True, False])
def test_the_oracle_reuses(shared):
    """Without this the machine would prove nothing."""
    request = Request(1, 5, [(0, 1)] * 9, shared, Oracle(OPTIONS))
    for _ in request.calls:
        request.oracle(*request.next())
    assert request.oracle.reused >= 6
