"""dbprune: single blocks are skipped, all decided by what one transfer per step brings."""

import logging

import pytest
import torch
from examine import error
from registry import registered
from tiers import slow_unless
from toys import Toy, TwoStreams, build, compile_toy, latents

import dit_compile
from dit_compile.config import CacheConfig, ConfigError
from dit_compile.policy import POLICIES, StepView, Verdict
from dit_compile.runtime.transfer import Parcel

PRUNE = {"policy": "dbprune", "scope": "block", "forecast": "reuse", "warmup_steps": 2}
STEPS = 12


def calls(speed=0.05):
    start, direction = latents(seed=1), latents(seed=2)
    pace = [speed * (3 if index > 6 else 1) * index for index in range(STEPS)]
    return [(start + p * direction, torch.full((2,), 1.0 - index / 1000)) for index, p in enumerate(pace)]


def oracle(model, threshold, front=1, warmup=2, most=-1):
    """The same in eager code for a ``Toy``. Returns outputs and, for each block that may be skipped, its decisions."""
    count = len(model.blocks)
    seen, residual, computed, measured = {}, {}, {}, {}
    made = dict.fromkeys(range(front, count), "")
    outs = []
    for step, (x, t) in enumerate(calls()):
        from toys import timestep_embedding

        temb, h, now = timestep_embedding(t), model.embed(x), {}
        for i, block in enumerate(model.blocks):
            if i < front:
                h = block(h, temb)
                continue
            skip = step >= warmup and i in measured
            if skip:
                diff, span = measured[i]
                skip = diff * (step - computed[i]) / span < threshold
            run = len(made[i]) - len(made[i].rstrip("r"))
            skip = skip and not 0 <= most <= run
            if i in seen:
                now[i] = (float((seen[i] - h).abs().mean() / seen[i].abs().mean()), step - computed[i])
            if skip:
                h = h + residual[i]
            else:
                seen[i], computed[i] = h, step
                after = block(h, temb)
                residual[i], h = after - h, after
            made[i] += "r" if skip else "c"
        measured = now
        outs.append(model.head(h))
    return outs, list(made.values())


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "most"), [(0.04, -1), (0.08, -1), (0.15, 2)])
def test_equals_the_eager_algorithm(threshold, most):
    model = build(Toy)
    compiled = compile_toy(model, residual_diff_threshold=threshold, max_continuous_cached_steps=most, **PRUNE)
    outs = [compiled(*call) for call in calls()]
    wanted, decisions = oracle(model, threshold, most=most)
    steps = dit_compile.stats(model)[-1].steps
    regions = sorted({step.region for step in steps})
    assert ["".join(s.action[0] for s in steps if s.region == region) for region in regions] == decisions
    assert len(set(decisions)) > 1 and any("r" in d for d in decisions), "blocks do not differ: nothing is tested"
    torch.testing.assert_close(outs, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_transfer_per_step(monkeypatch):
    reads, send = [], Parcel.send
    monkeypatch.setattr(Parcel, "send", lambda parcel: (reads.append(parcel.count), send(parcel)))
    compiled = compile_toy(build(TwoStreams), residual_diff_threshold=0.1, num_steps=STEPS, **PRUNE)
    for call in calls():
        compiled(*call)
    steps = dit_compile.stats(compiled)[-1].steps
    computed = [sum(step.action == "compute" for step in steps if step.index == index) for index in range(STEPS)]
    # two sums for each of the five blocks behind the first, and one for each of two streams kept: is it finite?
    assert reads == [(2 * 5 if index else 0) + 2 * computed[index] for index in range(STEPS)]
    assert min(computed) < max(computed) == 5


NAMES = (
    "FluxTransformer2DModel", "SD3Transformer2DModel", "HunyuanDiT2DModel", "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel", "WanVACETransformer3DModel",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", slow_unless(lambda name: name.startswith("HunyuanDiT"), NAMES, str))
def test_blocks_of_real_models_are_skipped_right(name):
    """With inputs that do not change (but for a hair of the time), all blocks are skipped and nothing may change."""
    spec = registered(name)
    model = spec.build()
    options = {"inner": "eager", **PRUNE, "residual_diff_threshold": 0.1, "warmup_steps": 2, "cfg": "none"}
    compiled = torch.compile(model, backend="dit_cache", fullgraph=spec.fullgraph, dynamic=False, options=options)
    calls = [spec.call(index * 1e-6, batch=2) for index in range(4)]
    plain = spec.build()
    for index, call in enumerate(calls):
        assert error(compiled(**call), plain(**call)) < 1e-3, index  # a stream that is taken for another is off by 1
    (report,) = dit_compile.graphs()
    assert [region.first for region in report.regions] == list(report.blocks[1:])
    steps = dit_compile.stats(model)[-1].steps
    assert {step.action for step in steps if step.index == 3} == {"reuse"}
    assert {step.action for step in steps if step.index < 2} == {"compute"}


@torch.no_grad()
def test_kept_blocks_and_back_blocks_always_run():
    model = build(Toy)
    compiled = compile_toy(model, residual_diff_threshold=0.9, keep_blocks=(2,), bn=1, **PRUNE)
    for call in calls():
        compiled(*call)
    steps = dit_compile.stats(model)[-1].steps
    assert {step.region for step in steps} == {0, 1, 2, 3}  # blocks 1 to 4
    assert {step.reason for step in steps if step.region == 1 and step.index >= 2} == {"kept"}
    assert any(step.action == "reuse" for step in steps if step.region == 2)


def test_the_threshold_rises_with_the_mean():
    policy, base = POLICIES["dbprune"](), {"policy": "dbprune", "scope": "block", "residual_diff_threshold": 0.1}

    def verdict(diff, mean, **settings):
        view = StepView(9, 0, 0, expected=diff, mean=mean)
        return policy.before(view, CacheConfig(**base, **settings))

    assert verdict(0.12, 0.1) == Verdict(False, "threshold")
    assert verdict(0.12, 0.1, prune_relax=1.25) == Verdict(True, "hit")  # 0.125
    assert verdict(0.12, 0.2, prune_relax=1.25) == Verdict(False, "threshold")  # 0.25 lies above twice the threshold
    assert verdict(0.12, 0.2, prune_relax=1.25, prune_relax_limit=0.3) == Verdict(True, "hit")
    assert verdict(0.08, 0.01, prune_relax=1.25) == Verdict(True, "hit")  # never below the threshold


def test_needs_a_region_per_block():
    with pytest.raises(ConfigError, match='scope="block"'):
        CacheConfig(policy="dbprune")


@torch.no_grad()
def test_nan_computes_and_does_not_last(caplog):
    model = build(Toy)
    compiled = compile_toy(model, residual_diff_threshold=0.9, **PRUNE)
    with caplog.at_level(logging.WARNING, "dit_compile"):
        for index, (x, t) in enumerate(calls(0.01)):
            out = compiled(x * float("nan") if index == 5 else x, t)
            assert bool(out.isfinite().all()) == (index != 5), index
    assert any("NaN" in record.getMessage() for record in caplog.records)


@torch.no_grad()
def test_the_table_has_one_line_for_many_blocks(capsys):
    model = build(Toy, depth=12)
    compiled = compile_toy(model, residual_diff_threshold=0.1, **PRUNE)
    for call in calls():
        compiled(*call)
    dit_compile.summary(model)
    out = capsys.readouterr().out
    assert "all 11" in out and out.count("%)") == 1
