"""What users do with a compiled pipeline besides calling it: warm it up, offload its model, call it from threads."""

from concurrent.futures import ThreadPoolExecutor

import accelerate
import pytest
import torch
from pipelines import MASK, check_compiled, compile_denoisers
from video_pipelines import WAN_PIPELINES

import dit_compile

pytestmark = pytest.mark.filterwarnings("ignore")

SPEC = WAN_PIPELINES[0]


def built():
    pipe = SPEC.build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def decisions(generation):
    return [(step.index, step.branch, step.action, step.reason) for step in generation.steps]


@pytest.mark.parametrize("time", [999, 500])  # that of the pipeline's first step, and one in the middle
@torch.no_grad()
def test_a_direct_call_before_the_first_run_disables_nothing(time):
    """It may cost the first run a step more, as the run seems to go on from there; the second knows nothing of it."""
    pipe = built()
    plain = SPEC.run(pipe, 0)
    (denoiser,) = compile_denoisers(pipe, SPEC)
    with dit_compile.session("mask", policy="mask", step_mask=MASK):
        wanted = SPEC.run(pipe, 0)
    (alone,) = denoiser.generations("mask")

    def warm_up():
        size = dict(hidden_states=torch.randn(1, 4, 2, 4, 4), encoder_hidden_states=torch.randn(1, 5, 16))
        pipe.transformer(timestep=torch.tensor([time]), **size)

    with dit_compile.session("exact after", residual_diff_threshold=0.0):
        warm_up()
        torch.testing.assert_close(SPEC.run(pipe, 0), plain)
    with dit_compile.session("mask after", policy="mask", step_mask=MASK):
        warm_up()
        SPEC.run(pipe, 0)
        last = denoiser.generations("mask after")[-1]
        reused = {(step.index, step.branch) for step in last.steps if step.action == "reuse"}
        assert len(reused) >= alone.reused - 2  # a step of both branches
        torch.testing.assert_close(SPEC.run(pipe, 0), wanted)
        assert decisions(denoiser.generations("mask after")[-1]) == decisions(alone)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_hooks_that_offload_the_model_change_nothing(inside):
    """``enable_model_cpu_offload`` puts them around the compiled model, or inside where it came first."""
    check_compiled(
        SPEC,
        lambda pipe: accelerate.cpu_offload_with_hook(
            pipe.transformer._orig_mod if inside else pipe.transformer, "cpu"
        ),
    )


@pytest.mark.slow
def test_two_pipelines_share_a_model_in_two_threads():
    """Each in a session of its own is as if alone."""
    pipe, other = built(), built()
    (denoiser,) = compile_denoisers(pipe, SPEC)
    other.transformer = pipe.transformer

    @torch.no_grad()
    def run(name, pipe, seeds):
        with dit_compile.session(name, policy="mask", step_mask=MASK):
            return [SPEC.run(pipe, seed) for seed in seeds]

    alone = run("alone", pipe, range(6))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, "first", pipe, range(3))
        second = pool.submit(run, "second", other, range(3, 6))
        together = first.result() + second.result()
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one, two)
    expected = decisions(denoiser.generations("alone")[0])
    for name in ("first", "second"):
        assert [decisions(generation) for generation in denoiser.generations(name)] == [expected] * 3
        denoiser.check_memory(name)
