"""What servers do with a compiled model: thread pools, event loops, generators, forks, offloading, many sessions.

Whatever they do, a forecast is made from the last step of the same request, and from nothing else.
"""

import asyncio
import contextvars
import gc
import random
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import Prompted, build, compile_toy, latents

import dit_compile
from dit_compile.api import table
from dit_compile.runtime.session import _open

TIMES = [1000.0, 900.0, 780.0, 640.0, 500.0, 350.0, 200.0, 90.0]
EAGER = {"warmup_steps": 1, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": 1, "forecast": "reuse"}
"""Every step is reused that may be: the residual of the step before it, which is computed."""


@pytest.fixture
def model():
    return compile_toy(build(Prompted, depth=3), **EAGER)


class Request:
    """One generation, a step at a time."""

    def __init__(self, model, seed, prompts=None, branches=1, times=TIMES):
        self.model, self.plain, self.times = model, model._orig_mod, times
        self.x = latents(1, seed=seed)
        self.prompts = prompts or [latents(1, 3, seed=1000 + 10 * seed + i) for i in range(branches)]
        self.outs, self.kinds = [], []
        self.last = {}  # branch -> (entry, residual) of the step before

    @property
    def done(self):
        return len(self.outs) == len(self.times)

    @torch.no_grad()
    def step(self):
        t = torch.tensor([self.times[len(self.outs)]])
        outs = [self.model(self.x, t, prompt) for prompt in self.prompts]
        for branch, (out, prompt) in enumerate(zip(outs, self.prompts, strict=True)):
            self.kinds.append(self.kind(branch, out, t, prompt))
        self.outs.append(sum(outs))
        self.x = self.x - 0.1 * self.outs[-1]

    def kind(self, branch, out, t, prompt):
        """Computed, or reused from this request's own last step. Fails where it is neither."""
        h, temb = self.plain.front(self.x, t)
        h = h + prompt.mean(1, keepdim=True)
        exact = self.plain.region(h, temb)
        residual, self.last[branch] = self.last.get(branch), exact - h
        if torch.allclose(out, self.plain.tail(exact, temb), atol=1e-5):
            return "compute"
        assert residual is not None and torch.allclose(out, self.plain.tail(h + residual, temb), atol=1e-5)
        return "reuse"

    def run(self):
        while not self.done:
            self.step()
        return self.outs


def alone(model, *args, **kwargs):
    with dit_compile.session("alone"):
        return Request(model, *args, **kwargs).run()


def same(got, wanted):
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))


def warnings_with(text, caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and text in r.getMessage()]


class Threads:
    """Threads to which work is handed by number."""

    def __init__(self, count):
        self.pools = [ThreadPoolExecutor(1, thread_name_prefix=f"worker {i}") for i in range(count)]

    def __enter__(self):
        return self

    def run(self, number, work):
        return self.pools[number].submit(work).result()

    def __exit__(self, *error):
        for pool in self.pools:
            pool.shutdown()


@pytest.fixture(params=["host", "device"])
def times_are_on(request, monkeypatch):
    """On a device the time is known a call later only."""
    if request.param == "device":
        monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    return request.param


def test_requests_are_cached_here(model):
    request = Request(model, 1)
    request.run()
    assert request.kinds.count("reuse") == 4


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("threads", [2, 3, len(TIMES)])
def test_steps_in_turn_on_several_threads_without_a_session(model, threads, branches, times_are_on, caplog):
    """``loop.run_in_executor`` for each step: everything is computed, and one warning says what to do."""
    with Threads(threads) as workers:
        for seed in (1, 2, 3):
            request = Request(model, seed, branches=branches)
            while not request.done:
                workers.run(len(request.outs) % threads, request.step)
            assert "reuse" not in request.kinds
    [text] = warnings_with("several threads, outside of any session", caplog)
    assert "dit_compile.session(name, keep=True)" in text


def test_steps_on_threads_as_they_come(model, times_are_on):
    """Several requests, each step on any thread. Some stay long enough to reuse."""
    rng, reused = random.Random(0), 0
    for run in range(40):
        with Threads(3) as workers:
            for number in range(3):  # one thread alone may be a program that makes new prompts at every step
                workers.run(number, Request(model, 9, times=TIMES[:2]).run)
            requests = [Request(model, seed, branches=1 + run % 2) for seed in range(2 + run // 20)]
            where = [rng.randrange(3) for _ in requests]
            while not all(request.done for request in requests):
                number = rng.choice([i for i, request in enumerate(requests) if not request.done])
                if rng.random() < 0.3:
                    where[number] = rng.randrange(3)
                workers.run(where[number], requests[number].step)
            reused += sum(request.kinds.count("reuse") for request in requests)
    assert reused > 100


def test_threads_with_a_request_each_may_share_a_prompt(model, times_are_on, caplog):
    """And start at different times, as image-to-image does: every request is cached as if alone."""
    shared = [latents(1, 3, seed=77)]
    wanted = [alone(model, seed, prompts=shared, times=TIMES[seed:]) for seed in range(3)]
    rng = random.Random(0)
    with Threads(3) as workers:
        for _ in range(6):
            requests = [Request(model, seed, prompts=shared, times=TIMES[seed:]) for seed in range(3)]
            while not all(request.done for request in requests):
                number = rng.choice([i for i, request in enumerate(requests) if not request.done])
                workers.run(number, requests[number].step)
            assert all(same(request.outs, outs) for request, outs in zip(requests, wanted, strict=True))
    assert not warnings_with("several threads, outside of any session", caplog)


def test_tasks_that_take_turns_with_sessions_open(model):
    """Every step is awaited for, in the event loop or in a thread."""
    wanted = [alone(model, seed) for seed in range(4)]

    async def serve(seed):
        request = Request(model, seed)
        with dit_compile.session(f"task {seed}"):
            while not request.done:
                if seed % 2:
                    await asyncio.to_thread(request.step)
                else:
                    request.step()
                await asyncio.sleep(0)
        return request.outs

    async def main():
        return await asyncio.gather(*map(serve, range(4)))

    assert all(map(same, asyncio.run(main()), wanted))
    assert not table._states or all(name == "alone" for _, name in table._states)


def test_a_session_held_by_a_task_whose_steps_run_in_an_executor(model, caplog):
    """The executor does not pass the session on: nothing is wrong, and the warning says what to do. Entered around each
    step, in the function that runs there, the session works, also while the task holds it."""

    async def serve(enter, name):
        loop, request = asyncio.get_running_loop(), Request(model, 1)
        session = dit_compile.session(name, keep=True)

        def step():
            if not enter:
                return request.step()
            with session:
                request.step()

        with session, Threads(2) as workers:
            while not request.done:
                await loop.run_in_executor(workers.pools[len(request.outs) % 2], step)
        session.close()
        return request

    assert "reuse" not in asyncio.run(serve(False, "lost")).kinds
    assert warnings_with("several threads, outside of any session", caplog)
    assert same(asyncio.run(serve(True, "kept")).outs, alone(model, 1))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_generators_that_other_contexts_resume(model, kind, caplog):
    """Streaming responses: two at a time, each step in a context and on a thread of the framework's choice."""

    def stream(request):
        with dit_compile.session(f"stream {id(request)}"):
            while not request.done:
                yield request.step()

    async def astream(request):
        with dit_compile.session(f"stream {id(request)}"):
            while not request.done:
                yield request.step()

    def advance(generator):
        if kind == "sync":
            return next(generator, "end")
        try:
            return generator.__anext__().send(None)
        except StopIteration as step:
            return step.value
        except StopAsyncIteration:
            return "end"

    requests = [Request(model, seed) for seed in (1, 2)]
    streams = [(stream if kind == "sync" else astream)(request) for request in requests]
    rng = random.Random(0)
    with Threads(2) as workers:
        while streams:
            generator = rng.choice(streams)
            run = contextvars.copy_context().run
            if workers.run(rng.randrange(2), lambda run=run, one=generator: run(advance, one)) == "end":
                streams.remove(generator)
    assert all(request.done for request in requests)
    assert len(warnings_with("entered in one context and left in another", caplog)) == 2
    assert not [name for _, name in table._states if name.startswith("stream")]


def test_a_generator_in_one_context_keeps_its_session(model):
    """As where the consumer is the one who made it; what the consumer runs in between is its own."""
    wanted = [alone(model, seed) for seed in (1, 2)]

    def stream(request, session):
        while not request.done:
            with session:
                request.step()
            yield

    mine, other = Request(model, 1), Request(model, 2)
    session = dit_compile.session("mine", keep=True)
    for _ in stream(mine, session):
        other.step()
    session.close()
    assert same(mine.outs, wanted[0]) and same(other.outs, wanted[1])


def test_a_session_that_two_tasks_hold(model):
    """The second that calls the model gets an error, before it could mix anything; the first goes on."""
    wanted, errors = alone(model, 1), []
    session = dit_compile.session("held twice")

    async def serve(request):
        with session:
            while not request.done:
                try:
                    request.step()
                except dit_compile.SessionInUse as error:
                    return errors.append(str(error))
                await asyncio.sleep(0)

    async def main(requests):
        await asyncio.gather(*map(serve, requests))

    first, second = Request(model, 1), Request(model, 2)
    asyncio.run(main([first, second]))
    assert same(first.outs, wanted) and not second.outs
    [text] = errors
    assert "'held twice' is in use by another task" in text
    assert not [name for _, name in table._states if name == "held twice"]
    with session:  # free again
        assert same(Request(model, 1).run(), wanted)


class Pipeline:
    """The loop of a pipeline of diffusers."""

    def __init__(self, model):
        self.model = model

    def __call__(self, seed, fail_at=None):
        request = Request(self.model, seed, branches=2)
        while not request.done:
            if len(request.outs) == fail_at:
                raise RuntimeError("out of memory, say")
            request.step()
        return request.outs


@pytest.mark.parametrize("then", ["next", "reset"])
def test_a_pipeline_that_fails_half_way(model, then):
    """Its memory is freed when the next generation begins, or by ``reset``; its statistics stay."""
    wanted, pipeline = alone(model, 2, branches=2), Pipeline(model)
    for at in range(2, 6):
        with pytest.raises(RuntimeError, match="out of memory"):
            pipeline(1, fail_at=at)
        held = [
            weakref.ref(stored.data)
            for _, state in [*table._states.items()]
            for slots in state.slots.values()
            for snapshot in slots.ring
            for stored in snapshot.values
        ]
        assert held
        if then == "reset":
            dit_compile.reset()
        else:
            assert same(pipeline(2), wanted)
            dit_compile.reset()
        assert not any(reference() is not None for reference in held)
        aborted = dit_compile.stats(model)[-1 if then == "reset" else -2]
        assert aborted.ended and len(aborted.steps) == 2 * at and aborted.bytes_held > 0
        assert not table._states


def test_a_thousand_short_sessions_and_threads(model):
    """No table grows with the number of requests."""

    def sizes():
        gc.collect()
        known = list({*table._owners.values()})
        return (
            len(table._states), len(known), len(table._owners), len(table._brief), len(_open),
            sum(len(one.history) for one in known), sum(len(one.budget._holders) for one in known),
            len([f for f in weakref.finalize._registry.values() if getattr(f.func, "__self__", None) is table]),
        )  # fmt: skip

    def requests(count, start):
        for i in range(start, start + count):
            with dit_compile.session(f"short {i}", keep=bool(i % 3)) as session:
                Request(model, i, times=TIMES[:1]).run()
            if i % 3 == 1:
                session.close()
            if i % 10 == 0:
                thread = threading.Thread(target=Request(model, i, times=TIMES[:2]).run)
                thread.start()
                thread.join()
        del session, thread

    requests(100, 0)
    before = sizes()
    requests(1000, 100)
    after = sizes()  # what other tests have left may go at any time
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
    assert before[0] == before[4] == 0


def test_threads_of_one_name_have_nothing_in_common(model):
    """A new thread may have the name and the identity of one that has just ended."""
    names = set()

    def work():
        Request(model, 1, times=TIMES[:2]).run()
        names.update(session for _, session in table._states)

    for _ in range(5):
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join()
    assert len(names) == 5


def replace_parameters(module):
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)


def test_parameters_that_are_replaced_at_each_call(model, caplog):
    """Sequential offload: everything is computed, and said once; nothing is left of the weights."""
    gc.collect()
    others = len({*table._owners.values()})
    request = Request(model, 1, branches=2)
    plain = Request(model, 1, branches=2)
    plain.model = model._orig_mod
    wanted = plain.run()
    while not request.done:
        replace_parameters(model._orig_mod)
        request.step()
    assert same(request.outs, wanted)
    [text] = warnings_with("new weights at each call", caplog)
    assert "enable_model_cpu_offload" in text
    gc.collect()
    assert len({*table._owners.values()}) <= others + 1


@torch.no_grad()
def test_models_that_come_and_go_are_not_taken_for_that(caplog):
    for seed in range(6):
        Request(compile_toy(build(Prompted, seed=seed, depth=3), **EAGER), seed).run()
        gc.collect()
    assert not warnings_with("new weights at each call", caplog)


FORK = """
import os, signal, sys, threading, time, torch
sys.path.insert(0, {helpers!r})
import dit_compile
from dit_compile import api
from dit_compile.runtime import session as sessions
from toys import Prompted, build, compile_toy, latents

model = compile_toy(build(Prompted, depth=3), warmup_steps=1, residual_diff_threshold=1.0)
x, prompt = latents(1), latents(1, 3, seed=1)

@torch.no_grad()
def run():
    return [model(x, torch.tensor([t]), prompt) for t in (1000.0, 800.0, 600.0, 400.0)]

wanted = run()
held = dit_compile.session("held", keep=True)
ready = threading.Event()

def hold():
    "Everything that a thread could hold at a fork."
    known = next(iter(api.table._owners.values()))
    with held, torch.no_grad():
        model(x, torch.tensor([1000.0]), prompt)
        state = next(state for (_, name), state in api.table._states.items() if name == "held")
        locks = [api.table._lock, api._lock, api.reports._lock, sessions._lock, known.budget._lock, state.busy]
        for lock in locks:
            lock.acquire()
        ready.set()
        time.sleep(600)

threading.Thread(target=hold, daemon=True).start()

def wait():
    run()  # a default session, which the child does not have any more
    time.sleep(600)

threading.Thread(target=wait, daemon=True).start()
time.sleep(1)
assert ready.wait(60)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    assert all(map(torch.equal, run(), wanted))
    with dit_compile.session("held"):
        assert all(map(torch.equal, run(), wanted))
    [last] = [one for one in dit_compile.stats(model) if one.session == "held"]
    assert last.reused and last.ended
    dit_compile.configure(warmup_steps=2)
    dit_compile.graphs()
    dit_compile.reset()
    assert not api.table._states
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_fork_while_other_threads_hold_every_lock():
    script = textwrap.dedent(FORK).format(helpers=str(Path(__file__).parents[1] / "helpers"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
