"""Policies as tables of steps, and plug-ins found by the name that a setting gives."""

import pytest
import torch
from toys import Toy, build, compile_toy, latents

import dit_compile
from dit_compile.config import CacheConfig
from dit_compile.forecast import Forecaster, register_forecaster
from dit_compile.policy import POLICIES, Policy, StepView, Verdict, register_policy

ASK = "ask"
FREE = {"warmup_steps": 0, "max_continuous_cached_steps": -1, "max_cached_steps": -1, "residual_diff_threshold": 0.5}


def before(name, index=9, cached=0, run=0, **config):
    """The reason of a verdict, with a + when it is to reuse; ``ask`` when the policy wants to see the number."""
    settings = CacheConfig(policy=name, **{**FREE, **config})
    verdict = POLICIES[name]().before(StepView(index, cached, run), settings)
    return ASK if verdict is None else "+" * verdict.reuse + verdict.reason


@pytest.mark.parametrize(
    ("warmup", "interval", "expected"),
    [
        (0, 1, "ask ask ask ask ask ask"),
        (1, 1, "warmup ask ask ask ask ask"),
        (3, 1, "warmup warmup warmup ask ask ask"),
        (4, 2, "warmup ask warmup ask ask ask"),
        (4, 3, "warmup ask ask warmup ask ask"),
        (3, 3, "warmup ask ask ask ask ask"),
    ],
)
def test_dbcache_warms_up(warmup, interval, expected):
    table = [before("dbcache", step, warmup_steps=warmup, warmup_interval=interval) for step in range(6)]
    assert " ".join(table) == expected


@pytest.mark.parametrize(
    ("limit", "cached", "expected"),
    [(-1, 0, ASK), (-1, 99, ASK), (0, 0, "cached_limit"), (2, 1, ASK), (2, 2, "cached_limit"), (2, 3, "cached_limit")],
)
def test_dbcache_counts_cached_steps(limit, cached, expected):
    assert before("dbcache", cached=cached, max_cached_steps=limit) == expected


@pytest.mark.parametrize(
    ("limit", "run", "expected"),
    [(-1, 9, ASK), (0, 0, "consecutive_limit"), (1, 0, ASK), (1, 1, "consecutive_limit"), (3, 2, ASK)],
)
def test_dbcache_counts_cached_steps_in_a_row(limit, run, expected):
    assert before("dbcache", cached=run, run=run, max_continuous_cached_steps=limit) == expected


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0, "threshold_off"), (1e-9, ASK), (0.999, ASK), (1, "+hit"), (7.5, "+hit")],
)
def test_dbcache_needs_no_number_at_the_ends_of_the_threshold(threshold, expected):
    assert before("dbcache", residual_diff_threshold=threshold) == expected


@pytest.mark.parametrize(
    ("diff", "expected"),
    [(0.0, (True, "hit")), (0.4999, (True, "hit")), (0.5, (False, "threshold")), (2.0, (False, "threshold"))],
)
def test_dbcache_reuses_strictly_below_the_threshold(diff, expected):
    verdict = POLICIES["dbcache"]().after(StepView(9, 0, 0), CacheConfig(**FREE), diff)
    assert (verdict.reuse, verdict.reason) == expected


def test_dbcache_obeys_a_step_mask_and_is_dynamic_behind_it():
    table = [before("dbcache", step, step_mask="1010") for step in range(6)]
    assert table == ["mask", ASK, "mask", ASK, ASK, ASK]


def test_dbcache_reasons_come_in_the_order_of_the_design():
    """warm-up; step mask; cached-step limit; consecutive limit; threshold off: take them away one by one."""
    settings = {
        "warmup_steps": 10,
        "step_mask": "1" * 10,
        "max_cached_steps": 2,
        "max_continuous_cached_steps": 1,
        "residual_diff_threshold": 0.0,
    }
    reasons = []
    for name in list(settings):
        reasons.append(before("dbcache", cached=2, run=1, **settings))
        del settings[name]
    assert reasons == ["warmup", "mask", "cached_limit", "consecutive_limit", "threshold_off"]


@pytest.mark.parametrize(
    ("warmup", "interval", "expected"),
    [
        (0, 3, "interval +hit +hit interval +hit +hit interval"),
        (2, 3, "warmup warmup interval +hit +hit interval +hit"),
        (1, 2, "warmup interval +hit interval +hit interval +hit"),
        (0, 1, "interval interval interval interval interval interval interval"),
    ],
)
def test_interval(warmup, interval, expected):
    table = [before("interval", step, warmup_steps=warmup, interval=interval) for step in range(7)]
    assert " ".join(table) == expected
    assert not POLICIES["interval"].needs_probe


def test_mask():
    assert [before("mask", step, step_mask="1101") for step in range(6)] == [
        "mask", "mask", "+hit", "mask", "mask_end", "mask_end",
    ]  # fmt: skip
    assert not POLICIES["mask"].needs_probe


# --- plug-ins: everything that a user writes stands between the two lines of dashes


def register_plugins():
    @register_policy("odd_steps")
    class OddSteps(Policy):
        """Reuses at odd steps."""

        needs_probe = False

        def before(self, step, config):
            return Verdict(step.index % 2 == 1, "odd" if step.index % 2 else "even")

    @register_forecaster("twice")
    class Twice(Forecaster):
        """Twice the last effect: easy to recognise."""

        def snapshots(self, config):
            return 1

        def weights(self, steps, now, config):
            return [2.0]


# ---


@torch.no_grad()
@pytest.mark.parametrize("through", ["options", "environment"])
def test_plugins_are_chosen_by_name(through, monkeypatch):
    register_plugins()
    chosen = {"policy": "odd_steps", "forecast": "twice"}
    if through == "environment":
        for name, value in chosen.items():
            monkeypatch.setenv(f"DIT_CACHE_{name.upper()}", value)
        chosen = {}
    model = build(Toy)
    compiled = compile_toy(model, num_steps=3, **chosen)
    t = torch.tensor([900.0, 900.0]), torch.tensor([500.0, 500.0]), torch.tensor([100.0, 100.0])
    xs = [latents(seed=i) for i in range(3)]
    outs = [compiled(x, time) for x, time in zip(xs, t, strict=True)]
    (h0, temb0), (h1, temb1) = (model.front(x, time) for x, time in zip(xs[:2], t[:2], strict=True))
    torch.testing.assert_close(outs[1], model.tail(h1 + 2 * (model.region(h0, temb0) - h0), temb1))
    torch.testing.assert_close(outs[2], model(xs[2], t[2]))
    steps = dit_compile.stats(model)[-1].steps
    assert [(s.action, s.reason) for s in steps] == [("compute", "no_snapshot"), ("reuse", "odd"), ("compute", "even")]
    assert dit_compile.stats(model)[-1].host_reads == 0


@torch.no_grad()
def test_a_plugin_policy_can_be_chosen_while_a_generation_runs():
    register_plugins()
    model = build(Toy)
    compiled = compile_toy(model, policy="interval", interval=1, warmup_steps=0, num_steps=4)
    for step in range(2):
        compiled(latents(seed=step), torch.full((2,), 900.0 - 100 * step))
    dit_compile.configure(policy="odd_steps")
    for step in range(2, 4):
        compiled(latents(seed=step), torch.full((2,), 900.0 - 100 * step))
    assert [s.reason for s in dit_compile.stats(model)[-1].steps] == ["no_snapshot", "interval", "even", "odd"]


def test_a_name_cannot_be_taken_twice():
    class Other(Policy):
        pass

    with pytest.raises(ValueError, match="already registered"):
        register_policy("dbcache")(Other)


def test_a_policy_that_asks_for_the_number_must_judge_it():
    class Asking(Policy):
        def before(self, step, config):
            return None

    with pytest.raises(TypeError, match=r"Asking.*has no after"):
        Asking().after(StepView(0, 0, 0), CacheConfig(), 0.1)
