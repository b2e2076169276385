"""The host waits for a number only where a decision needs one; late timesteps change no picture."""

import pytest
import torch
from toys import Prompted, Toy, build, compile_toy, latents

import dit_compile
from dit_compile.runtime.transfer import Parcel

TIMES = [1000.0, 850.0, 700.0, 550.0, 400.0, 250.0, 120.0, 60.0]
DBCACHE = {
    "policy": "dbcache",
    "warmup_steps": 2,
    "residual_diff_threshold": 0.3,
    "max_continuous_cached_steps": 2,
    "forecast": "taylorseer",
    "taylor_order": 1,
}


@pytest.fixture
def transfers(monkeypatch):
    """Counts transfers, and those of them that the host waits for at once: a decision needs the numbers."""
    seen = {"sent": 0, "waited": 0}
    send, wait = Parcel.send, Parcel.wait

    def counting_send(self):
        seen["sent"] += 1
        send(self)

    def counting_wait(self):
        seen["waited"] += not self.sent
        return wait(self)

    monkeypatch.setattr(Parcel, "send", counting_send)
    monkeypatch.setattr(Parcel, "wait", counting_wait)
    return seen


@pytest.fixture
def device_timesteps(monkeypatch):
    """Timesteps behave as if they were on a GPU that is far behind: never there until they are waited for."""
    wait, asked = Parcel.wait, []

    def ask(self):
        asked.append(self)
        return wait(self)

    monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    monkeypatch.setattr(Parcel, "ready", lambda self: any(parcel is self for parcel in asked))
    monkeypatch.setattr(Parcel, "wait", ask)


@torch.no_grad()
def generate(model, seed, prompts=(), times=TIMES):
    """A denoising loop; its outputs."""
    x, outs = latents(seed=seed), []
    for time in times:
        t = torch.full((2,), time)
        branches = [model(x, t, prompt) for prompt in prompts] or [model(x, t)]
        out = sum(branches) / len(branches)
        outs.append(out)
        x = x - 0.1 * out
    return outs


def prompts(seed, count=1):
    return [latents(tokens=3, seed=1000 + 10 * seed + i) for i in range(count)]


def same(got, wanted):
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"policy": "interval", "interval": 3, "warmup_steps": 2}, {"no_snapshot", "warmup", "interval", "hit"}),
        ({"policy": "mask", "step_mask": "110101"}, {"no_snapshot", "mask", "mask_end", "hit"}),
        ({**DBCACHE, "warmup_steps": 99}, {"no_snapshot", "warmup"}),
        ({**DBCACHE, "residual_diff_threshold": 0}, {"no_snapshot", "warmup", "threshold_off"}),
        ({**DBCACHE, "residual_diff_threshold": 1}, {"no_snapshot", "warmup", "hit", "consecutive_limit"}),
        ({**DBCACHE, "max_cached_steps": 0}, {"no_snapshot", "warmup", "cached_limit"}),
        ({**DBCACHE, "step_mask": "1" * 8}, {"no_snapshot", "warmup", "mask"}),
        ({**DBCACHE, "max_continuous_cached_steps": 0}, {"no_snapshot", "warmup", "consecutive_limit"}),
    ],
    ids=lambda value: (
        " ".join(f"{k}={v}" for k, v in value.items() if DBCACHE.get(k) != v) if isinstance(value, dict) else ""
    ),
)
def test_decisions_that_need_no_number_wait_for_none(options, reasons, transfers):
    model = compile_toy(build(Toy), num_steps=len(TIMES), **options)
    generate(model, 1)
    stats = dit_compile.stats(model)[-1]
    assert {step.reason for step in stats.steps} == reasons
    assert transfers == {"sent": len(TIMES), "waited": 0}  # of each step: what is kept, or was added to, is finite
    assert stats.host_reads == 0
    assert all(step.diff is None for step in stats.steps)


@pytest.mark.parametrize("branches", [1, 2])
def test_other_decisions_wait_once(branches, transfers):
    model = compile_toy(build(Prompted), **DBCACHE)
    generate(model, 1, prompts(1, branches))
    stats = dit_compile.stats(model)[-1]
    asked = [step for step in stats.steps if step.diff is not None]
    assert {step.reason for step in stats.steps} == {"no_snapshot", "warmup", "hit", "threshold", "consecutive_limit"}
    assert {step.reason for step in asked} == {"hit", "threshold"}
    assert all((step.diff is not None) == (step.reason in ("hit", "threshold")) for step in stats.steps)
    computed = [step for step in stats.steps if step.action == "compute"]
    assert transfers == {"sent": len(asked) + len(computed), "waited": len(asked)}
    assert stats.host_reads == len(asked) > 0


def test_a_switched_off_cache_reads_nothing(transfers):
    model = compile_toy(build(Toy), **DBCACHE)
    with dit_compile.session("off", enabled=False):
        generate(model, 2)
    assert {step.reason for step in dit_compile.stats(model)[-1].steps} == {"disabled"}
    assert transfers == {"sent": 0, "waited": 0}


# --- timesteps on a device


def compare_with_host_timesteps(options, generations, request):
    """The outputs of ``generations`` with device timesteps and with host ones; statistics of the former."""
    model = compile_toy(build(Prompted), **options)
    wanted = []
    for seed, prompt, times in generations:
        with dit_compile.session(f"host {len(wanted)}"):
            wanted.append(generate(model, seed, prompt, times))
    request.getfixturevalue("device_timesteps")
    got = [generate(model, seed, prompt, times) for seed, prompt, times in generations]
    return wanted, got, [stats for stats in dit_compile.stats(model) if not stats.session.startswith("host")]


CUTS = [8, 7, 6, 5, 4, 3, 8]  # where a generation may end: on a hit, on a limit, on a threshold


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("new_prompts", [True, False])
def test_dbcache_is_exact_with_late_timesteps(branches, new_prompts, request):
    """Its reads bring the timestep along, so that a new generation is known before anything is reused."""
    prompt = prompts(0, branches)
    generations = [
        (seed, prompts(seed, branches) if new_prompts else prompt, TIMES[:length]) for seed, length in enumerate(CUTS)
    ]
    wanted, got, stats = compare_with_host_timesteps(DBCACHE, generations, request)
    assert [same(mine, theirs) for mine, theirs in zip(got, wanted, strict=True)] == [True] * len(CUTS)
    assert sum(s.reused for s in stats) > 0


def test_dbcache_honours_the_warm_up_of_a_generation_that_is_noticed_late(request):
    """A generation ends where the next step computes by a limit; only at the step after that is the timestep read.

    The step after that lies in the warm-up of the new generation, however little has changed.
    """
    options = {**DBCACHE, "residual_diff_threshold": 0.999, "warmup_steps": 4}
    prompt = prompts(1)
    # steps 4 and 5 are hits, so the first step of the next generation is at the consecutive limit
    generations = [(1, prompt, TIMES[:6]), (1, prompt, TIMES)]
    wanted, got, stats = compare_with_host_timesteps(options, generations, request)
    assert [step.action for step in stats[-1].steps][:4] == ["compute"] * 4
    assert same(got[0], wanted[0])
    assert same(got[1], wanted[1])


def first_reuses(stats):
    """Steps that reuse right after a computed step of their branch."""
    reused = {(step.index, step.branch) for step in stats.steps if step.action == "reuse"}
    return sum((index - 1, branch) not in reused for index, branch in reused)


def test_interval_waits_once_for_each_computed_step_that_it_reuses(device_timesteps, monkeypatch):
    """Nothing is ready until it is waited for; ``num_steps`` makes that the only reason to wait."""
    model = compile_toy(build(Prompted), policy="interval", interval=3, warmup_steps=2, num_steps=8)
    generate(model, 1, prompts(1))
    stats = dit_compile.stats(model)[-1]
    assert [step.action[0] for step in stats.steps] == list("cccrrcrr")
    assert stats.host_reads == first_reuses(stats) == 2


@pytest.mark.parametrize("branches", [1, 2])
def test_interval_is_exact_with_late_timesteps_when_the_prompt_changes(branches, request):
    options = {"policy": "interval", "interval": 3, "warmup_steps": 2, "forecast": "taylorseer", "taylor_order": 1}
    generations = [(seed, prompts(seed, branches), TIMES[:length]) for seed, length in enumerate(CUTS)]
    wanted, got, stats = compare_with_host_timesteps(options, generations, request)
    assert [same(mine, theirs) for mine, theirs in zip(got, wanted, strict=True)] == [True] * len(CUTS)
    # only around the changes of generations, and once for each computed step that is reused: is it finite?
    assert sum(s.host_reads for s in stats) <= 2 * len(CUTS) + sum(map(first_reuses, stats))
    assert sum(s.reused for s in stats) > sum(map(first_reuses, stats)) > 0


@pytest.mark.parametrize("policy", ["dbcache", "interval", "mask"])
def test_a_generation_that_num_steps_ends_needs_no_timestep(policy, device_timesteps):
    mask = {"step_mask": "11010010"}
    model = compile_toy(build(Prompted), **{**DBCACHE, "policy": policy, **mask}, num_steps=8)
    prompt = prompts(1)
    first, second = generate(model, 1, prompt), generate(model, 1, prompt)
    assert same(first, second)
    stats = dit_compile.stats(model)
    assert [len(s.steps) for s in stats] == [8, 8]
    assert [s.index for s in stats[1].steps] == list(range(8))


def test_statistics_are_split_where_the_late_generation_began(device_timesteps):
    model = compile_toy(build(Prompted), **{**DBCACHE, "warmup_steps": 3})
    generate(model, 1, prompts(1, 2))
    generate(model, 2, prompts(2, 2))
    dit_compile.reset()
    stats = dit_compile.stats(model)
    assert [len(s.steps) for s in stats] == [16, 16]
    for generation in stats:
        assert [s.index for s in generation.steps] == [i for i in range(8) for _ in range(2)]
        assert generation.branches == [0, 1]


def test_a_generation_of_one_step_before_a_change_of_shape(device_timesteps):
    """The first timestep of the generation that the shape began counts, too: the one after it jumps back to it."""
    model = compile_toy(build(Prompted), **{**DBCACHE, "residual_diff_threshold": 0.999})
    prompt = prompts(1)
    with torch.no_grad():
        model(latents(tokens=7), torch.full((2,), 1000.0), prompt[0])
    for seed in (1, 2, 3):
        generate(model, seed, prompt, [1000.0, 500.0, 100.0])
    dit_compile.reset()
    assert [len(s.steps) for s in dit_compile.stats(model)] == [1, 3, 3, 3]


def test_a_two_step_generation_after_a_change_of_shape(device_timesteps):
    model = compile_toy(build(Prompted), **{**DBCACHE, "residual_diff_threshold": 0.999, "warmup_steps": 0})
    prompt = prompts(1)
    with torch.no_grad():
        model(latents(tokens=7), torch.full((2,), 1000.0), prompt[0])
    for seed in (1, 2, 3):
        generate(model, seed, prompt, [1000.0, 500.0])
    dit_compile.reset()
    assert [len(s.steps) for s in dit_compile.stats(model)] == [1, 2, 2, 2]


def test_device_timesteps_are_not_waited_for_while_warming_up(device_timesteps, transfers):
    """They are on their way all the time, but only the second is asked for: is it the first again?"""
    model = compile_toy(build(Prompted), **{**DBCACHE, "warmup_steps": 99})
    generate(model, 1, prompts(1))
    assert transfers == {"sent": 8 + 1, "waited": 1}
    assert dit_compile.stats(model)[-1].host_reads == 0
