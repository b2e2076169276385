"""Runs that follow each other: whatever the last one was, the next is a generation of its own, equal to a first one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ChromaImg2ImgPipeline, FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline
from image_pipelines import IMAGE_PIPELINES
from pipeline_parts import STEPS, TWO, drawing, picture
from pipelines import MASK, compile_denoisers
from torch import Tensor

import dit_compile

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# One call per step; two calls per step that the pipeline names; two that it does not name.
KINDS = {
    "SD3": (StableDiffusion3Img2ImgPipeline, 16),
    "FLUX, true guidance": (FluxImg2ImgPipeline, 8),
    "Chroma": (ChromaImg2ImgPipeline, 8),
}


class Aborted(Exception):
    pass


class Runs:
    """A compiled pipeline, one from image to image with the same transformer, and what has been run with them."""

    def __init__(self, name: str) -> None:
        self.spec = next(spec for spec in IMAGE_PIPELINES if spec.name == name)
        self.pipe = self.spec.build()
        self.denoiser = compile_denoisers(self.pipe, self.spec)[0]
        twin, self.size = KINDS[name]
        self.twin = twin(**self.pipe.components)
        self.calls: list[tuple[int, ...]] = []  # of each step of each run

    def _run(self, pipe: Any, steps: int, **arguments: Any) -> Tensor:
        self.calls.append(self.spec.calls[0][:1] * steps)
        pipe.set_progress_bar_config(disable=True)
        return self.spec.run(pipe, 0, **arguments)

    def text(self, steps: int = STEPS) -> Tensor:
        return self._run(self.pipe, steps, num_inference_steps=steps)

    def image(self, strength: float) -> Tensor:
        return self._run(self.twin, int(STEPS * strength), image=picture(self.size), strength=strength)

    def interrupted(self, steps: int) -> Tensor:
        def interrupt(pipe: Any, index: int, time: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = index == steps - 1
            return tensors

        return self._run(self.pipe, steps, callback_on_step_end=interrupt)

    def aborted(self, steps: int) -> Tensor:
        """Returns the latents of the last step."""
        last = []

        def abort(pipe: Any, index: int, time: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            last[:] = [tensors["latents"]]
            if index == steps - 1:
                raise Aborted
            return tensors

        with pytest.raises(Aborted):
            self._run(self.pipe, steps, callback_on_step_end=abort)
        return last[0]


SEQUENCES: dict[str, list[tuple[str, float]]] = {
    "two pipelines in turn": [("text", STEPS), ("image", 0.75)] * 2,
    "half a run after a whole one": [("text", STEPS), ("image", 0.5), ("image", 0.5), ("text", STEPS)],
    "interrupted": [("interrupted", 3), ("text", STEPS), ("interrupted", 3), ("interrupted", 4), ("text", STEPS)],
    "aborted": [("aborted", 3), ("text", STEPS), ("aborted", 1), ("aborted", 3), ("aborted", 3), ("text", STEPS)],
    "aborted, then the rest": [("aborted", 3), ("image", 0.5)],
    "one step": [("text", 1)] * 4 + [("text", STEPS), ("text", 1)],
    "other numbers of steps": [("text", steps) for steps in (8, 5, 8, 3, 3, 10)],
}


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_runs_in_sequence(sequence, name):
    runs = Runs(name)
    with dit_compile.session("all", policy="mask", step_mask=MASK):
        together = [getattr(runs, kind)(argument) for kind, argument in sequence]
    runs.denoiser.check_runs("all", runs.calls, MASK)
    runs.denoiser.check_memory("all")
    for place, (kind, argument) in enumerate(sequence):
        with dit_compile.session(f"only run {place}", policy="mask", step_mask=MASK):
            alone = getattr(runs, kind)(argument)
        assert torch.equal(together[place], alone), f"run {place}"


@torch.no_grad()
def test_a_call_before_the_loop_belongs_to_no_run():
    """GLM-Image first stores the keys and values of a picture, at time 0; then times fall from 999."""
    spec = next(spec for spec in IMAGE_PIPELINES if spec.name == "GLM-Image")
    pipe = spec.build()
    pipe.set_progress_bar_config(disable=True)
    denoiser = compile_denoisers(pipe, spec)[0]
    given = dict(
        image=[drawing(8)], prior_token_image_ids=[torch.arange(16)], source_image_grid_thw=[torch.tensor([[1, 4, 4]])]
    )
    with dit_compile.session("all", policy="mask", step_mask=MASK):
        first, second = [spec.run(pipe, 0, **given) for _ in range(2)]
    assert torch.equal(first, second)
    denoiser.check_runs("all", [(1,), TWO] * 2, MASK)
