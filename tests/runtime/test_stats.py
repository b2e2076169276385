"""What stats() and summary() say, and that it is true."""

import re

import pytest
import torch
from toys import Prompted, Toy, TwoStreams, build, compile_toy, latents, moved, timesteps

import dit_compile
from dit_compile.config import CacheConfig
from dit_compile.debug.summary import REASONS, print_summary, ranges
from dit_compile.readers import format_bytes
from dit_compile.runtime.stats import GenerationStats, StepStats, stopwatch

TIMES = [1000.0, 850.0, 700.0, 550.0, 400.0, 250.0, 120.0, 60.0]
STREAM = 2 * 5 * 16 * 4  # bytes of one stream of the toys


@torch.no_grad()
def generate(model, seed=1, branches=0, times=TIMES):
    x = latents(seed=seed)
    prompts = [(latents(tokens=3, seed=100 + b),) for b in range(branches)] or [()]
    for time in times:
        t = torch.full((2,), time)
        for prompt in prompts:
            out = model(x, t, *prompt)
        x = x - 0.1 * out


def last(model):
    return dit_compile.stats(model)[-1]


def test_contents():
    model = compile_toy(build(Prompted), warmup_steps=2, residual_diff_threshold=0.3, max_continuous_cached_steps=2)
    generate(model, branches=2)
    stats = last(model)
    assert (stats.module, stats.session) == ("6 x Block", "default")
    assert [(s.index, s.branch) for s in stats.steps] == [(i, b) for i in range(8) for b in range(2)]
    assert stats.branches == [0, 1]
    assert {s.region for s in stats.steps} == {0}
    assert {s.reason for s in stats.steps} <= REASONS.keys()
    assert [s.reason for s in stats.steps][:4] == ["no_snapshot"] * 2 + ["warmup"] * 2
    assert all((s.action == "reuse") == (s.reason == "hit") for s in stats.steps)
    assert all(s.diff < 0.3 for s in stats.steps if s.reason == "hit")
    assert all(s.diff >= 0.3 for s in stats.steps if s.reason == "threshold")
    assert stats.reused + stats.computed == 16
    assert stats.reused > 0
    assert stats.config.residual_diff_threshold == 0.3
    assert all(s.seconds > 0 for s in stats.steps)
    assert stats.smallest_threshold() == min(s.diff for s in stats.steps if s.diff is not None)
    assert not stats.ended
    as_dict = stats.as_dict()
    assert len(as_dict["steps"]) == 16
    assert as_dict["steps"][0] == {
        "index": 0, "branch": 0, "region": 0, "rows": 0, "action": "compute", "reason": "no_snapshot", "diff": None,
    }  # fmt: skip


@torch.no_grad()
def test_a_difference_is_the_relative_change_of_the_first_blocks_effect():
    model = build(Toy)
    compiled = compile_toy(model, warmup_steps=0, residual_diff_threshold=1e-6)
    xs, ts = [latents(seed=1), latents(seed=2)], [torch.full((2,), 900.0), torch.full((2,), 500.0)]
    for x, t in zip(xs, ts, strict=True):
        compiled(x, t)
    before, now = (model.front(x, t)[0] - model.embed(x) for x, t in zip(xs, ts, strict=True))
    wanted = (before - now).abs().mean() / before.abs().mean()
    assert [s.diff for s in last(compiled).steps] == [None, pytest.approx(float(wanted), rel=1e-5)]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("policy", "probes"),
    [({"policy": "dbcache", "warmup_steps": 5}, 1), ({"policy": "interval", "interval": 1}, 0)],
    ids=["probe", "no probe"],
)
@pytest.mark.parametrize(("cls", "streams"), [(Prompted, 1), (TwoStreams, 2)], ids=["one stream", "two streams"])
def test_bytes_held(order, policy, probes, cls, streams, caplog):
    """(order + 1) snapshots of each stream and one probe, for each branch: as was promised at compile time."""
    branches = 2 if cls is Prompted else 0
    model = compile_toy(build(cls), forecast="taylorseer", taylor_order=order, **policy)
    with caplog.at_level("INFO", "dit_compile"):
        generate(model, branches=branches)
    per_branch = ((order + 1) * streams + probes) * STREAM
    assert dit_compile.graphs()[-1].bytes_per_branch == per_branch
    assert f"{format_bytes(per_branch)} held per branch" in caplog.text
    assert last(model).bytes_held == per_branch * max(branches, 1)
    dit_compile.reset()
    assert last(model).bytes_held == per_branch * max(branches, 1)  # what it held when it ended


def test_reuse_keeps_one_snapshot():
    model = compile_toy(build(Toy), forecast="reuse", warmup_steps=5)
    generate(model)
    assert last(model).bytes_held == 2 * STREAM


def test_bytes_shrink_when_the_order_does():
    model = compile_toy(build(Toy), forecast="newton", taylor_order=3, policy="interval", interval=1)
    generate(model, times=TIMES[:5])
    assert last(model).bytes_held == 4 * STREAM
    dit_compile.configure(taylor_order=1)
    generate(model, times=[20.0])
    assert last(model).bytes_held == 2 * STREAM


def test_zero_hits_are_warned_about_with_a_threshold_that_would_have_hit(caplog):
    def run(threshold):
        dit_compile.configure(residual_diff_threshold=threshold)
        generate(model)
        dit_compile.reset()
        return last(model)

    model = compile_toy(build(Toy), warmup_steps=1)
    stats = run(1e-9)
    assert stats.reused == 0
    [warning] = [r.message for r in caplog.records if r.levelname == "WARNING" and "nothing was reused" in r.message]
    assert "DIT_CACHE_RESIDUAL_DIFF_THRESHOLD" in warning
    named = float(re.search(r"above ([\d.e+-]+) would have hit", warning)[1])
    assert named == pytest.approx(stats.smallest_threshold(), rel=1e-3)
    caplog.clear()
    assert run(stats.smallest_threshold() * (1 - 1e-6)).reused == 0
    assert run(stats.smallest_threshold() * (1 + 1e-6)).reused >= 1
    assert run(named * 1.001).reused >= 1
    assert len([r for r in caplog.records if "nothing was reused" in r.message]) == 1


def test_zero_hits_of_a_short_run_blame_the_warm_up(caplog):
    model = compile_toy(build(Toy), warmup_steps=20)
    generate(model)
    dit_compile.reset()
    assert "DIT_CACHE_WARMUP_STEPS" in caplog.text


@pytest.mark.parametrize("options", [{"residual_diff_threshold": 0}, {"warmup_steps": 2, "residual_diff_threshold": 1}])
def test_no_warning_where_nothing_is_amiss(options, caplog):
    model = compile_toy(build(Toy), **options)
    generate(model)
    dit_compile.reset()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_summary_setting_prints_at_the_end_of_each_generation(monkeypatch, capsys):
    monkeypatch.setenv("DIT_CACHE_SUMMARY", "1")
    model = compile_toy(build(Toy), warmup_steps=2, residual_diff_threshold=1)
    generate(model)
    assert "6 x Block" not in capsys.readouterr().out
    generate(model)
    printed = capsys.readouterr().out
    assert printed.count("6 x Block") == 1
    dit_compile.reset()
    assert capsys.readouterr().out.count("6 x Block") == 1


def test_summary(capsys):
    model = compile_toy(build(Prompted), warmup_steps=2, residual_diff_threshold=1, max_continuous_cached_steps=2)
    generate(model, branches=2)
    dit_compile.summary(model)
    printed = " ".join(capsys.readouterr().out.split())
    assert "6 x Block, session default" in printed
    assert "2-3 5-6" in printed  # the steps that were reused
    assert "consecutive_limit" in printed
    assert format_bytes(last(model).bytes_held) in printed
    assert "host waited 0 times" in printed
    assert "timestep jumps back" in printed


def test_summary_shows_the_newest_generation_of_each_session(capsys):
    model = compile_toy(build(Toy), warmup_steps=2)
    for name in ("one", "two"):
        with dit_compile.session(name):
            generate(model)
            generate(model)
    dit_compile.summary()
    printed = capsys.readouterr().out
    assert printed.count("session one") == printed.count("session two") == 1


def test_summary_with_nothing_run(capsys):
    model = build(Toy)
    assert dit_compile.stats(model) == []
    dit_compile.summary(model)
    assert "has not run yet" in capsys.readouterr().out


def test_statistics_of_the_compiled_module_are_those_of_the_module():
    plain = build(Toy)
    model = compile_toy(plain)
    generate(model)
    assert dit_compile.stats(model) == dit_compile.stats(plain) != []
    assert dit_compile.stats(build(Toy, seed=1)) == []


def test_a_pipeline_is_not_a_module():
    with pytest.raises(TypeError, match=r"pipe\.transformer"):
        dit_compile.stats(object())
    with pytest.raises(TypeError, match=r"pipe\.transformer"):
        dit_compile.reset("transformer")


def test_history_keeps_the_last_64_generations():
    model = compile_toy(build(Toy))
    for i in range(70):
        generate(model, seed=i, times=TIMES[:2])
    stats = dit_compile.stats(model)
    assert len(stats) == 64
    assert [s.ended for s in stats] == [True] * 63 + [False]
    assert all(len(s.steps) == 2 for s in stats)


def test_nothing_is_kept_of_a_module_that_is_gone():
    import gc

    gc.collect()  # what earlier tests have left
    before = len(dit_compile.stats())
    model = compile_toy(build(Toy))
    generate(model)
    assert len(dit_compile.stats()) == before + 1
    torch._dynamo.reset()
    del model
    gc.collect()
    assert len(dit_compile.stats()) == before


@pytest.mark.parametrize(
    ("numbers", "text"), [([], "-"), ([4], "4"), ([4, 5, 6, 9], "4-6 9"), ([3, 1, 2], "1-3"), ([1, 3, 5], "1 3 5")]
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120.0 GiB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@torch.no_grad()
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_policy_that_fails_costs_its_step_and_says_so_once(place, caplog):
    from dit_compile.policy import Policy, Verdict, register_policy

    @register_policy("failing")
    class Failing(Policy):
        def before(self, step, config):
            return Verdict(True, "hit") if place == "before" and step.index < 4 else self.fail(place == "before")

        def after(self, step, config, diff):
            return self.fail(step.index >= 4) or Verdict(True, "hit")

        def fail(self, now):
            if now:
                raise RuntimeError("a bug in a plug-in")

    model = build(Toy)
    compiled = compile_toy(model, policy="failing")
    for index, t in enumerate(timesteps(8)):
        x = moved(index)
        out = compiled(x, torch.full((2,), t))
        if index >= 4:
            torch.testing.assert_close(out, model(x, torch.full((2,), t)))
    reasons = [step.reason for step in dit_compile.stats(model)[-1].steps]
    assert reasons == ["no_snapshot"] + ["hit"] * 3 + ["policy_error"] * 4
    (record,) = [r for r in caplog.records if "failed" in r.getMessage()]
    assert "a bug in a plug-in" in str(record.exc_info[1])


def test_regions_are_timed_where_that_costs_nothing_or_is_asked_for(capsys):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    asked, not_asked = CacheConfig(summary=True), CacheConfig()
    assert stopwatch(cpu, not_asked) is not None and stopwatch(cpu, asked) is not None
    assert stopwatch(gpu, not_asked) is None
    stats = GenerationStats("model", "default", not_asked)
    for index, action in enumerate(["compute", "reuse"]):
        stats.record(StepStats(index, 0, action, "threshold" if action == "compute" else "hit"), None)
    assert stats.seconds_saved() is None
    print_summary([stats])
    assert "saved      not timed: on a GPU summary=1 (DIT_CACHE_SUMMARY=1) does that;" in capsys.readouterr().out
    stats.steps[0].seconds = 2.0
    assert stats.seconds_saved() == 0.0
    stats.steps[1].seconds = 0.5
    assert stats.seconds_saved() == 1.5
