"""A jump ends history: reused steps after it are as good as after ``reset()``."""

import math

import pytest
import torch
from direct_graph import DirectGraph
from toys import latents

from dit_compile.runtime.slots import JUMP, Slots

SETTINGS = {
    "residual_diff_threshold": 0.3, "warmup_steps": 2, "max_continuous_cached_steps": 2,
    "forecast": "newton", "taylor_order": 1,
}  # fmt: skip
TIMES = [1000.0 - 5 * i for i in range(16)]


def trajectory(jump=None):
    """Latents on a straight line, and from step ``jump`` on those of another one."""
    start, other, way = (latents(1, 5, seed=seed, width=4) for seed in (1, 2, 3))
    starts = [start if jump is None or i < jump else other for i in range(len(TIMES))]
    return [
        (one + 0.02 * i * way, torch.tensor([time])) for i, (one, time) in enumerate(zip(starts, TIMES, strict=True))
    ]


@pytest.mark.parametrize("jump", [6, 7, 8, 9, 10])
def test_steps_after_a_jump_are_those_of_a_new_generation(jump):
    """Whether the jump falls on a step that was measured, or on one that a limit forced to be computed."""
    graph, prompt, calls = DirectGraph(**SETTINGS), latents(1, 3, seed=3, width=4), trajectory(jump)
    for call in calls[:jump]:
        graph(*call, prompt)
    assert graph.table.history(None)[-1].reused > 2
    after = [graph(*call, prompt) for call in calls[jump:]]
    steps = graph.table.history(None)[-1].steps
    assert len(steps) == len(TIMES), "the time goes on: it is one generation"
    graph.forget()
    fresh = [graph(*call, prompt) for call in calls[jump:]]
    alone = graph.table.history(None)[-1].steps
    assert [step.action for step in steps[jump:]] == [step.action for step in alone]
    assert any(step.action == "reuse" for step in alone)
    torch.testing.assert_close(after, fresh)


def test_no_jump_no_second_warm_up():
    graph, prompt = DirectGraph(**SETTINGS), latents(1, 3, seed=3, width=4)
    for call in trajectory():
        graph(*call, prompt)
    assert [step.reason for step in graph.table.history(None)[-1].steps].count("warmup") == 1


def test_what_is_out_of_family():
    slots = Slots()
    assert not slots.is_jump(0.2), "the first difference has no family"
    assert not slots.is_jump(0.2 * JUMP / 2), "large, but in family"
    assert slots.is_jump(0.9) and not slots.is_jump(0.9), "what follows a jump may change as fast"
    assert slots.is_jump(1.0), "as much as there was"
    longer = Slots()
    assert not longer.is_jump(0.24) and not longer.is_jump(0.6, since=2), "two steps may change twice as much"
    shorter = Slots()
    assert not shorter.is_jump(0.24) and shorter.is_jump(0.6, since=1), "one step may not"
    calm = Slots()
    assert not calm.is_jump(0.05)
    assert not calm.is_jump(math.nextafter(0.05 * JUMP, 0)) and calm.is_jump(0.9)
    calmer = Slots()
    assert not calmer.is_jump(0.02) and calmer.is_jump(0.1)
