"""What host_step.py measures: a narrow FLUX in a pipeline, whose compiled code returns what it returned at first.

Compiled pieces and blocks are replaced by stand-ins, so that what remains is the host's own work: Dynamo's guards, the
cache's decisions, its kernels on small tensors, and the calls of the pieces themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from dit_compile.demo.pipeline import wrap_transformer

SIZES = {12: (4, 8), 57: (19, 38)}  # blocks -> double blocks, single blocks
STEPS = 40
WARMUP = 4
MOST_IN_A_ROW = 2  # reused steps
ALWAYS = 0.9  # a threshold above every difference of recorded outputs
ENTRIES = ("torch.compile", "dit_compile.compile")
CACHE_DIT = ("1.0.14", "1.5.3")
FIRST_BLOCK_CACHE = "FirstBlockCache"


Figures = dict[str, dict[str, float]]
"""Of computed and of cached steps: how many, milliseconds as called and inside (median, 10th percentile)."""


def narrow_flux(blocks: int) -> nn.Module:
    """FLUX of width 64 with random weights, so narrow that kernels take next to no time."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    doubles, singles = SIZES[blocks]
    model: nn.Module = FluxTransformer2DModel(
        patch_size=1, in_channels=48, num_layers=doubles, num_single_layers=singles, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model.eval().requires_grad_(False)


@dataclass
class Stubs:
    """Makes stand-ins for compiled code and counts their calls."""

    calls: int = 0

    def of(self, code: Callable[..., Any]) -> Callable[..., Any]:
        """Runs ``code`` once and returns its result from then on."""
        kept: list[Any] = []

        def recorded(*args: Any) -> Any:
            self.calls += 1
            if not kept:
                kept.append(code(*args))
            return kept[0]

        return recorded

    def backend(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        """A backend of torch.compile."""
        return self.of(gm.forward)


@dataclass
class Step:
    """One step of a pipeline. ``seconds`` are the thread's CPU seconds as called, ``inside`` those that were spent in
    the callable of the backend."""

    seconds: float
    inside: float
    stubs: int


@dataclass
class Run:
    """The steps of some generations of one pipeline."""

    stubs: Stubs
    inside: int = 0  # nanoseconds of the step under way
    most: int = 0  # stand-ins that a computed step calls
    steps: list[Step] = field(default_factory=list)

    def generate(self, pipe: Any, repeats: int) -> None:
        """Notes the steps behind the warm-up of ``repeats`` generations, after one that compiles."""
        embeds, pooled = torch.randn(1, 8, 64), torch.randn(1, 64)
        for repeat in range(1 + repeats):
            steps: list[Step] = []
            begin = 0

            def after_step(*_: Any, steps: list[Step] = steps) -> dict[str, Any]:
                nonlocal begin
                steps.append(Step((time.thread_time_ns() - begin) / 1e9, self.inside / 1e9, self.stubs.calls))
                self.inside = self.stubs.calls = 0
                begin = time.thread_time_ns()
                return {}

            pipe(
                prompt_embeds=embeds, pooled_prompt_embeds=pooled, num_inference_steps=STEPS, height=128, width=128,
                output_type="latent", callback_on_step_end=after_step, callback_on_step_end_tensor_inputs=[],
            )  # fmt: skip
            self.most = max(self.most, *(step.stubs for step in steps))
            if repeat:
                self.steps += steps[WARMUP + MOST_IN_A_ROW :]

    def figures(self) -> Figures:
        kinds = {
            "computed": [step for step in self.steps if step.stubs > self.most / 2],
            "cached": [step for step in self.steps if step.stubs <= self.most / 2],
        }
        return {kind: _summary(steps) for kind, steps in kinds.items() if steps}


def _summary(steps: Sequence[Step]) -> dict[str, float]:
    found: dict[str, float] = {"steps": len(steps)}
    for name, values in (("called", [step.seconds for step in steps]), ("inside", [step.inside for step in steps])):
        found[f"{name}_median_ms"] = 1000 * statistics.median(values)
        found[f"{name}_p10_ms"] = 1000 * statistics.quantiles(values, n=10)[0] if len(values) > 1 else 1000 * values[0]
    return found


@contextmanager
def ours(blocks: int, entry: str) -> Iterator[tuple[Any, Run]]:
    """A pipeline whose transformer is compiled by this package, with stand-ins for its pieces."""
    import dit_compile
    from dit_compile.passes import lower
    from dit_compile.runtime.cached_graph import CachedGraph

    run = Run(stubs := Stubs())
    call = CachedGraph.__call__

    def timed(graph: CachedGraph, *args: Any) -> Any:
        begin = time.thread_time_ns()
        result = call(graph, *args)
        run.inside += time.thread_time_ns() - begin
        return result

    settings = {
        "residual_diff_threshold": ALWAYS, "warmup_steps": WARMUP, "max_continuous_cached_steps": MOST_IN_A_ROW,
    }  # fmt: skip
    model = narrow_flux(blocks)
    with ExitStack() as stack:
        stack.enter_context(patch.object(lower, "compile_graph", lambda gm, *_, **__: stubs.of(gm.forward)))
        stack.enter_context(patch.object(CachedGraph, "__call__", timed))
        if entry == "torch.compile":
            pipe = wrap_transformer(torch.compile(model, backend="dit_cache", options=settings))
        else:
            pipe = wrap_transformer(dit_compile.compile(model, **settings))
        yield pipe, run
    torch.compiler.reset()


def cache_dit(blocks: int, repeats: int) -> Figures:
    """cache-dit as it is installed, with its blocks compiled one by one, as its documentation advises."""
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, enable_cache

    run = Run(stubs := Stubs())
    pipe = wrap_transformer(model := narrow_flux(blocks))
    pipe.__class__ = type("FluxPipeline", (type(pipe),), {})  # cache-dit wraps ``__call__`` of the class
    model.compile_repeated_blocks(backend=stubs.backend)  # type: ignore[operator]
    enable_cache(
        pipe,
        cache_config=DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=ALWAYS, max_warmup_steps=WARMUP,
            max_continuous_cached_steps=MOST_IN_A_ROW,
        ),
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
    )  # fmt: skip
    with torch.no_grad():
        run.generate(pipe, repeats)
    return run.figures()


def cache_dit_version(version: str, folder: Path, blocks: int, repeats: int) -> Figures:
    """``cache_dit`` of one version, in a process of its own; what is missing is installed into ``folder``.

    Raises:
        PeerUnavailable: that version is not here and cannot be installed.
    """
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "parity"))
    from parity_support.peer import package_path

    paths = [*package_path(version, folder), *sys.path]
    result = subprocess.run(
        [sys.executable, __file__, str(blocks), str(repeats)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CACHE_DIT_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: Figures = json.loads(result.stdout.splitlines()[-1])
    return figures


def first_block_cache(blocks: int, repeats: int) -> Figures:
    """diffusers' cache of that name, with its blocks compiled one by one.

    It has no limit of reused steps, and recorded outputs never differ, so computed steps are those of a second model
    with a negative threshold.
    """
    from diffusers import FirstBlockCacheConfig

    figures: Figures = {}
    for kind, threshold in (("computed", -1.0), ("cached", ALWAYS)):
        run = Run(stubs := Stubs())
        model: Any = narrow_flux(blocks)
        model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        model.compile_repeated_blocks(backend=stubs.backend)
        with torch.no_grad():
            run.generate(wrap_transformer(model), repeats)
        figures[kind] = run.figures()[kind]
        torch.compiler.reset()
    return figures


def this_package(blocks: int, repeats: int, entry: str) -> Figures:
    with ours(blocks, entry) as (pipe, run), torch.no_grad():
        run.generate(pipe, repeats)
    return run.figures()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(cache_dit(int(sys.argv[1]), int(sys.argv[2]))))
