"""Runs cache-dit on transformers with a ControlNet, never reusing anything: what its way of patching does to them.

``python -m parity_support.controls_worker ANSWER``: ANSWER will be ``{class name: outputs of each step, or the text of
the exception}``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cache_dit
import torch
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern
from cache_dit.caching.block_adapters.block_adapters import FakeDiffusionPipeline
from control_inputs import WITH_NETS, NetLoop
from torch import Tensor

STEPS = 3


def run(cls: str) -> list[Tensor] | str:
    """One generation of ``STEPS`` steps at threshold 0, each block list by itself as in 1.0.14's registry."""
    loop = NetLoop(cls)
    model = loop.controlled.spec.build()
    lists = [getattr(model, name) for name in loop.controlled.spec.chain]
    # cache-dit wraps ``__call__`` of the pipeline's class, so every run needs a class of its own.
    pipe = type("Pipe", (FakeDiffusionPipeline,), {})()
    adapter = BlockAdapter(
        pipe=pipe, transformer=model, blocks=lists, forward_pattern=[ForwardPattern.Pattern_1] * len(lists)
    )
    settings = {"residual_diff_threshold": 0.0, "max_warmup_steps": STEPS, "num_inference_steps": STEPS}
    try:
        cache_dit.enable_cache(
            adapter, cache_config=DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, **settings)
        )
        return [model(**loop.call(index))[0] for index in range(STEPS)]
    except Exception as problem:
        return repr(problem)


@torch.no_grad()
def main(answer: Path) -> None:
    torch.set_num_threads(1)
    torch.save({cls: run(cls) for cls in WITH_NETS}, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
