"""Draws the same pictures with plain ``torch.compile`` and with ``dit_compile.compile``, and measures both."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import dit_compile
from dit_compile.compat import counters, fresh_inductor_cache
from dit_compile.config import environment_layer, parse_layer, resolve
from dit_compile.demo import codec
from dit_compile.demo.pipeline import FluxPipeline, generate, load_pipeline, require_demo_dependencies
from dit_compile.demo.result import Compile, DemoResult, Drawing, Pictures, Reuse, Settings, psnr
from dit_compile.progress import Bars, bars_on
from dit_compile.runtime.stats import GenerationStats, share_run

if TYPE_CHECKING:
    from rich.console import Console


ROUNDS = 5  # how often the batch of pictures is drawn and timed
DEFAULT_PROMPTS = ("fox", "panda on pink", "alarm clock on green", "earth on black", "hamburger")


@dataclass
class _Artist:
    """One pipeline whose transformer is compiled; draws all prompts as one batch and keeps pictures and times."""

    pipe: FluxPipeline
    guidance: float
    pictures: list[Pictures] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def draw(self, prompts: Sequence[str], seed: int, steps: int) -> None:
        """One timed batch; the clock stops when its tokens are on the host. Pictures of a first batch are kept."""
        start = time.perf_counter()
        tokens = generate(self.pipe, prompts, [seed] * len(prompts), steps, self.guidance).cpu()
        self.seconds.append((time.perf_counter() - start) / len(prompts))
        if not self.pictures:
            self.pictures.append(codec.decode_float(tokens))

    def compile(self, prompts: Sequence[str], steps: int) -> Compile:
        """Draw one batch, so that nothing later happens for the first time; time its first step, which compiles."""
        inductor = counters()["inductor"]
        hits = inductor["fxgraph_cache_hit"]
        ends: list[float] = []
        start = time.perf_counter()
        seeds = [0] * len(prompts)
        generate(self.pipe, prompts, seeds, steps, self.guidance, on_step=lambda _: ends.append(time.perf_counter()))
        return Compile(ends[0] - start, from_disk=inductor["fxgraph_cache_hit"] > hits)

    def finish(self, steps: int, reference: Drawing | None = None) -> Drawing:
        """What was drawn since the last call, compared with ``reference``."""
        pictures, seconds = np.concatenate(self.pictures), tuple(self.seconds)
        self.pictures, self.seconds = [], []
        return Drawing(steps, seconds, pictures, () if reference is None else psnr(reference.pictures, pictures))


def run_demo(
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    *,
    steps: int = 28,
    preset: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    guidance: float = 2.0,
    inner: str | None = None,
    cold: bool = False,
    console: Console | None = None,
) -> tuple[DemoResult, torch.nn.Module]:
    """Run the demo; returns what it measured and the cached transformer, for ``dit_compile.summary``.

    ``preset`` and ``inner`` become settings of the compile call; None leaves them to ``DIT_CACHE_PRESET`` and
    ``DIT_CACHE_INNER``. The uncached transformer is compiled by ``inner`` too. ``cold`` gives Inductor an empty disk
    cache, so that the compile times are those of a first run. A ``console`` shows progress bars.
    """
    given = {"preset": preset, "inner": inner}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = resolve(environment_layer(), parse_layer(options, where="option"))
    require_demo_dependencies()
    with contextlib.ExitStack() as stack:
        if cold:
            stack.enter_context(fresh_inductor_cache())
        bars = stack.enter_context(bars_on(console))
        plain = _Artist(load_pipeline(device), guidance)
        cached = _Artist(load_pipeline(device), guidance)

        # All that differs between the two is how they are compiled.
        plain.pipe.transformer = torch.compile(plain.pipe.transformer, backend=config.inner)
        dit_compile.compile(cached.pipe, **options)

        with bars.phase("compile, plain"):
            compile_plain = plain.compile(prompts, steps)
        with bars.phase("compile, dit_cache"):
            compile_cached = cached.compile(prompts, steps)
        reuse = _draw_both(plain, cached, prompts, seed, steps, bars)
        uncached = plain.finish(steps)
        with_cache = cached.finish(steps, uncached)

        time_share = with_cache.median_seconds / uncached.median_seconds
        same_time, same_cost = (min(steps, max(1, round(n))) for n in (steps * time_share, reuse.cost))
        fewer = {}
        for count in dict.fromkeys((same_time, same_cost)):
            with bars.phase(f"draw, {count} steps", ROUNDS) as advance:
                for _ in range(ROUNDS):
                    plain.draw(prompts, seed, count)
                    advance()
            fewer[count] = plain.finish(count, uncached)

    settings = Settings(
        prompts=tuple(prompts),
        seed=seed,
        steps=steps,
        guidance=guidance,
        inner=config.inner,
        preset=config.preset,
        config=config.describe(),
        device=_device_name(device),
        torch=torch.__version__,
        diffusers=importlib.metadata.version("diffusers"),
    )
    result = DemoResult(
        settings=settings,
        compile_plain=compile_plain,
        compile_cached=compile_cached,
        uncached=uncached,
        cached=with_cache,
        reuse=reuse,
        same_time=fewer[same_time],
        same_cost=fewer[same_cost],
    )
    return result, cached.pipe.transformer


def _draw_both(plain: _Artist, cached: _Artist, prompts: Sequence[str], seed: int, steps: int, bars: Bars) -> Reuse:
    """All prompts as one batch, without and with the cache in turn, so that a busy machine slows both alike."""
    with (
        bars.phase("draw, every step computed", ROUNDS) as plain_drawn,
        bars.phase("draw, cached", ROUNDS) as cached_drawn,
    ):
        for _ in range(ROUNDS):
            plain.draw(prompts, seed, steps)
            plain_drawn()
            cached.draw(prompts, seed, steps)
            cached_drawn()
    last = dit_compile.stats(cached.pipe.transformer)[-1:]  # empty where the cache is off
    if not last:
        return Reuse(0.0, float(steps), 0, 0)
    graph = next(report for report in reversed(dit_compile.graphs()) if report.regions)
    skipped = [region.skipped for region in graph.regions]
    return Reuse(*count_reuse(last[0], skipped, len(graph.blocks)), last[0].bytes_held, last[0].host_reads)


def count_reuse(generation: GenerationStats, skipped: Sequence[int], blocks: int) -> tuple[float, float]:
    """Steps reused and cost in full steps, both averaged over guidance branches, regions and rows that decide alone.

    Cost counts the blocks that ran. ``skipped`` is the number of blocks that a reused step of each region does not run,
    ``blocks`` that of the whole chain.
    """
    records = generation.steps
    reused = [record.region for record in records if record.action == "reuse"]
    deciders = len({(record.branch, record.region, record.rows) for record in records})
    return len(reused) / deciders, len(records) / deciders * share_run(records, skipped, blocks)


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads != 1)}"
