"""decision=lagged: what the last step has measured decides, without waiting, and never over what is not known."""

import pytest
import torch
from toys import Prompted, Toy, build, compile_toy, latents

import dit_compile
from dit_compile.runtime.measured import Change, Measured, Measurements
from dit_compile.runtime.transfer import Outbox, Parcel

TIMES = [1000.0, 850.0, 700.0, 550.0, 400.0, 250.0, 120.0, 60.0]
SLOW = [1000.0 - step for step in range(8)]  # the latents, not the time, are what changes
LAGGED = {"decision": "lagged", "warmup_steps": 2, "residual_diff_threshold": 0.3, "max_continuous_cached_steps": 2}
METHODS = {
    "dbcache": {},
    "teacache": {"residual_diff_threshold": 0.9},
    "easycache": {"residual_diff_threshold": 0.9},
    "dicache": {"residual_diff_threshold": 0.9, "forecast": "dicache"},
    "dbprune": {"scope": "block"},
}


@pytest.fixture
def slow_device(monkeypatch):
    """What is sent counts as arrived when ``lag`` more parcels have been sent. ``waits`` counts the times that somebody
    waits for one before that."""
    sent, seen = [], {"waits": 0, "lag": 0}
    send, wait = Parcel.send, Parcel.wait

    def sending(self):
        sent.append(self)
        send(self)

    def arrived(self):
        return any(parcel is self for parcel in sent[: len(sent) - seen["lag"]])

    def waiting(self):
        seen["waits"] += not arrived(self)
        return wait(self)

    monkeypatch.setattr(Parcel, "send", sending)
    monkeypatch.setattr(Parcel, "ready", arrived)
    monkeypatch.setattr(Parcel, "wait", waiting)
    return seen


@torch.no_grad()
def generate(model, seed, *prompts, times=TIMES, change=None):
    """A denoising loop; its outputs. ``change(step, x)`` may replace the latents."""
    x, outs = latents(seed=seed), []
    for step, time in enumerate(times):
        x = x if change is None else change(step, x)
        t = torch.full((2,), time)
        branches = [model(x, t, prompt) for prompt in prompts] or [model(x, t)]
        outs.append(sum(branches) / len(branches))
        x = x - 0.1 * outs[-1]
    return outs


def prompt(seed):
    return latents(tokens=3, seed=1000 + seed)


def actions(stats, branch=0):
    return "".join(step.action[0] for step in stats.steps if step.branch == branch and step.region == 0)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("policy", METHODS)
def test_the_host_waits_for_nothing(policy, branches, slow_device):
    model = compile_toy(build(Prompted), policy=policy, num_steps=len(TIMES), **{**LAGGED, **METHODS[policy]})
    for seed in range(3):
        generate(model, seed, *[prompt(10 * seed + i) for i in range(branches)])
    stats = dit_compile.stats(model)
    assert len(stats) == 3
    assert slow_device["waits"] == 0
    assert [one.host_reads for one in stats] == [0, 0, 0]
    assert all(one.reused for one in stats)


@pytest.mark.parametrize("policy", METHODS)
def test_what_has_not_arrived_is_computed(policy, slow_device):
    reference = compile_toy(build(Toy), policy=policy, **{**METHODS[policy], "warmup_steps": 99})
    model = compile_toy(build(Toy), policy=policy, num_steps=len(TIMES), **{**LAGGED, **METHODS[policy]})
    wanted = generate(reference, 1)
    slow_device.update(lag=9, waits=0)
    got = generate(model, 1)
    stats = dit_compile.stats(model)[-1]
    assert slow_device["waits"] == stats.host_reads == stats.reused == 0
    assert {"not_arrived", "not_measured"} & {step.reason for step in stats.steps}
    assert all(map(torch.equal, got, wanted))


def test_the_numbers_in_the_statistics_are_those_of_the_step_before():
    """With one computed step before each, the difference that decides is that which the exact mode has measured, times
    its growth."""
    options = {**LAGGED, "residual_diff_threshold": 1e-6, "max_continuous_cached_steps": -1}
    lagged, exact = (compile_toy(build(Toy), **{**options, "decision": how}) for how in ("lagged", "exact"))
    generate(lagged, 1), generate(exact, 1)
    behind, now = (dit_compile.stats(model)[-1].steps for model in (lagged, exact))
    assert [step.reason for step in behind[2:]] == [step.reason for step in now[2:]] == ["threshold"] * 6
    grown = [late.diff / early.diff for late, early in zip(behind[3:], now[2:-1], strict=True)]
    assert grown[0] == pytest.approx(1)  # two steps before it tell no growth
    assert all(0.999 < growth < 2.001 for growth in grown) and max(grown) > 1.01


def test_a_new_generation_never_reuses_the_last_one():
    model = compile_toy(build(Prompted), **{**LAGGED, "residual_diff_threshold": 0.999, "warmup_steps": 1})
    alone = []
    for seed in range(4):
        with dit_compile.session(f"alone {seed}"):
            alone.append(generate(model, seed, prompt(seed % 2), times=TIMES[: 5 + seed]))
    got = [generate(model, seed, prompt(seed % 2), times=TIMES[: 5 + seed]) for seed in range(4)]
    assert all(all(map(torch.equal, mine, theirs)) for mine, theirs in zip(got, alone, strict=True))
    assert sum(stats.reused for stats in dit_compile.stats(model)) > 0


def test_nan_is_left_at_the_next_step():
    model = compile_toy(build(Toy), **{**LAGGED, "residual_diff_threshold": 0.999, "max_continuous_cached_steps": -1})
    fresh = latents(seed=7)

    def change(step, x):
        return x * float("nan") if step == 4 else fresh if step > 4 else x

    outs = generate(model, 1, times=SLOW, change=change)
    steps = dit_compile.stats(model)[-1].steps
    assert steps[3].action == "reuse"
    assert steps[5].reason == "non_finite"
    assert all(out.isfinite().all() for out in outs[5:])


def test_replaced_latents_end_history_one_step_late():
    model = compile_toy(
        build(Toy),
        num_steps=len(SLOW),
        **LAGGED | {"residual_diff_threshold": 0.999, "max_continuous_cached_steps": -1},
    )
    generate(model, 1, times=SLOW, change=lambda step, x: 30 * latents(seed=9) if step == 4 else x)
    steps = dit_compile.stats(model)[-1].steps
    assert steps[4].action == "reuse"  # with num_steps nothing compares latents: that is what lagged gives up
    assert [step.action for step in steps[5:7]] == ["compute", "compute"]


def measured(changed, step, since):
    return Measured(Outbox().put([torch.tensor([changed, 1.0])]), step, since)


def test_differences_are_carried_on_as_if_they_grew_evenly():
    known = Measurements()
    assert known.expected(3, 1) is None
    known.pending.append(measured(0.08, 5, 2))
    assert known.read(wait=True) == Change(pytest.approx(0.08), 5, 2)
    assert known.expected(6, 3) == pytest.approx(0.12)
    assert known.expected(6, 1) == pytest.approx(0.04)
    assert known.expected(7, 3) is None  # the step between has measured nothing that is known
    assert known.read(wait=True) is None


def test_a_restart_forgets_what_was_compared_with_an_earlier_generation():
    known = Measurements()
    known.pending = [measured(0.1, 5, 2), measured(0.1, 6, 1)]
    known.restart(5)
    assert [(one.step, one.since) for one in known.pending] == [(1, 1)]
    known.last = Change(0.1, 1, 1)
    known.drop(before=1)
    assert known.last is None
    assert known.pending == []


def told(*changes):
    measurements = Measurements()
    for change in changes:
        measurements.take(Change(*change))
    return measurements


def test_a_difference_goes_on_as_it_went():
    steady = told((0.1, 4, 1), (0.2, 5, 2))
    assert steady.expected(6, 3) == pytest.approx(0.3)
    assert steady.expected(6, 3, evenly=True) == pytest.approx(0.3)
    computed = told((0.1, 4, 1), (0.2, 5, 2), (0.3, 6, 3))
    assert computed.expected(7, 1) == pytest.approx(0.1)  # step 6 was computed: one step's change


def test_changes_that_go_to_and_fro_do_not_add_up():
    """Over two steps no more than over one: the next step is expected to change as much as a single one did."""
    assert told((0.4, 4, 1), (0.4, 5, 2)).expected(6, 1) == pytest.approx(0.4)
    assert told((0.4, 4, 1), (0.3, 5, 2)).expected(6, 3) == pytest.approx(0.7)


def test_growth_is_carried_on_within_bounds():
    growing = told((0.1, 4, 1), (0.12, 5, 1), (0.144, 6, 1))
    assert growing.expected(7, 1) == pytest.approx(0.144 * 1.2)
    assert told((0.3, 4, 1), (0.2, 5, 1), (0.1, 6, 1)).expected(7, 1) == pytest.approx(0.1)  # never less
    assert told((0.01, 4, 1), (0.1, 5, 1), (0.4, 6, 1)).expected(7, 1) == pytest.approx(0.8)  # at most doubled
