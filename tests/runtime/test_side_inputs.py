"""The guard notices inputs that change beside the latents, also those that enter only behind the probe."""

import pytest
import torch
from toys import Toy, build, compile_toy, latents, timestep_embedding

import dit_compile

GUARDED = {"warmup_steps": 2, "residual_diff_threshold": 0.5, "max_continuous_cached_steps": -1}


class Controlled(Toy):
    """A control tensor is added behind block 3: the probe, behind block 0, cannot see it."""

    def forward(self, x, t, control):
        h, temb = self.embed(x), timestep_embedding(t)
        for i, block in enumerate(self.blocks):
            h = block(h, temb)
            if i == 3:
                h = h + control
        return self.head(h)


@torch.no_grad()
def run(controls, **options):
    model = compile_toy(build(Controlled), **(GUARDED | options))
    for i, control in enumerate(controls):
        model(latents(seed=1) + 0.001 * i, torch.full((2,), 900.0 - i), control)
    return [step.reason for step in dit_compile.stats(model)[-1].steps]


def control(seed=5):
    return latents(seed=seed)


def test_the_same_tensor_costs_nothing():
    same = control()
    assert run([same] * 5) == ["no_snapshot", "warmup", "hit", "hit", "hit"]


def test_equal_tensors_made_anew_are_compared():
    assert run([control() for _ in range(5)]) == ["no_snapshot", "warmup", "hit", "hit", "hit"]


def test_small_changes_are_reused():
    assert run([control() + 0.001 * i for i in range(5)]) == ["no_snapshot", "warmup", "hit", "hit", "hit"]


@pytest.mark.parametrize("after", [torch.zeros_like(control()), 3 * control(), control(seed=6)])
def test_a_control_that_changes_is_computed(after):
    """Half-way off (zeros), another strength, another image; from then on the new one is what counts."""
    controls = [control(), control(), control(), after, after.clone(), after.clone()]
    assert run(controls) == ["no_snapshot", "warmup", "hit", "input_changed", "hit", "hit"]


def test_what_lasted_and_then_changes_may_be_another_prompt():
    """Nothing is reused across the change, nor at the step behind it, which may be another prompt's again; how much it
    moves from then on is not known before it was computed once more."""
    same = control()
    changed = [same.clone() for _ in range(5)]
    reasons = run([same, same, same, *changed])[2:]
    assert reasons == ["hit", "no_snapshot", "no_snapshot", "input_changed", "hit", "hit"]


def test_nothing_stays_nothing():
    assert run([torch.zeros_like(control()) for _ in range(4)]) == ["no_snapshot", "warmup", "hit", "hit"]


def test_a_control_that_comes_on_is_computed():
    off = torch.zeros_like(control())
    assert run([off.clone(), off.clone(), off.clone(), control()])[2:] == ["hit", "input_changed"]


def test_not_a_number_is_computed():
    bad = torch.full_like(control(), float("nan"))
    assert run([control(), control(), control(), bad])[2:] == ["hit", "non_finite"]


def test_a_change_is_measured_against_the_last_computed_step():
    """Small changes add up as long as nothing is computed."""
    drift = [control() * (1 + 0.25 * i) for i in range(6)]
    # computed at step 1 with factor 1.25: 1.5 and 1.75 are within half of it, 2.0 is not
    assert run(drift)[2:] == ["hit", "hit", "input_changed", "hit"]


@pytest.mark.parametrize(("factor", "reason"), [(0.7, "hit"), (0.0, "input_changed")])
def test_schedules_that_look_at_no_data_notice_another_input(factor, reason):
    """Unless they are told when a generation ends: then nothing is looked at."""
    options = dict(policy="mask", step_mask="110")
    assert run([control(), control(), factor * control()], **options)[2] == reason
    assert run([control(), control(), factor * control()], num_steps=3, **options)[2] == "hit"


@torch.no_grad()
def test_numbers_that_modules_hold_are_no_inputs():
    """With dynamic=True Dynamo passes the eps of every norm as a new tensor at every call."""
    options = {"policy": "dbcache", "warmup_steps": 1, "residual_diff_threshold": 0.5, "inner": "eager"}
    model = torch.compile(build(Toy), backend="dit_cache", dynamic=True, options=options)
    for i in range(3):
        model(latents(2, 7, seed=1) + 0.001 * i, torch.full((2,), 900.0 - i))
    assert [step.reason for step in dit_compile.stats(model)[-1].steps] == ["no_snapshot", "hit", "hit"]
