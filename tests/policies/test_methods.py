"""The published methods: each policy's decisions against its formula, written out plainly, and once through a model."""

import pytest
import torch
from toys import Toy, build, compile_toy, latents, timestep_embedding

import dit_compile
from dit_compile.config import CacheConfig, ConfigError
from dit_compile.forecast import FORECASTERS
from dit_compile.policy import POLICIES, StepView
from dit_compile.policy.teacache import polynomial

FREE = {"warmup_steps": 1, "max_continuous_cached_steps": -1}


def play(name, diffs=None, changes=None, **settings):
    """Decisions over steps 1, 2, ...: C or r, given the differences a policy asks for and the changes it learns."""
    config, policy, memory = CacheConfig(policy=name, **(FREE | settings)), POLICIES[name](), {}
    run, text = 0, ""
    for index in range(1, 1 + len(diffs or changes)):
        if policy.watches_change and changes and run == 0:
            policy.learn(StepView(index, 0, run, memory=memory), config, changes[index - 1])
        verdict = policy.before(StepView(index, 0, run, memory=memory), config)
        if verdict is None:
            verdict = policy.after(StepView(index, 0, run, memory=memory), config, diffs[index - 1])
        run = run + 1 if verdict.reuse else 0
        text += "r" if verdict.reuse else "C"
    return text


def test_teacache_adds_up_until_the_threshold():
    # sums: .1 .2 | .3 >= .25 -> C, 0 | .1 .2 | ...
    assert play("teacache", [0.1] * 7, residual_diff_threshold=0.25) == "rrCrrCr"
    # the polynomial 2x: .2 | .4 -> C | .2 | C
    assert play("teacache", [0.1] * 4, residual_diff_threshold=0.25, teacache_polynomial="2,0") == "rCrC"


def test_teacache_polynomial():
    # the authors' fit for FLUX.1-dev
    fit, x = [498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861], 0.1
    assert polynomial(fit, x) == pytest.approx(sum(c * x ** (4 - i) for i, c in enumerate(fit)))
    assert polynomial((1, 2, 3), 2.0) == 1 * 4 + 2 * 2 + 3


def test_teacache_never_subtracts():
    assert play("teacache", [0.1, 0.3, 0.1], residual_diff_threshold=0.25, teacache_polynomial="-1,0.25") == "rrC"


def test_magcache_multiplies_ratios_over_a_run():
    # ratio .9: |1 - .9| = .1, then + |1 - .81| = .29, then + |1 - .729| = .561
    settings = {"mag_ratios": [0.9] * 9, "num_steps": 10}
    assert play("magcache", [None] * 6, residual_diff_threshold=0.3, **settings) == "rrCrrC"
    assert play("magcache", [None] * 6, residual_diff_threshold=0.09, **settings) == "CCCCCC"
    assert play("magcache", [None] * 4, residual_diff_threshold=0.3, mag_ratios=[1.0, 1.0, 0.5, 1.0]) == "rrCr"


def test_magcache_takes_the_ratios_of_another_step_count_at_the_same_place():
    ratios = [1.0, 1.0, 0.5]  # 4 steps; with 7 steps the last third is fast
    assert play("magcache", [None] * 6, residual_diff_threshold=0.3, mag_ratios=ratios, num_steps=7) == "rrrrCC"


def test_adacache_takes_the_first_bound_above_the_speed():
    rates = {"adacache_rates": "0.1:4,0.3:2,1:1"}
    assert play("adacache", changes=[0.05] * 8, **rates) == "rrrCrrrC"
    assert play("adacache", changes=[0.2] * 6, **rates) == "rCrCrC"
    assert play("adacache", changes=[0.5] * 3, **rates) == "CCC"


def test_easycache_predicts_the_output_from_the_input():
    config, policy, memory = (
        CacheConfig(policy="easycache", residual_diff_threshold=0.25, **FREE),
        POLICIES["easycache"](),
        {},
    )
    runs = [0, 0, 0, 1, 2, 0]  # reused in a row before
    views = [StepView(index, 0, run, memory=memory) for index, run in enumerate(runs)]
    assert policy.after(views[1], config, 0.1).reason == "no_snapshot"  # nothing learnt yet; the latents moved by .1
    policy.learn(views[2], config, 0.2)  # and the region by .2: k = 2
    assert policy.after(views[2], config, 0.05).reuse  # predicted 2 * .05
    assert policy.after(views[3], config, 0.05).reuse  # 2 * .10
    assert policy.after(views[4], config, 0.05).reason == "threshold"  # 2 * .15
    assert policy.after(views[5], config, 0.05).reuse  # from 0 again


def test_dicache_adds_up_until_the_threshold():
    assert play("dicache", [0.1] * 7, residual_diff_threshold=0.25) == "rrCrrCr"
    assert play("dicache", [0.1] * 6, residual_diff_threshold=0.25, max_continuous_cached_steps=1) == "rCrCrC"
    assert play("dicache", [0.1, 0.3, 0.24, 0.02], residual_diff_threshold=0.25) == "rCrC"


def sencache(step, since, diff, **settings):
    """Whether step ``step`` is reused, ``since`` steps after the last computed one."""
    config = CacheConfig(policy="sencache", **(FREE | settings))
    return POLICIES["sencache"]().after(StepView(step, 0, since - 1, since=since), config, diff).reuse


def test_sencache_adds_what_latents_and_time_change():
    table = {"sencache_sensitivities": [(2.0, 1.0), (0.5, 4.0), (1.0, 1.0), (1.0, 1.0)]}
    # computed at step 0: 2 * .05 + 1 * 1/4; at step 1, for two steps: .5 * .1 + 4 * 2/4
    assert sencache(1, 1, 0.05, **table, residual_diff_threshold=0.3501)
    assert not sencache(1, 1, 0.05, **table, residual_diff_threshold=0.35)
    assert sencache(3, 2, 0.1, **table, residual_diff_threshold=2.0501)
    assert not sencache(3, 2, 0.1, **table, residual_diff_threshold=2.05)


def test_sencache_takes_the_sensitivities_of_another_step_count_at_the_same_place():
    table = {"sencache_sensitivities": [(0.0, 1.0), (0.0, 10.0), (0.0, 100.0)], "num_steps": 9}
    for computed, of_time in ((0, 1.0), (1, 1.0), (3, 10.0), (4, 10.0), (7, 100.0), (8, 100.0), (12, 100.0)):
        assert sencache(computed + 1, 1, 0.1, **table, residual_diff_threshold=of_time / 9 + 1e-9)
        assert not sencache(computed + 1, 1, 0.1, **table, residual_diff_threshold=of_time / 9 - 1e-9)


def test_delta_dit_skips_the_rear_half_early_and_the_front_half_late():
    config = CacheConfig(policy="delta_dit", scope="halves", interval=2, delta_boundary=4, **FREE)
    policy = POLICIES["delta_dit"]()
    table = [[policy.before(StepView(i, 0, 0, region, 2), config).reuse for region in (0, 1)] for i in range(1, 7)]
    assert table == [[False, False], [False, True], [False, False], [True, False], [False, False], [True, False]]


@pytest.mark.parametrize(("settings", "match"), [
    ({"policy": "magcache"}, "needs mag_ratios"),
    ({"policy": "sencache"}, "needs sencache_sensitivities"),
    ({"policy": "delta_dit"}, 'needs scope="halves"'),
])  # fmt: skip
def test_what_a_method_needs_is_said(settings, match):
    with pytest.raises(ConfigError, match=match):
        CacheConfig(**settings)


def test_dbcache_limits_the_sum_of_differences():
    # .1 .2 | .3 >= .25 computes and begins anew
    assert play("dbcache", [0.1] * 6, residual_diff_threshold=0.2, max_accumulated_diff=0.25) == "rrCrrC"


@torch.no_grad()
def run(model, steps=6, pace=0.02):
    for i in range(steps):
        model(latents(seed=1) * (1 + pace * i), torch.full((2,), 900.0 - 50 * i))
    return dit_compile.stats(model)[-1].steps


TAPS = {
    "hidden": lambda model, x, t: model.front(x, t)[0],
    "modulated": lambda model, x, t: (
        model.blocks[0].norm(model.embed(x)) + model.blocks[0].shift(timestep_embedding(t))[:, None]
    ),
    "time": lambda model, x, t: timestep_embedding(t),
    "input": lambda model, x, t: x,
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("tap", "settings"),
    [
        ("hidden", {"policy": "dbcache", "probe": "hidden"}),
        ("modulated", {"policy": "teacache"}),
        ("time", {"policy": "teacache", "teacache_tap": "time"}),
        ("input", {"policy": "easycache"}),
        ("hidden", {"policy": "dicache"}),
        ("input", {"policy": "sencache", "sencache_sensitivities": "1:1"}),
    ],
)
def test_what_is_measured(tap, settings):
    """The difference in the statistics is that of the tap, computed by hand in eager code."""
    model = build(Toy)
    compiled = compile_toy(model, residual_diff_threshold=1e-9, **(FREE | settings))
    xs, ts = [latents(seed=1), latents(seed=2)], [torch.full((2,), 900.0), torch.full((2,), 500.0)]
    for x, t in zip(xs, ts, strict=True):
        compiled(x, t)
    before, now = (TAPS[tap](model, x, t) for x, t in zip(xs, ts, strict=True))
    wanted = float((now - before).abs().mean() / before.abs().mean())
    assert dit_compile.stats(model)[-1].steps[1].diff == pytest.approx(wanted, rel=1e-4)


@torch.no_grad()
def test_sencache_decides_as_a_plain_loop_over_the_latents():
    """The authors' loop: reference point and sensitivities are those of the last computed step, and stay while steps
    are reused."""
    table = [(1.0, 0.1), (0.2, 0.1), (3.0, 0.1), (0.5, 4.0), (0.5, 0.1), (0.5, 0.1), (0.1, 0.1), (2.0, 0.1)]
    xs = [latents(seed=1) + 0.1 * shift * latents(seed=2) for shift in (0, 1, 1.5, 3, 4, 4.5, 5, 7)]
    wanted, reference = "", None
    for i, x in enumerate(xs):
        reused = False
        if reference is not None:
            z, since, (of_latents, of_time) = reference
            change = float((x - z).abs().sum() / z.abs().sum())
            reused = of_latents * change + of_time * (i - since) / len(xs) < 0.2
        reference = reference if reused else (x, i, table[i])
        wanted += "cr"[reused]
    assert wanted.count("r") > 2 and "rr" in wanted and "cc" in wanted
    model = build(Toy)
    compiled = compile_toy(
        model, policy="sencache", sencache_sensitivities=table, residual_diff_threshold=0.2, num_steps=len(xs), **FREE
    )
    for i, x in enumerate(xs):
        compiled(x, torch.full((2,), 900.0 - 50 * i))
    assert "".join(step.action[0] for step in dit_compile.stats(model)[-1].steps) == wanted


@pytest.mark.parametrize("policy", ["teacache", "dicache"])
def test_both_compare_with_the_previous_step(policy):
    steps = run(compile_toy(build(Toy), policy=policy, residual_diff_threshold=100, **FREE))
    assert [step.action[0] for step in steps] == list("crrrrr")
    assert max(step.diff for step in steps[1:]) < 3 * min(step.diff for step in steps[1:])  # they do not grow


@pytest.mark.parametrize("settings", [
    {"policy": "easycache", "residual_diff_threshold": 10}, {"policy": "adacache", "adacache_rates": "100:3"},
    {"policy": "magcache", "mag_ratios": [0.99] * 9, "residual_diff_threshold": 0.1},
    {"policy": "delta_dit", "scope": "halves", "interval": 2},
    {"policy": "dicache", "residual_diff_threshold": 10},
    {"policy": "sencache", "sencache_sensitivities": "1:1", "residual_diff_threshold": 10},
])  # fmt: skip
@pytest.mark.parametrize("forecast", sorted(FORECASTERS.names()))
def test_any_policy_goes_with_any_forecaster(settings, forecast):
    steps = run(compile_toy(build(Toy), forecast=forecast, **(FREE | settings)))
    assert {step.action for step in steps} == {"compute", "reuse"}


def test_a_policy_with_another_tap_is_refused_at_run_time():
    model = compile_toy(build(Toy), policy="dbcache")
    with (
        dit_compile.session("s", policy="teacache"),
        pytest.raises(ConfigError, match="choose the policy when compiling"),
    ):
        run(model, steps=1)


def test_down_sampling_measures_every_second_channel():
    model = build(Toy)
    compiled = compile_toy(model, downsample_factor=2, residual_diff_threshold=1e-9, **FREE)
    steps = run(compiled, steps=2, pace=0.5)
    inputs = [(latents(seed=1) * (1 + 0.5 * i), torch.full((2,), 900.0 - 50 * i)) for i in range(2)]
    with torch.no_grad():
        before, now = (model.front(x, t)[0][..., ::2] - model.embed(x)[..., ::2] for x, t in inputs)
    assert steps[1].diff == pytest.approx(float((now - before).abs().mean() / before.abs().mean()), rel=1e-4)
