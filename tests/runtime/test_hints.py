"""What is said of generations that reused nothing names the reason, and a setting only where that setting is it."""

import pytest
import torch
from toys import Prompted, Toy, build, compile_toy, latents

import dit_compile
from dit_compile.api import table
from dit_compile.config import resolve
from dit_compile.debug.hints import ADVICE, MANY, zero_hit_hint
from dit_compile.debug.summary import REASONS
from dit_compile.runtime.stats import GenerationStats, StepStats


def generation(*reasons, diff=None, **settings):
    """One step for each reason; the first is without a snapshot."""
    stats = GenerationStats("model", "default", resolve(settings))
    codes = ["no_snapshot", *reasons]
    stats.steps = [
        StepStats(i, 0, "compute", code, diff if code == "threshold" else None) for i, code in enumerate(codes)
    ]
    return stats


def test_every_reason_has_an_advice_or_is_no_fault():
    silent = {"hit", "disabled", "threshold_off", "kept", "other_half", "non_finite"}
    assert ADVICE.keys() | silent == REASONS.keys()


@pytest.mark.parametrize("reason", ADVICE)
def test_an_advice_names_its_own_setting_only(reason):
    hint = zero_hit_hint(generation(*[reason] * 6, diff=0.25))
    assert hint.startswith("nothing was reused in 7 steps: ")
    threshold = "residual_diff_threshold" in hint
    assert threshold == (reason in ("threshold", "input_changed"))
    assert ("warmup_steps" in hint) == (reason == "warmup")


def test_a_threshold_is_named_where_it_decided():
    hint = zero_hit_hint(generation("warmup", "warmup", "warmup", "threshold", diff=0.25))
    assert "above 0.25 would have hit; it is 0.12" in hint
    measured = generation("input_changed", "input_changed", "threshold", diff=0.25)
    assert "residual_diff_threshold above" not in zero_hit_hint(measured), (
        "it was not what most steps were computed for"
    )


def test_runs_of_one_and_two_steps_need_no_shorter_warm_up():
    assert "warmup_steps" not in zero_hit_hint(generation())
    assert "warmup_steps" not in zero_hit_hint(generation("warmup"))
    assert "lower warmup_steps" in zero_hit_hint(generation("warmup", "warmup", "warmup"))


def test_nothing_is_said_where_something_was_reused_or_nothing_was_wanted():
    assert zero_hit_hint(generation("threshold_off", residual_diff_threshold=0.0)) is None
    assert zero_hit_hint(generation("disabled", enabled=False)) is None
    stats = generation("warmup")
    stats.steps.append(StepStats(2, 0, "reuse", "hit"))
    assert zero_hit_hint(stats) is None


@torch.no_grad()
def test_many_generations_of_one_step_are_said_once(caplog):
    """Each call is at the same time, as those of a model of one step are, or of a loop that has lost its time."""
    model, prompt = compile_toy(build(Prompted), warmup_steps=2), latents(tokens=3, seed=1)
    for seed in range(20 + MANY):
        model(latents(seed=seed), torch.full((2,), 1000.0), prompt)
    said = [record.getMessage() for record in caplog.records if "in a row had one step" in record.getMessage()]
    assert len(said) == 1 and "dit_compile.session(name, keep=True)" in said[0] and "num_steps" in said[0]


@torch.no_grad()
def test_the_summary_tells_two_experts_apart(capsys):
    experts = [build(Toy, seed=seed) for seed in (1, 2)]
    x = latents(seed=1)
    for number, expert in enumerate(experts):
        model = compile_toy(expert, warmup_steps=1)
        for time in (1000.0 - 500 * number, 800.0 - 500 * number):
            model(x, torch.full((2,), time))
    names = [dit_compile.stats(expert)[-1].module for expert in experts]
    assert names == ["6 x Block", "6 x Block #2"]
    dit_compile.summary()
    shown = capsys.readouterr().out
    assert "6 x Block, session default" in shown and "6 x Block #2, session default" in shown


@torch.no_grad()
def test_a_module_whose_call_failed_keeps_no_name():
    expert = build(Toy)
    compile_toy(expert)(latents(), torch.full((2,), 1000.0))
    [owner] = table.owners(expert)
    assert owner in table._labels
    table.forget(owner, "default")
    dit_compile.reset()
    assert owner not in table._labels
