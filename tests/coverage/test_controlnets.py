"""Real ControlNets of diffusers, run beside the cached transformer as pipelines run them, and Wan-VACE's hints.

Their projections, which diffusers initialises to zero, have random weights here (see ``specs.Model.build``). diffusers
0.42.1 has no ControlNet class for Chroma and Bria; samples of the right shape stand in for them in test_controls.py.
What cache-dit makes of the same ControlNets is in tests/parity/test_controls_vs_peer.py.
"""

import pytest
import torch
from control_inputs import BY_NAME, WITH_NETS, Loop, NetLoop
from eager_oracle import EagerOracle
from examine import error
from tiers import slow_unless

import dit_compile

VACE = "WanVACETransformer3DModel (scale)"
GUARDED = {"residual_diff_threshold": 0.3, "warmup_steps": 2, "max_continuous_cached_steps": -1, "forecast": "reuse"}
FAST = ("FluxTransformer2DModel", VACE)
EACH = pytest.mark.parametrize("name", slow_unless(lambda name: name in FAST, [*WITH_NETS, VACE], str))


class Subject:
    """A model with its control, compiled; and the same weights in plain eager code."""

    def __init__(self, name):
        self.loop = Loop(BY_NAME[name]) if name in BY_NAME else NetLoop(name)
        self.spec = self.loop.controlled.spec
        self.plain = self.spec.build()
        options = {"inner": "eager", **GUARDED}
        self.model = torch.compile(
            self.spec.build(), backend="dit_cache", fullgraph=True, dynamic=False, options=options
        )

    @property
    def newest(self):
        return dit_compile.stats(self.model)[-1]


@EACH
@torch.no_grad()
def test_exact_when_computed_then_part_of_the_forecast_then_switched_off(name):
    subject = Subject(name)
    loop, plain = subject.loop, subject.plain
    with dit_compile.session("computed", residual_diff_threshold=0):
        for index in range(3):
            wanted = plain(**loop.call(index))
            assert error(subject.model(**loop.call(index)), wanted) < 1e-5
            assert error(plain(**loop.call(index, control=0.0)), wanted) > 0.05, "the control does next to nothing"
        assert subject.newest.computed == 3
    controlled, uncontrolled = EagerOracle(subject.spec.build(), subject.spec), EagerOracle(plain, subject.spec)
    with dit_compile.session("reused", policy="mask", step_mask="1010"):
        for index in range(4):
            reuse = index % 2 == 1
            got = subject.model(**loop.call(index))
            assert error(got, controlled.step(reuse=reuse, **loop.call(index))) < 1e-5
            without = uncontrolled.step(reuse=reuse, **loop.call(index, control=1.0 if index == 3 else 0.0))
            assert error(got, without) > 0.01, "a forecast from an uncontrolled step would do as well"
        assert subject.newest.reused == 2
    switched_off_half_way(subject, name)


def switched_off_half_way(subject, name):
    """From control_guidance_end on the samples are zeros; then the pipeline leaves the ControlNet out (None)."""
    loop, plain = subject.loop, subject.plain
    for index in range(4):
        subject.model(**loop.call(index))
    assert [step.action for step in subject.newest.steps][2:] == ["reuse", "reuse"], "the guard was to be content"
    got = subject.model(**loop.call(4, control=0.0))
    assert error(got, plain(**loop.call(4, control=0.0))) < 1e-5
    assert subject.newest.steps[-1].action == "compute"
    if name == VACE:
        return  # its control video may not be None
    with_control = subject.newest.bytes_held
    held = []
    for index in range(5, 8):
        got, wanted = subject.model(**loop.call(index, control=None)), plain(**loop.call(index, control=None))
        held.append(subject.newest.bytes_held)
        if index == 5:  # a graph of its own, and its first step
            assert error(got, wanted) < 1e-5
    assert [step.reason for step in subject.newest.steps[5:]] == ["no_snapshot", "hit", "hit"]
    assert held[0] < with_control, "its state is freed, with the samples that it compared"
    assert held[0] <= held[1] == held[2]
    got = subject.model(**loop.call(8))
    assert error(got, plain(**loop.call(8))) < 1e-5
    assert subject.newest.steps[-1].reason == "no_snapshot"
