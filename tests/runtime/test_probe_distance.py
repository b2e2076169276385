"""Forecasters that follow the probe: what they are told, what it costs, and what happens where nothing is measured."""

import math

import pytest
import torch
from toys import Toy, build, compile_toy, latents

import dit_compile
from dit_compile.api import table
from dit_compile.runtime.probe_distance import Way, keep_probe, measure_way, moment
from dit_compile.runtime.slots import Slots, Snapshot
from dit_compile.runtime.transfer import Outbox, Parcel

TIMES = [1000.0, 850.0, 700.0, 550.0, 400.0, 250.0, 120.0, 60.0]
FOLLOWS = {"forecast": "dicache", "dicache_limit": 50.0}
GUARDED = {"warmup_steps": 3, "residual_diff_threshold": 0.95, "max_continuous_cached_steps": 2, "num_steps": 8}


def trajectory():
    """Latents that first move slowly, then fast, then slowly again."""
    start, goal = latents(seed=1), latents(seed=2)
    return [start + share * goal for share in (0.0, 0.1, 0.15, 0.3, 0.5, 0.55, 0.6, 0.9)]


@torch.no_grad()
def generate(model, xs=None):
    pairs = zip(xs or trajectory(), TIMES, strict=True)
    return [model(x, torch.full((2,), time)) for x, time in pairs]


def kept_probes():
    """Of all slots: whether the newest snapshot keeps its probe."""
    return [slots.ring[-1].probe is not None for state in table._states.values() for slots in state.slots.values()]


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"probe": "residual"}, {"probe": "hidden"}, {"downsample_factor": 3}], ids=str)
def test_a_step_is_as_far_as_the_probe_has_moved(settings):
    """All outputs by hand, in eager code."""
    model = build(Toy)
    outs = generate(compile_toy(model, **FOLLOWS, **GUARDED, **settings))
    actions = [step.action for step in dit_compile.stats(model)[-1].steps]
    assert actions.count("reuse") >= 3
    computed, gammas = [], []
    for action, x, time, out in zip(actions, trajectory(), TIMES, outs, strict=True):
        t = torch.full((2,), time)
        h, temb = model.front(x, t)
        probe = (h if settings.get("probe") == "hidden" else h - model.embed(x))[
            ..., :: settings.get("downsample_factor", 1)
        ]
        if action == "compute":
            wanted = model(x, t)
            computed = [*computed, (probe, model.region(h, temb) - h)][-2:]
        else:
            (old, older), (new, newer) = computed
            gammas.append(max(float((probe - old).abs().sum() / (new - old).abs().sum()), 1.0))
            wanted = model.tail(h + older + gammas[-1] * (newer - older), temb)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert len({round(gamma, 3) for gamma in gammas}) > 2 and max(gammas) > 1.1


def test_the_numbers_come_in_the_transfer_that_is_waited_for_anyway(monkeypatch):
    sent = []
    send = Parcel.send
    monkeypatch.setattr(Parcel, "send", lambda self: (sent.append(self), send(self)))
    seen = {}
    for forecast in ("newton", "dicache"):
        dit_compile.reset()
        torch._dynamo.reset()
        sent.clear()
        model = build(Toy)
        generate(compile_toy(model, forecast=forecast, **GUARDED))
        stats = dit_compile.stats(model)[-1]
        seen[forecast] = (stats.host_reads, len(sent))
    assert seen["dicache"] == seen["newton"] and seen["newton"][0] > 0


def test_other_forecasters_keep_no_probes():
    for forecast, kept in (("foca", False), ("dicache", True)):
        dit_compile.reset()
        torch._dynamo.reset()
        model = compile_toy(build(Toy), forecast=forecast, **GUARDED)
        generate(model)
        assert kept_probes() == [kept]


def straight(**settings):
    """Outputs, with the line through two snapshots by the numbers of steps, and with what ``settings`` make of it."""
    outs = []
    for forecast in ({"forecast": "newton", "taylor_order": 1}, FOLLOWS):
        dit_compile.reset()
        torch._dynamo.reset()
        model = build(Toy)
        outs.append(generate(compile_toy(model, **forecast, **{**GUARDED, **settings})))
    assert dit_compile.stats(model)[-1].reused > 1
    return outs, dit_compile.stats(model)[-1].host_reads


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "interval", "interval": 2},
        {"residual_diff_threshold": 1.0},
        {"policy": "dicache", "residual_diff_threshold": 9.0, "decision": "lagged"},
    ],
    ids=str,
)
def test_where_no_probe_is_measured_steps_count(settings):
    (by_steps, following), host_reads = straight(**settings)
    for wanted, out in zip(by_steps, following, strict=True):
        torch.testing.assert_close(out, wanted)
    assert host_reads == 0


def test_a_branch_that_takes_over_the_difference_of_another_counts_steps():
    """It measures nothing itself."""
    model = build(Toy)
    compiled = compile_toy(model, **FOLLOWS, **{**GUARDED, "cfg": 2, "cfg_decision": "shared"})
    with torch.no_grad():
        for x, time in zip(trajectory(), TIMES, strict=True):
            for _ in range(2):
                out = compiled(x, torch.full((2,), time))
                assert torch.isfinite(out).all()
    branches = {step.branch for step in dit_compile.stats(model)[-1].steps if step.action == "reuse"}
    assert branches == {0, 1}


@pytest.mark.parametrize("policy", ["dbcache", "dicache"])
def test_probes_count_as_memory(policy):
    model = build(Toy)
    compiled = compile_toy(model, policy=policy, forecast="dicache", **GUARDED)
    generate(compiled)
    stats, estimate = dit_compile.stats(model)[-1], dit_compile.graphs()[-1].bytes_per_branch
    stream = 2 * 5 * 16 * 4
    assert estimate == 4 * stream  # two snapshots, each with its probe
    assert stats.steps[-1].action == "reuse"
    last_probe = policy == "dicache"  # of a step that was not computed
    assert stats.bytes_held == (4 + last_probe) * stream


@pytest.mark.parametrize("snapshots", [1, 2])
@pytest.mark.parametrize("policy", ["dbcache", "dicache"])
def test_a_cap_holds(policy, snapshots):
    stream = 2 * 5 * 16 * 4
    cap = (1 + 2 * snapshots) * stream  # each with a probe, and the last one
    model = build(Toy)
    compiled = compile_toy(model, policy=policy, forecast="dicache", max_bytes=cap, **GUARDED)
    held = []
    with torch.no_grad():
        for x, time in zip(trajectory(), TIMES, strict=True):
            compiled(x, torch.full((2,), time))
            held.append(dit_compile.stats(model)[-1].bytes_held)
    assert max(held) <= cap and dit_compile.stats(model)[-1].reused > 0
    assert [len(slots.ring) for state in table._states.values() for slots in state.slots.values()] == [snapshots]


# --- what moment() makes of odd measurements


def ring(*probes):
    """Slots with a snapshot at step 0, 2, 4, ... for each probe, and the outbox of the last of them."""
    slots, outbox = Slots(), Outbox()
    for i, probe in enumerate(probes):
        slots.ring.append(Snapshot(2 * i, []))
        keep_probe(slots, probe, outbox)
    return slots, outbox


def at(slots, outbox, probe, now=5):
    way = measure_way(slots, probe, outbox)
    return way, now if way is None else moment(slots, way, [snapshot.step for snapshot in slots.ring], now)


def test_moment():
    slots, outbox = ring(torch.zeros(4), torch.ones(4))
    assert at(slots, outbox, torch.full((4,), 1.75))[1] == pytest.approx(2 * 1.75)
    assert at(slots, outbox, torch.full((4,), 0.5))[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("probes", "now"),
    [
        ([torch.ones(4)], torch.ones(4)),  # one snapshot
        ([torch.ones(4), None], torch.ones(4)),  # its step has measured nothing
        ([None, torch.ones(4)], torch.ones(4)),
        ([torch.ones(3), torch.ones(4)], torch.ones(4)),  # other shapes
        ([torch.ones(4), torch.ones(4)], torch.ones(3)),
        ([torch.ones(4), torch.ones(4)], torch.zeros(4)),  # nothing has moved
        ([torch.ones(4), torch.zeros(4)], torch.full((4,), math.nan)),
    ],
    ids=["one", "not measured", "not measured before", "shape", "shape now", "still", "nan"],
)
def test_a_moment_that_is_not_known_is_the_step(probes, now):
    slots, outbox = ring(*probes)
    assert at(slots, outbox, now)[1] == 5


def test_a_way_from_a_snapshot_that_is_gone_is_not_used():
    slots, outbox = ring(torch.zeros(4), torch.ones(4), torch.full((4,), 2.0))
    way, _ = at(slots, outbox, torch.full((4,), 3.0))
    assert isinstance(way, Way) and moment(slots, way, [0, 2, 4], 5) == pytest.approx(6.0)
    del slots.ring[-1]
    assert moment(slots, way, [0, 2], 5) == 5
    slots.drop()
    assert moment(slots, way, [], 5) == 5
