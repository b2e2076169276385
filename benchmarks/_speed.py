"""Sections of gpu_check.py: what is faster with the cache than without, with CUDA graphs and without them.

Each section measures ``cuda_graphs="auto"`` and ``"off"`` beside plain torch.compile; the goals count for "auto".
"""

import contextlib
import gc
import importlib
import itertools
import os
import time
from typing import Any
from unittest.mock import patch

import torch
from _cases import DEVICE
from rich.console import Console
from rich.table import Table

SETTINGS = ("auto", "off")  # of cuda_graphs
STEP_GOALS = {"computed_vs_plain": 1.02, "cached_vs_plain": 0.35}  # 12 blocks of width 768
DEMO_GOAL = 1.6  # times as fast as torch.compile
FIRST_PICTURE_GOAL = 12.0  # seconds, at FLUX's size, compilation included

console = Console()


def steps(device: str = DEVICE, sizes: Any = (("bundled", 64, torch.float32), ("medium", 4096, torch.bfloat16)),
          count: int = 14, repeats: int = 5) -> tuple[Any, bool]:  # fmt: skip
    """Computed and cached steps against plain Inductor (overhead.py); the goals count at the medium size."""
    overhead = importlib.import_module("overhead")
    results: dict[str, Any] = {}
    for (size, tokens, dtype), cuda_graphs in itertools.product(sizes, SETTINGS):
        torch.compiler.reset()  # three backends per round would run into its limit of recompilations
        model = overhead.build(size, device).to(dtype)
        name = f"{size}, cuda_graphs={cuda_graphs}"
        result = overhead.measure(
            device, model, tokens=tokens, steps=count, repeats=repeats, cuda_graphs=cuda_graphs
        )  # fmt: skip
        results[name] = result
        called = result["as_called"]
        console.print(
            f"{name}: computed {called['computed_vs_plain']:.3f}, cached {called['cached_vs_plain']:.3f} of a plain "
            f"step; CUDA graphs for {result['cuda_graphs_used'] or 'nothing'}"
        )
        overhead.print_table(result)
    judged = results.get("medium, cuda_graphs=auto")
    return results, judged is not None and all(
        judged["as_called"][name] <= goal for name, goal in STEP_GOALS.items()
    )  # fmt: skip


def demo(device: str = DEVICE, **given: Any) -> tuple[Any, bool]:
    """The bundled model, end to end; fine when the pictures stayed close and it was fast enough."""
    from dit_compile.demo.run import run_demo
    from dit_compile.demo.table import demo_table

    results, fine = {}, False
    for cuda_graphs in SETTINGS:
        torch.compiler.reset()
        with patch.dict(os.environ, {"DIT_CACHE_CUDA_GRAPHS": cuda_graphs}):
            result, _ = run_demo(device=device, **given)
        console.print(f"cuda_graphs={cuda_graphs}")
        console.print(demo_table(result))
        results[cuda_graphs] = result.as_data()
        close = result.reuse.reused > 0 and result.cached.median_psnr > 40
        fine = fine or (cuda_graphs == "auto" and close and result.speedup >= DEMO_GOAL)
    return results, fine


def first_picture(device: str = DEVICE, size: Any = None) -> tuple[Any, bool]:
    """FLUX.1-dev's size through dit_compile.compile: the first picture with nothing in Inductor's cache, then others,
    and peak memory."""
    full = importlib.import_module("full_size")
    size = full.Size(repeats=2) if size is None else size
    results: dict[str, Any] = {}
    table = Table("cuda_graphs", "first picture, s", "further, s", "peak GiB", "used for", title="full size")
    for cuda_graphs in SETTINGS:
        row = results[cuda_graphs] = _pictures(full, size, device, cuda_graphs)
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
        table.add_row(
            cuda_graphs, f"{row['first_seconds']:.2f}", f"{row['median_seconds']:.3f}", peak, row["cuda_graphs_used"]
        )
    console.print(table)
    return results, results["auto"]["first_seconds"] <= FIRST_PICTURE_GOAL


def _pictures(full: Any, size: Any, device: str, cuda_graphs: str) -> dict[str, Any]:
    import dit_compile
    from dit_compile.compat import fresh_inductor_cache

    torch.compiler.reset()
    pipe = full.build(size, device)
    settings = {"fn": 1, "bn": 0, "warmup_steps": full.WARMUP, "max_continuous_cached_steps": full.CONTINUOUS}
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_inductor_cache())
        dit_compile.compile(pipe.transformer, residual_diff_threshold=1.0, cuda_graphs=cuda_graphs, **settings)
        begin = time.perf_counter()
        row: dict[str, Any] = full.time_generations(pipe, size)
        row.pop("latents")
        row["seconds_in_all"] = time.perf_counter() - begin
        last = dit_compile.stats(pipe.transformer)[-1]
    row |= {"cuda_graphs_used": last.cuda_graphs, "reused": last.reused, "host_reads": last.host_reads}
    del pipe
    gc.collect()
    return row
