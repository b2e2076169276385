"""Runs cache-dit on the bundled model, in a process of its own that ``peer.py`` starts for one version.

``python -m parity_support.peer_worker REQUEST ANSWER``: REQUEST is a pickled ``list[tuple[Knobs, int]]`` (knobs and
branches), ANSWER will be ``{"version": str, "traces": list[Trace], "foca": list[float] | None}``, the last what its
FoCa forecasts for ``FOCA_SCHEDULE``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cache_dit
import torch
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from diffusers import FluxPipeline
from parity_support.config import FOCA_SCHEDULE, Knobs, Trace
from parity_support.generation import Studio
from rich.progress import track


def adapt(pipe: FluxPipeline, knobs: Knobs) -> FluxPipeline | BlockAdapter:
    """What to give to ``enable_cache``: the registered layout of this version, or both lists spelled out.

    The registry of 1.5.3 fuses FLUX's two lists into one chain; the one of 1.0.14 keeps them apart.
    """
    fused = not cache_dit.__version__.startswith("1.0.")
    if fused == (knobs.scope == "chain"):
        return pipe
    if knobs.scope == "chain":
        raise ValueError("cache-dit 1.0.14 has no adapter that fuses FLUX's two block lists")
    model = pipe.transformer
    return BlockAdapter(
        pipe=pipe,
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        forward_pattern=[ForwardPattern.Pattern_1, ForwardPattern.Pattern_1],
    )


def run(studio: Studio, knobs: Knobs, branches: int) -> Trace:
    # cache-dit wraps ``__call__`` of the pipeline's class, so every run needs a class of its own.
    pipe = studio.pipeline(studio.transformer(), type("FluxPipeline", (FluxPipeline,), {}))
    calibrator = None
    if knobs.forecast == "taylorseer":
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=knobs.taylor_order)
    elif knobs.forecast != "reuse":
        raise ValueError(f"cache-dit has no forecast {knobs.forecast!r}")
    cache_dit.enable_cache(
        adapt(pipe, knobs),
        cache_config=DBCacheConfig(
            Fn_compute_blocks=knobs.fn,
            Bn_compute_blocks=knobs.bn,
            residual_diff_threshold=knobs.residual_diff_threshold,
            max_warmup_steps=knobs.warmup_steps,
            warmup_interval=knobs.warmup_interval,
            max_cached_steps=knobs.max_cached_steps,
            max_continuous_cached_steps=knobs.max_continuous_cached_steps,
            enable_separate_cfg=branches == 2,
        ),
        calibrator_config=calibrator,
    )
    trace = studio.draw(pipe, branches)
    contexts = list(pipe._context_manager._cached_context_manager.values())
    assert len(contexts) == (1 if knobs.scope == "chain" else 2)
    for region, context in enumerate(contexts):
        lists = [(context.cached_steps, context.residual_diffs), (context.cfg_cached_steps, context.cfg_residual_diffs)]
        for branch, (cached, diffs) in enumerate(lists[:branches]):
            trace.cached[branch, region] = list(cached)
            # -1 stands for a hit without looking (a threshold of 1), -2 for another shape
            trace.diffs[branch, region] = {int(step): float(diff) for step, diff in diffs.items() if diff >= 0}
    return trace


def foca_on_a_line() -> list[float] | None:
    """The forecasts of the reused steps where the value of step t is t; None before there was a FoCa."""
    try:
        from cache_dit.caching.cache_contexts.calibrators.foca import FoCaState
    except ImportError:
        return None
    state, forecasts = FoCaState(), []
    for step, action in enumerate(FOCA_SCHEDULE):
        state.mark_step_begin()
        if action == "c":
            state.update(torch.tensor(float(step), dtype=torch.float64))
        else:
            forecasts.append(state.approximate().item())
    return forecasts


def main(request: Path, answer: Path) -> None:
    torch.set_num_threads(1)
    studio = Studio()
    jobs: list[tuple[Knobs, int]] = torch.load(request, weights_only=False)
    traces = [run(studio, knobs, branches) for knobs, branches in track(jobs, f"cache-dit {cache_dit.__version__}")]
    torch.save({"version": cache_dit.__version__, "traces": traces, "foca": foca_on_a_line()}, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
