"""Nobody sees anybody else's snapshots: threads, sessions, resets, changed shapes and failing calls."""

import contextvars
import gc
import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from toys import Prompted, build, compile_toy, latents, moved

import dit_compile
from dit_compile.api import table
from dit_compile.policy import Policy, Verdict, register_policy

TIMES = [1000.0, 800.0, 600.0, 450.0, 300.0, 200.0, 120.0, 60.0]
ALWAYS = {"warmup_steps": 2, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": 2}
ADAPTIVE = {"warmup_steps": 2, "residual_diff_threshold": 0.2, "max_continuous_cached_steps": 2}


def prompt(seed, tokens=3):
    return latents(tokens=tokens, seed=1000 + seed)


class Request:
    """One generation, run step by step by whoever holds it: what a pipeline's loop does."""

    def __init__(self, model, seed, branches=2, steps=8, guided=None, tokens=5, batch=2):
        """``guided``: from this step on only the first branch runs."""
        self.model, self.branches, self.guided = model, branches, steps if guided is None else guided
        self.times = TIMES[:steps]
        self.x = latents(batch, tokens, seed=seed)
        self.prompts = [prompt(10 * seed + b)[:1].expand(batch, -1, -1) for b in range(branches)]
        self.outs = []

    def step(self):
        t = torch.full((self.x.shape[0],), self.times[len(self.outs)])
        branches = self.branches if len(self.outs) < self.guided else 1
        outs = [self.model(self.x, t, self.prompts[b]) for b in range(branches)]
        out = outs[0] if branches == 1 else outs[1] + 2.0 * (outs[0] - outs[1])
        self.x = self.x - 0.1 * out
        self.outs.append(out)

    @property
    def done(self):
        return len(self.outs) == len(self.times)

    @torch.no_grad()
    def run(self):
        while not self.done:
            self.step()
        return self.outs


_alone = itertools.count()


def alone(model, *args, **kwargs):
    """The outputs of a request that has a session of its own to itself."""
    with dit_compile.session(f"alone {next(_alone)}"):
        return Request(model, *args, **kwargs).run()


def same(got, wanted):
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))


def reused(session):
    return sum(stats.reused for stats in dit_compile.stats() if stats.session == session)


BOTH = pytest.mark.parametrize(
    "model", [pytest.param(ALWAYS, marks=pytest.mark.slow), ADAPTIVE], ids=["always", "adaptive"], indirect=True
)


@pytest.fixture
def model(request):
    return compile_toy(build(Prompted, depth=3), **getattr(request, "param", ADAPTIVE))


@BOTH
def test_requests_differ_and_are_cached(model):
    """Without this the other tests of this file would prove nothing."""
    first, second = alone(model, 1), alone(model, 2)
    assert not any(map(torch.equal, first, second))
    plain = Request(model._orig_mod, 1).run()
    assert torch.equal(first[1], plain[1])
    assert not torch.equal(first[-1], plain[-1])
    assert all(stats.reused > 0 and stats.branches == [0, 1] for stats in dit_compile.stats(model))


@pytest.mark.parametrize("sessions", [True, False])
def test_two_threads_in_step(model, sessions):
    """Two generations of one compiled module, interleaved by a barrier before each step."""
    wanted = {seed: alone(model, seed) for seed in (1, 2)}
    barrier, got, errors = threading.Barrier(2), {}, []  # a thread that fails aborts it

    @torch.no_grad()
    def loop(request):
        while not request.done:
            barrier.wait()
            request.step()

    def work(seed):
        try:
            request = Request(model, seed)
            if sessions:
                with dit_compile.session(f"request {seed}"):
                    loop(request)
            else:
                loop(request)
            got[seed] = request.outs
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,), name=f"worker {seed}") for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(same(got[seed], wanted[seed]) for seed in (1, 2))
    names = {stats.session for stats in dit_compile.stats(model) if not stats.session.startswith("alone")}
    assert len(names) == 2
    assert all("request" in name if sessions else "worker" in name for name in names)
    del threads, thread
    gc.collect()  # what torch holds in cycles may hold the session of a thread that has ended
    assert not [session for _, session in table._states if "worker" in session or "request" in session]


@BOTH
@torch.no_grad()
def test_sessions_that_take_turns(model):
    wanted = {seed: alone(model, seed) for seed in (1, 2, 3)}
    requests = {seed: Request(model, seed) for seed in wanted}
    sessions = {seed: dit_compile.session(f"r{seed}", keep=True) for seed in wanted}
    for _ in TIMES:
        for seed, request in requests.items():
            with sessions[seed]:
                request.step()
    for seed, request in requests.items():
        assert same(request.outs, wanted[seed])
        assert reused(f"r{seed}") > 0


@torch.no_grad()
def test_nested_sessions(model):
    """The inner one has the say; leaving it brings the outer one back where it was."""
    wanted = {seed: alone(model, seed) for seed in (1, 2)}
    outer, inner = Request(model, 1), Request(model, 2)
    with dit_compile.session("outer"):
        for _ in range(5):
            outer.step()
        with dit_compile.session("inner"):
            inner.run()
        outer.run()
    assert same(outer.outs, wanted[1])
    assert same(inner.outs, wanted[2])


@torch.no_grad()
def test_a_session_can_be_entered_within_itself(model):
    wanted, request = alone(model, 1), Request(model, 1)
    session = dit_compile.session("again")
    with session:
        for _ in TIMES:
            with session:
                request.step()
    assert same(request.outs, wanted)


@torch.no_grad()
def test_leaving_a_session_frees_its_memory_and_keeps_its_statistics(model):
    held = lambda: {session: state.bytes_held() for (_, session), state in table._states.items()}  # noqa: E731
    with dit_compile.session("mine"):
        Request(model, 1).run()
        assert held()["mine"] > 0
    assert "mine" not in held()
    [stats] = [stats for stats in dit_compile.stats(model) if stats.session == "mine"]
    assert stats.ended
    assert len(stats.steps) == 2 * len(TIMES)
    assert stats.bytes_held > 0


@torch.no_grad()
def test_a_kept_session_frees_its_memory_when_it_is_closed(model):
    session = dit_compile.session("kept", keep=True)
    request = Request(model, 1)
    with session:
        request.step()
    assert [name for _, name in table._states] == ["kept"]
    session.close()
    assert not table._states


@torch.no_grad()
def test_settings_of_a_session_are_its_own(model):
    with dit_compile.session("exact", residual_diff_threshold=0):
        exact = Request(model, 1)
        exact.step()
        with dit_compile.session("cached", residual_diff_threshold=1.0, warmup_steps=1):
            cached = Request(model, 1)
            cached.run()
        exact.run()
    assert same(exact.outs, Request(model._orig_mod, 1).run())
    assert reused("exact") == 0
    assert reused("cached") > 2 * len(TIMES) // 2
    thresholds = {s.session: s.config.residual_diff_threshold for s in dit_compile.stats(model)}
    assert thresholds == {"exact": 0, "cached": 1.0}


@BOTH
@torch.no_grad()
@pytest.mark.parametrize("where", [0, 2, 3, 5])
def test_reset_in_the_middle_of_a_generation(model, where):
    """What follows is a generation of its own, started in the middle of the schedule."""
    request = Request(model, 1)
    for _ in range(where):
        request.step()
    rest = Request(model, 1)
    rest.x, rest.times = request.x, request.times[where:]
    with dit_compile.session("rest"):
        wanted = rest.run()
    dit_compile.reset()
    assert not table._states
    request.run()
    assert same(request.outs[where:], wanted)


@torch.no_grad()
def test_reset_of_one_module_leaves_the_other(model):
    other = compile_toy(build(Prompted, seed=1, depth=4), **ALWAYS)
    wanted = alone(other, 2)
    mine, theirs = Request(model, 1), Request(other, 2)
    for _ in range(4):
        mine.step()
        theirs.step()
    dit_compile.reset(model)
    theirs.run()
    assert same(theirs.outs, wanted)
    assert [stats.ended for stats in dit_compile.stats(model)] == [True]


@BOTH
@torch.no_grad()
def test_two_modules_of_one_class_called_in_turn(model):
    """Dynamo hands them one graph (Wan 2.2's two experts); their states are two."""
    other = compile_toy(build(Prompted, seed=1, depth=4), **ALWAYS)
    wanted = [alone(model, 1), alone(other, 1)]
    dit_compile.reset()
    requests = [Request(model, 1), Request(other, 1)]
    for _ in TIMES:
        for request in requests:
            request.step()
    assert all(same(request.outs, outs) for request, outs in zip(requests, wanted, strict=True))
    assert not torch.equal(wanted[0][0], wanted[1][0])


@BOTH
@torch.no_grad()
@pytest.mark.parametrize("change", [{"tokens": 7}, {"batch": 3}, {"steps": 5}, {"branches": 1}], ids=str)
def test_a_generation_cut_short_by_a_different_one(model, change):
    """Resolution, batch size, number of steps and of branches may change between any two steps."""
    for when in (1, 4, 8):
        dit_compile.reset()
        first = Request(model, 1)
        for _ in range(when):
            first.step()
        second = Request(model, 2, **change).run()
        third = Request(model, 3).run()
        assert same(second, alone(model, 2, **change))
        assert same(third, alone(model, 3))
        assert same(first.outs, alone(model, 1)[:when])


@torch.no_grad()
def test_branches_whose_prompts_differ_in_length(model):
    """Dynamo may serve them by two graphs; each has snapshots of its own."""

    def run():
        request = Request(model, 1)
        request.prompts[1] = prompt(5, tokens=6)
        return request.run()

    with dit_compile.session("warm"):
        run()
    outs = []
    for name in ("one", "two"):
        with dit_compile.session(name):
            outs.append(run())
    assert same(*outs)
    assert reused("two") > 0


@torch.no_grad()
@pytest.mark.parametrize("policy", ["dbcache", "interval"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_a_prompt_that_joins_first_is_not_forecast_from_another_prompts_snapshots(policy, on_device, monkeypatch):
    """Guidance that starts at step 3 and calls the new branch before the old one."""
    if on_device:
        monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    always = {"warmup_steps": 1, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": -1}
    model = compile_toy(build(Prompted, depth=4), policy=policy, interval=9, **always)
    old, new = prompt(1), prompt(2)
    for step, time in enumerate(TIMES[:5]):
        x, t = moved(step), torch.full((2,), time)
        for p in [old] if step < 3 else [new, old]:
            out = model(x, t, p)
            if step == 3 and p is new:
                torch.testing.assert_close(out, model._orig_mod(x, t, p))


@torch.no_grad()
def test_a_call_that_fails_leaves_a_cold_state(model):
    """Ctrl-C in the middle of a call: what follows is right, and starts anew."""

    @register_policy("touchy")
    class Touchy(Policy):
        fail = False

        def before(self, step, config):
            return None

        def after(self, step, config, diff):
            if self.fail:
                raise KeyboardInterrupt("touched")
            return Verdict(step.index >= 2, "hit" if step.index >= 2 else "warmup")

    model = compile_toy(model._orig_mod, policy="touchy")
    wanted = alone(model, 2)
    request = Request(model, 1)
    for _ in range(3):
        request.step()
    Touchy.fail = True
    with pytest.raises(KeyboardInterrupt, match="touched"):
        request.step()
    assert not table._states
    Touchy.fail = False
    rest = Request(model._orig_mod, 1)
    rest.x, rest.times = request.x, request.times[3:]
    request.run()
    assert dit_compile.stats(model)[-1].steps[0].reason == "no_snapshot"
    assert same(request.outs[3:5], rest.run()[:2])  # warm again for two steps
    assert same(Request(model, 2).run(), wanted)


def test_one_name_is_one_open_session(model):
    """Two requests of one name would mix their snapshots; the name is free again when the session is closed or gone."""
    kept = dit_compile.session("by name", keep=True)
    with torch.no_grad(), kept:
        Request(model, 1).step()
    with pytest.raises(dit_compile.SessionInUse, match="'by name' is open already"):
        dit_compile.session("by name").__enter__()
    kept.close()
    with dit_compile.session("by name", keep=True) as other:
        del kept
    del other
    gc.collect()
    with dit_compile.session("by name"):
        pass


def test_buffers_that_are_moved_away_and_back_change_nothing():
    """Model offload: parameters keep their objects, buffers do not."""

    class Buffered(Prompted):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.register_buffer("positions", latents(1, 5, seed=9))

        def forward(self, x, t, prompt):
            return super().forward(x + self.positions, t, prompt)

    plain = build(Buffered, depth=6)
    model, request = compile_toy(plain, **ALWAYS), None
    wanted = alone(model, 1)
    request = Request(model, 1)
    with torch.no_grad():
        for _ in TIMES:
            request.step()
            plain.to(torch.float64).to(torch.float32)
            gc.collect()
    assert same(request.outs, wanted)
    assert [len(generation.steps) for generation in dit_compile.stats(model)] == [16, 16]


def test_a_kept_session_that_is_abandoned_is_freed(model):
    with torch.no_grad(), dit_compile.session("abandoned", keep=True):
        Request(model, 1).step()
    gc.collect()
    assert not [name for _, name in table._states if name == "abandoned"]


def test_one_session_in_two_threads(model):
    """One request whose steps run on several threads, as in an executor: its state goes with the session object."""
    wanted, request = alone(model, 1), Request(model, 1)
    session = dit_compile.session("steps on threads", keep=True)

    def step():
        with torch.no_grad(), session:
            request.step()

    for _ in TIMES:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    session.close()
    assert same(request.outs, wanted)


def test_a_session_is_used_by_one_call_at_a_time(model):
    """The second caller gets an error that names the session, the first one its picture."""
    wanted, request, errors = alone(model, 1), Request(model, 1), []
    inside, done = threading.Event(), threading.Event()

    class Waiting(Policy):
        needs_probe = False

        def before(self, view, config):
            if threading.current_thread() is first:
                inside.set()
                done.wait(10)
            return Verdict(False, "warmup")

    register_policy("waiting")(Waiting)
    session = dit_compile.session("one at a time", keep=True, policy="waiting")

    def run():
        with torch.no_grad(), session:
            request.step()
            request.step()

    first = threading.Thread(target=run)
    first.start()
    assert inside.wait(10)
    with pytest.raises(dit_compile.SessionInUse, match="'one at a time' is in use"), torch.no_grad(), session:
        Request(model, 2).step()
    done.set()
    first.join()
    session.close()
    assert len(request.outs) == 4 // 2 and not errors
    torch.testing.assert_close(request.outs[0], wanted[0])


def test_leaving_a_session_in_another_context_is_said(model, caplog):
    """A generator that a web framework resumes in copies of the context."""

    def stream():
        with dit_compile.session("stream"), torch.no_grad():
            yield Request(model, 1).step()

    generator = stream()
    contextvars.copy_context().run(next, generator)
    with pytest.raises(StopIteration):
        contextvars.copy_context().run(next, generator)
    assert "'stream' was entered in one context and left in another" in caplog.text


@pytest.mark.parametrize("name", ["", None, 7, "default"])
def test_a_session_needs_a_name(name):
    with pytest.raises(ValueError, match="needs a name"):
        dit_compile.session(name)


def test_bad_settings_of_a_session():
    with pytest.raises(ValueError, match="residual_diff_threshold"):
        dit_compile.session("a", residual_threshold=0.1)
    with pytest.raises(ValueError, match="structure"):
        dit_compile.session("a", fn=2)


@st.composite
def histories(draw):
    """Who moves next: a session makes a step, begins another request, or forgets its state."""
    sessions = draw(st.integers(2, 3))
    kinds = [
        {"branches": draw(st.integers(1, 3)), "steps": draw(st.integers(1, 6)), "guided": draw(st.integers(1, 6))}
        for _ in range(sessions)
    ]
    moves = draw(
        st.lists(
            st.tuples(st.integers(0, sessions - 1), st.sampled_from(["step"] * 8 + ["abandon", "close"])),
            min_size=5,
            max_size=24,
        )
    )
    return kinds, moves


@examples(fast=30, slow=300)
@pytest.mark.parametrize("config", [ALWAYS, ADAPTIVE], ids=["always", "adaptive"])
def test_random_interleavings_equal_isolated_runs(config, examples):
    model = compile_toy(build(Prompted, depth=3), **config)
    known, numbers, hits = {}, itertools.count(), []

    def isolated(seed, kind):
        key = (seed, *kind.values())
        if key not in known:
            known[key] = alone(model, seed, **kind)
        return known[key]

    # Drawn alike in every run: what is reused depends on the draw.
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(histories())
    @torch.no_grad()
    def check(history):
        kinds, moves = history
        run = next(numbers)
        sessions = [dit_compile.session(f"{run} {i}", keep=True) for i in range(len(kinds))]
        seeds = [100 * i for i in range(len(kinds))]
        requests = [Request(model, seed, **kind) for seed, kind in zip(seeds, kinds, strict=True)]
        for who, what in moves:
            if what != "step" or requests[who].done:
                # The next request of this session; "close" forgets, "abandon" leaves a half-done generation behind.
                # Left at its first step it must be closed: the next one begins at the same timestep, and its first call
                # may pass for one more branch of that step (right, but with a snapshot less).
                if what == "close" or len(requests[who].outs) == 1:
                    sessions[who].close()
                seeds[who] += 1
                requests[who] = Request(model, seeds[who], **kinds[who])
            with sessions[who]:
                requests[who].step()
            wanted = isolated(seeds[who], kinds[who])
            assert same(requests[who].outs, wanted[: len(requests[who].outs)])
        for session in sessions:
            session.close()
            hits.append(reused(session.name))  # now: of old generations no statistics are kept

    check()
    assert sum(hits) > 0


@torch.no_grad()
def test_a_session_that_was_left_in_another_context_is_over():
    """A generator that is closed elsewhere: what this context has entered cannot be taken back there."""
    session = dit_compile.session("elsewhere")
    session.__enter__()
    contextvars.Context().run(session.__exit__, None, None, None)
    model = compile_toy(build(Prompted))
    model(latents(seed=1), torch.full((2,), 900.0), latents(tokens=3, seed=2))
    assert [stats.session for stats in dit_compile.stats(model)] == ["default"]
    session.__exit__(None, None, None)
