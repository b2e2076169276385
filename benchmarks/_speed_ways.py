"""The contestants of speed.py: each prepares one model and says afterwards which steps it has computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

CACHE_DIT = {"cache-dit 1.0.14": "1.0.14", "cache-dit 1.5.3": "1.5.3"}
FIRST_BLOCK_CACHE = "FirstBlockCache"
LOADED = "dit_compile.load"
REFERENCE = "torch.compile"
_BEYOND = 100.0  # a threshold above every difference


@dataclass
class Job:
    """What a contestant is told.

    Attributes:
        mask: a digit per step, "0" to reuse. The one thing that FirstBlockCache cannot be told; it has ``threshold``.
        warmup, in_a_row: the same mask, in terms of computed steps at first and reused steps in a row.
        folder: what one process keeps for the next one.
        warm: whether an earlier process has left something there.
    """

    mask: str
    warmup: int
    in_a_row: int
    folder: Path
    warm: bool = False
    threshold: float = 0.0


@dataclass
class Way:
    """A prepared model.

    Attributes:
        call: what the denoising loop calls.
        computed: of the last generation, whether each step was computed (not reused).
        generation: runs a denoising loop.
        keep: writes what the next process may load.
    """

    call: Callable[..., Any]
    computed: Callable[[], list[bool]]
    generation: Callable[[Callable[[], None]], None] = lambda loop: loop()
    keep: Callable[[], object] = lambda: None


Prepare = Callable[[nn.Module, Job], Way]


def step_context(model: nn.Module) -> AbstractContextManager[None]:
    """Round each call, as pipelines of diffusers do, where the model has caches."""
    return model.cache_context("cond") if hasattr(model, "cache_context") else nullcontext()  # type: ignore[operator]


def end_generation(model: nn.Module) -> None:
    """What modular pipelines of diffusers call at the end."""
    if hasattr(model, "_reset_stateful_cache"):
        model._reset_stateful_cache()  # type: ignore[operator]


def _compile_blocks(model: nn.Module) -> None:
    """diffusers' ``compile_repeated_blocks``; the same by hand for models that name no repeated blocks."""
    if getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks()  # type: ignore[operator]
        return
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                block.compile()


def _all(job: Job) -> Callable[[], list[bool]]:
    return lambda: [True] * len(job.mask)


def eager(model: nn.Module, job: Job) -> Way:
    return Way(model, _all(job))


def plain(mode: str | None = None) -> Prepare:
    """torch.compile of the whole model with Inductor."""
    return lambda model, job: Way(torch.compile(model, mode=mode), _all(job))


def regional(model: nn.Module, job: Job) -> Way:
    _compile_blocks(model)
    return Way(model, _all(job))


def cache_dit(model: nn.Module, job: Job) -> Way:
    """The version that is installed, with its blocks compiled one by one, as its documentation advises.

    Versions without ``steps_computation_mask`` get a threshold that always holds and the limits that make the mask.
    """
    import cache_dit
    from diffusers import DiffusionPipeline

    class Pipeline(DiffusionPipeline):
        """cache-dit wraps ``__call__`` of a pipeline's class, and a generation is one call."""

        def __init__(self, transformer: nn.Module) -> None:
            super().__init__()
            self.register_modules(transformer=transformer)

        def __call__(self, loop: Callable[[], None]) -> None:
            loop()

    family = type(model).__name__.partition("Transformer")[0]
    names = {"SD3": "StableDiffusion3Pipeline"}  # by which cache-dit knows the family; else FluxPipeline, WanPipeline
    Pipeline.__name__ = names.get(family, f"{family}Pipeline")
    pipe = Pipeline(model)
    settings: dict[str, Any] = {
        "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": _BEYOND,
        "max_warmup_steps": job.warmup, "max_continuous_cached_steps": job.in_a_row, "enable_separate_cfg": False,
    }  # fmt: skip
    if hasattr(cache_dit.DBCacheConfig(), "steps_computation_mask"):
        settings |= {"steps_computation_mask": [int(digit) for digit in job.mask], "max_continuous_cached_steps": -1}
        settings |= {"steps_computation_policy": "static", "num_inference_steps": len(job.mask)}
    _compile_blocks(model)
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**settings))
    cache_dit.set_compile_configs()

    def computed() -> list[bool]:
        contexts = pipe._context_manager._cached_context_manager.values()
        reused = set.intersection(*(set(context.cached_steps) for context in contexts))
        return [step not in reused for step in range(len(job.mask))]

    return Way(model, computed, pipe)


def first_block_cache(model: nn.Module, job: Job, compiled: bool = True) -> Way:
    """diffusers' cache of that name, with its blocks compiled one by one."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

    model.enable_cache(FirstBlockCacheConfig(threshold=job.threshold))  # type: ignore[operator]
    if compiled:
        _compile_blocks(model)
    (head,) = (
        registry.get_hook(_FBC_LEADER_BLOCK_HOOK)
        for registry in (getattr(module, "_diffusers_hook", None) for module in model.modules())
        if registry is not None and registry.get_hook(_FBC_LEADER_BLOCK_HOOK) is not None
    )
    steps: list[bool] = []

    def call(**inputs: Any) -> Any:
        result = model(**inputs)
        steps.append(head.state_manager.get_state().should_compute)
        return result

    def generation(loop: Callable[[], None]) -> None:
        head.threshold = job.threshold  # read outside compiled code: nothing is compiled again
        steps.clear()
        loop()

    return Way(call, steps.copy, generation)


def _settings(job: Job) -> dict[str, Any]:
    return {"policy": "mask", "step_mask": job.mask, "forecast": "reuse", "fn": 1, "bn": 0}


def _actions(model: nn.Module) -> list[bool]:
    import dit_compile

    return [step.action == "compute" for step in dit_compile.stats(model)[-1].steps]


def ours_by_backend(model: nn.Module, job: Job) -> Way:
    compiled = torch.compile(model, backend="dit_cache", options=_settings(job))
    return Way(compiled, lambda: _actions(model))


def ours(model: nn.Module, job: Job) -> Way:
    import dit_compile

    return Way(dit_compile.compile(model, **_settings(job)), lambda: _actions(model))


def ours_loaded(model: nn.Module, job: Job) -> Way:
    """The second process loads what the first one has saved."""
    import dit_compile

    path = job.folder / "compiled"
    dit_compile.compile(model, record=True, **_settings(job))
    if job.warm:
        dit_compile.load(model, path)
    return Way(model, lambda: _actions(model), keep=lambda: dit_compile.save(model, path))


WAYS: dict[str, Prepare] = {
    "eager": eager,
    REFERENCE: plain(),
    "torch.compile, reduce-overhead": plain("reduce-overhead"),
    "regional compile": regional,
    **dict.fromkeys(CACHE_DIT, cache_dit),
    FIRST_BLOCK_CACHE: first_block_cache,
    "dit_cache as backend": ours_by_backend,
    "dit_compile.compile": ours,
    LOADED: ours_loaded,
}
ONLY_ON_GPU = ("torch.compile, reduce-overhead",)  # on the CPU it is the same as without
