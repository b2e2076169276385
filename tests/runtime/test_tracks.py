"""Nothing is reused across prompts or trajectories, also by policies that look at no data."""

import pytest
import torch
from examine import error
from toys import Prompted, build, compile_toy, latents

import dit_compile
from dit_compile.runtime.transfer import Parcel

TIMES = [1000.0 - 100 * i for i in range(8)]
MASK = "11010101"
BLIND = {"policy": "mask", "step_mask": MASK, "forecast": "reuse"}
GUARDED = {"residual_diff_threshold": 0.3, "warmup_steps": 2, "max_continuous_cached_steps": 2, "forecast": "reuse"}


@pytest.fixture(params=["host", "device"])
def times(request, monkeypatch):
    """Where times are. On a device nothing is there until it is waited for."""
    if request.param == "device":
        wait, asked = Parcel.wait, []
        monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
        monkeypatch.setattr(Parcel, "ready", lambda self: any(parcel is self for parcel in asked))
        monkeypatch.setattr(Parcel, "wait", lambda self: (asked.append(self), wait(self))[1])
    return request.param


def prompt(seed):
    return latents(1, 3, seed=seed)


def start(seed):
    return latents(1, 5, seed=seed)


class Request:
    """A trajectory: latents that a solver moves, and the prompts of its branches."""

    def __init__(self, model, seed, *prompts):
        self.model, self.x, self.prompts = model, start(seed), prompts

    def step(self, time, *prompts):
        t = torch.tensor([time])
        outs = [self.model(self.x, t, each) for each in prompts or self.prompts]
        self.x = self.x - 0.05 * sum(outs) / len(outs)
        return self.x


def run(request, times=TIMES):
    return [request.step(time) for time in times]


def alone(model, seed, *prompts, times=TIMES):
    dit_compile.reset()
    return run(Request(model, seed, *prompts), times)


def generations(model):
    return dit_compile.stats(model)


def actions(generation, branch=0):
    return "".join(step.action[0] for step in generation.steps if step.branch == branch)


@torch.no_grad()
@pytest.mark.parametrize("options", [BLIND, GUARDED], ids=["mask", "dbcache"])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_tiles_are_trajectories_of_their_own(options, branches, order, times, caplog):
    """Each reuses what a session of its own reuses from its second step on, whatever their order is from then on."""
    prompts = [prompt(seed) for seed in range(5, 5 + branches)]
    model = compile_toy(build(Prompted, depth=6), **options)
    tiles = [Request(model, seed, *prompts) for seed in (1, 2, 3)]
    outs = [[] for _ in tiles]
    for _ in range(2):  # requests, one after the other
        for number, time in enumerate(TIMES):
            for which in (0, 1, 2) if number == 0 else order:
                outs[which].append(tiles[which].step(time))
    found = [actions(each) for each in generations(model) if len(each.steps) > branches]
    assert len(found) == 6 and all(each == found[0] for each in found)
    assert found[0].count("r") >= 3
    said = [record.getMessage() for record in caplog.records if "3 trajectories" in record.getMessage()]
    assert len(said) == 2
    if options is BLIND:
        wanted = alone(model, 1, *prompts)
        torch.testing.assert_close(outs[0][:8], wanted)


@torch.no_grad()
def test_more_tiles_than_are_told_apart_are_computed():
    """Those that were forgotten begin anew; none is given another's snapshots."""
    plain = build(Prompted, depth=3)
    model, mine = compile_toy(plain, policy="mask", step_mask="1100", forecast="reuse"), prompt(5)
    for time in TIMES[:4]:
        for seed in range(70):
            x, t = (1 - time / 1e5) * start(seed), torch.tensor([time])
            wanted = plain(x, t, mine)
            assert error(model(x, t, mine), wanted) < 0.05, "another's would be wrong by more than that"


@torch.no_grad()
def test_requests_of_one_step_and_aborted_ones_are_no_tiles(times, caplog):
    """The same first time and the same prompt, over and over: each is a generation, and nothing is kept of it."""
    model = compile_toy(build(Prompted, depth=6), **BLIND)
    mine = prompt(5)
    for seed in range(1, 10):
        run(Request(model, seed, mine), TIMES[:1])
    wanted = run(Request(model, 20, mine))
    assert [len(each.steps) for each in generations(model)] == [1] * 9 + [8]
    assert actions(generations(model)[-1]) == MASK.replace("1", "c").replace("0", "r")
    assert (
        sum(state.bytes_held() for state in dit_compile.api.table._states.values()) == generations(model)[-1].bytes_held
    )
    torch.testing.assert_close(alone(model, 20, mine), wanted)
    assert "trajectories" not in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("lasting", [True, False], ids=["lasting prompts", "prompts made anew"])
def test_requests_with_other_prompts_in_lockstep(lasting, times):
    """Two prompts, each with latents of its own, called in turn."""
    model = compile_toy(build(Prompted, depth=6), **BLIND)
    prompts = [prompt(5), prompt(6)]
    requests = [Request(model, seed, each) for seed, each in enumerate(prompts, 1)]
    outs = [[], []]
    for time in TIMES:
        for which, request in enumerate(requests):
            given = prompts[which] if lasting else prompts[which].clone()
            outs[which].append(request.step(time, given))
    for which in (0, 1):
        torch.testing.assert_close(outs[which], alone(model, 1 + which, prompts[which]))


@torch.no_grad()
@pytest.mark.parametrize("lasting", [True, False], ids=["lasting prompts", "prompts made anew"])
def test_prompts_that_alternate_from_step_to_step(lasting, times):
    """One trajectory: every step is another prompt's, and none is reused."""
    plain = build(Prompted, depth=6)
    model = compile_toy(plain, **BLIND)
    prompts = [prompt(5), prompt(6)]
    request, same = Request(model, 1), Request(plain, 1)
    for number, time in enumerate(TIMES):
        given = prompts[number % 2] if lasting else prompts[number % 2].clone()
        torch.testing.assert_close(request.step(time, given), same.step(time, given))


@torch.no_grad()
def test_equal_prompts_made_anew_follow_the_mask(times):
    model = compile_toy(build(Prompted, depth=6), **BLIND)
    request = Request(model, 1)
    for time in TIMES:
        request.step(time, prompt(5), prompt(6))
    (generation,) = generations(model)
    assert actions(generation, 0) == actions(generation, 1) == MASK.replace("1", "c").replace("0", "r")


@torch.no_grad()
@pytest.mark.parametrize("ends", [3, 4, 5])
def test_a_run_that_starts_lower_than_the_last_one_ended(ends, times):
    """Its time goes on, its latents do not."""
    model = compile_toy(build(Prompted, depth=6), **BLIND)
    mine = prompt(5)
    run(Request(model, 1, mine), TIMES[:ends])
    outs = run(Request(model, 2, mine), TIMES[ends:])
    torch.testing.assert_close(outs, alone(model, 2, mine, times=TIMES[ends:]))
    assert [len(each.steps) for each in generations(model)][:2] == [ends, 8 - ends]


@torch.no_grad()
def test_the_same_prompt_again(times):
    """The first step of the second run would be reused: only its time, which is not there yet, forbids it."""
    mine = prompt(5)
    for length in (4, 5, 6):
        model = compile_toy(build(Prompted, depth=6), policy="interval", interval=3, warmup_steps=1, forecast="reuse")
        first = run(Request(model, 1, mine), TIMES[:length])
        torch.testing.assert_close(run(Request(model, 1, mine), TIMES[:length]), first)
        assert [len(each.steps) for each in generations(model)][-2:] == [length] * 2
