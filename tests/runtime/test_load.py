"""A server under load: eight threads, mixed requests, some of which are aborted.

Each request gives what it gives alone, memory does not grow, and nothing is left.

Requests differ in size, batch, length of the prompt, guidance (none, two calls a step, one call of twice the batch),
number of steps and settings. One in eight has no session, one in twenty is aborted: by an exception in the loop, by one
out of the model's call, or by a caller who keeps the session open and goes away.
"""

import contextlib
import ctypes
import gc
import random
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from toys import Prompted, build, latents

import dit_compile
from dit_compile.api import table
from dit_compile.policy import Policy, Verdict, register_policy
from dit_compile.runtime.session import _open, session_here

THREADS = 8
WARM_UP = 250  # generations before memory is measured
MOST_GROWTH = 16.0  # MiB for 250 generations, each of which holds up to 0.4
SETTINGS = (
    {}, {"residual_diff_threshold": 0}, {"enabled": False}, {"preset": "fast"}, {"policy": "interval", "interval": 3},
    {"policy": "mask", "step_mask": "1101001010"}, {"forecast": "taylorseer", "taylor_order": 2},
    {"preset": "cache-dit", "warmup_steps": 2, "residual_diff_threshold": 0.4}, {"snapshot_dtype": "float8"},
    {"batch_decision": "rows", "residual_diff_threshold": 0.2}, {"forecast": "spectrum"}, {"policy": "adacache"},
    {"cfg_decision": "shared"}, {"policy": "magcache", "mag_ratios": [1, 1, 0.99, 0.99, 0.98]},
    {"max_continuous_cached_steps": 1}, {"taylor_order": 1}, {"forecast": "dicache"},
)  # fmt: skip
OPTIONS = {"warmup_steps": 1, "residual_diff_threshold": 0.5}


class Aborted(BaseException):
    """Like KeyboardInterrupt and CancelledError: no handler of exceptions stops it."""


class Breaking(Policy):
    """Lets the call fail in which a third step is decided."""

    needs_probe = False

    def before(self, step, config):
        if step.index == 2:
            raise Aborted("in the call")
        return Verdict(False, "warmup")


@dataclass
class Request:
    """One generation, and how it ends."""

    seed: int
    tokens: int
    batch: int
    words: int
    guidance: str
    steps: int
    settings: dict | None  # None: no session
    ending: str = "done"
    outs: list = field(default_factory=list)
    calls: int = 0
    unseen: int = 0  # calls that torch has run without compiled code
    right: bool | None = None  # as if alone

    def session(self, name):
        if self.settings is None:
            return contextlib.nullcontext()
        settings = self.settings
        if self.ending == "call":
            settings = {"policy": "breaking"}
        return dit_compile.session(name, keep=self.ending == "left", **settings)

    @torch.no_grad()
    def run(self, model):
        x = latents(self.batch, self.tokens, seed=self.seed)
        prompts = [latents(1, self.words, seed=1000 + 2 * self.seed + i).repeat(self.batch, 1, 1) for i in (0, 1)]
        if self.guidance == "batched":
            prompts = [torch.cat(prompts)]
        for step in range(self.steps):
            if step == 2 and self.ending in ("loop", "left"):
                raise Aborted("in the loop")
            if step == 2 and self.ending == "input":
                model(x[..., :3], torch.full((self.batch,), 1.0), prompts[0])  # no such width
            time = 1000.0 * (1 - step / self.steps)
            out = self.guided(model, x, time, prompts)
            x = x - 0.1 * out
            self.outs.append(out)

    def guided(self, model, x, time, prompts):
        t = torch.full((self.batch,), time)
        self.calls += 1 + (self.guidance == "calls")
        if self.guidance == "none":
            return model(x, t, prompts[0])
        if self.guidance == "batched":
            first, second = model(torch.cat([x, x]), torch.cat([t, t]), prompts[0]).chunk(2)
        else:
            first, second = (model(x, t, prompt) for prompt in prompts)
        return second + 2.0 * (first - second)


def requests(count):
    rng = random.Random(0)
    made = []
    for seed in range(count):
        kind = {
            "tokens": rng.choice([192, 256, 320]), "batch": rng.choice([1, 2, 3]), "words": rng.choice([3, 4, 6]),
            "guidance": rng.choice(["none", "calls", "batched"]), "steps": rng.choice([4, 7, 10]),
        }  # fmt: skip
        settings = None if rng.random() < 1 / 8 else rng.choice(SETTINGS)
        ending = rng.choice(["loop", "call", "input", "left"]) if seed % 20 == 7 else "done"
        if settings is None and ending != "done":
            ending = "loop"
        made.append(Request(seed, **kind, settings=settings, ending=ending))
    return made


def resident():
    """MiB of this process, without what is garbage or free."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def serve(model, requests, pool, alone):
    """Runs the requests and compares them with those that ran ``alone``; returns the errors that nobody asked for."""

    def one(request):
        # torch's settings are those of a thread. Guards fail now and then where threads evaluate them at one time.
        with torch._dynamo.config.patch(recompile_limit=256):
            try:
                with request.session(f"together {request.seed}"):
                    request.run(model)
                    request.unseen = request.calls - seen()
            except Aborted:
                return None if request.ending in ("loop", "call", "left") else "aborted"
            except Exception as error:
                return None if request.ending == "input" else error
            request.right = same(request, alone[request.seed])
            request.outs.clear()  # memory that is measured is not the test's own
            return None if request.ending == "done" else "not aborted"

    return [error for error in pool.map(one, requests) if error is not None]


def seen():
    """Calls of the generation of this session. Where many threads call one compiled function, torch runs a call now and
    then as if nothing were compiled."""
    name = session_here(table.end_session).name
    state = next(state for (_, session), state in list(table._states.items()) if session == name)
    return len({(step.index, step.branch) for step in state.generation.steps})


def snapshots():
    """Weak references to the tensors that are held at present."""
    held = []
    for state in list(table._states.values()):
        for slots in list(state.slots.values()):
            held += [weakref.ref(stored.data) for snapshot in list(slots.ring) for stored in snapshot.values]
    return held


@pytest.fixture
def hasty():
    """Threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_requests_under_load_are_as_if_alone(count, hasty, caplog):
    register_policy("breaking")(Breaking)
    model = torch.compile(build(Prompted, depth=3), backend="dit_cache", options={"inner": "eager", **OPTIONS})
    alone = {request.seed: request for request in requests(count) if request.ending == "done"}
    for request in alone.values():
        with torch._dynamo.config.patch(recompile_limit=256), dit_compile.session("alone", **(request.settings or {})):
            request.run(model)

    together, held, stop = requests(count), [], threading.Event()

    def look():
        while not stop.wait(0.02):
            held.extend(snapshots()[: 1000 - len(held)])
            dit_compile.stats(model)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    parts = [together[:WARM_UP], together[WARM_UP:]]
    marks = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="worker") as pool:
        for part in parts:
            assert not serve(model, part, pool, alone)
            caplog.clear()  # what torch logs of bad input holds tracebacks
            marks.append(resident())
    stop.set()
    looker.join()

    finished = [one for one in together if one.ending == "done"]
    compiled = [one for one in finished if not one.unseen]
    assert len(compiled) > 0.98 * len(finished)
    differing = [(one.seed, one.settings) for one in compiled if not one.right]
    assert not differing
    growth = marks[-1] - marks[0]
    print(
        f"{len(finished)} of {count} generations finished, {len(finished) - len(compiled)} with calls that torch ran "
        f"uncompiled; resident memory grew by {growth:.1f} MiB after the first {WARM_UP}"
    )
    assert growth < MOST_GROWTH
    names = [session for _, session in table._states]
    assert not names, names  # sessions are closed or gone, threads have ended
    dit_compile.reset()
    assert held and not [one for one in held if one() is not None]
    assert not [name for name in _open if name.startswith("together")]
    assert not [owner for owner in table._owners.values() if owner.budget.held()]


def same(one, other):
    """To the bit, but where rows decide for themselves: blocks then run for as many rows as the graph allows."""
    if one.settings and one.settings.get("batch_decision"):
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one.outs, other.outs, strict=True))
    return len(one.outs) == one.steps and all(map(torch.equal, one.outs, other.outs))
