"""What the cache itself costs: a computed step against plain Inductor, a cached step against front + tail alone.

Both ratios come from one process: the variants take turns, each repetition is one whole denoising run of each, and the
medians over all steps are compared. Results go to ``benchmarks/results/`` as JSON.

    python benchmarks/overhead.py --out benchmarks/results/overhead_cpu.json
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

GOALS = {"computed_vs_plain": 1.02, "cached_vs_front_and_tail": 1.10}


def inputs_of(transformer: nn.Module, batch: int, device: str, dtype: torch.dtype, tokens: int = 64) -> dict[str, Any]:
    """Random inputs of a FLUX transformer (any size) as the pipeline passes them."""
    config: Any = transformer.config
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    side = int(tokens**0.5)
    ids = torch.zeros(side, side, 3)
    ids[..., 1] += torch.arange(side)[:, None]
    ids[..., 2] += torch.arange(side)[None]
    return {
        "hidden_states": draw(batch, side * side, config.in_channels),
        "encoder_hidden_states": draw(batch, 8, config.joint_attention_dim),
        "pooled_projections": draw(batch, config.pooled_projection_dim),
        "img_ids": ids.reshape(-1, 3).to(device, dtype),
        "txt_ids": torch.zeros(8, 3, device=device, dtype=dtype),
        "return_dict": False,
    }


class FrontAndTail(nn.Module):
    """The same transformer with its region left out: what a cached step cannot do without."""

    def __init__(self, transformer: nn.Module, front: int) -> None:
        super().__init__()
        # a shallow copy of the model whose lists hold only the front blocks
        self.inner = type(transformer).from_config({**transformer.config, "num_layers": front, "num_single_layers": 0})  # type: ignore[attr-defined]
        own = {name: value for name, value in transformer.state_dict().items() if name in self.inner.state_dict()}
        self.inner.load_state_dict(own)
        self.inner.to(next(transformer.parameters()))
        self.inner.eval()

    def forward(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


def measure(
    device: str = "cpu",
    transformer: nn.Module | None = None,
    *,
    batch: int = 1,
    steps: int = 20,
    repeats: int = 7,
    tokens: int = 64,
) -> dict[str, Any]:
    """Seconds per step of the four variants and their two ratios (medians)."""
    if transformer is None:
        from dit_compile.demo.pipeline import load_pipeline

        transformer = load_pipeline(device).transformer
    import dit_compile

    dtype = next(transformer.parameters()).dtype
    inputs = inputs_of(transformer, batch, device, dtype, tokens)
    plain = torch.compile(transformer, fullgraph=True)
    short = torch.compile(FrontAndTail(transformer, 1).to(device), fullgraph=True)
    cached = torch.compile(transformer, backend="dit_cache", fullgraph=True, options={"warmup_steps": 0})
    computing = {"residual_diff_threshold": 0.0}
    reusing = {"residual_diff_threshold": 0.999, "max_continuous_cached_steps": -1}
    runs: dict[str, Callable[[], list[float]]] = {
        "plain": lambda: _run(plain, inputs, steps, device),
        "computed": lambda: _run_session(cached, inputs, steps, device, computing),
        "front_and_tail": lambda: _run(short, inputs, steps, device),
        "cached": lambda: _run_session(cached, inputs, steps, device, reusing),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            times = run()
            if repeat:  # the first round compiles
                seconds[name] += times[2:]
    reused = dit_compile.stats(transformer)[-1].reused
    if reused < steps - 2:
        raise RuntimeError(f"only {reused} of {steps} steps were reused: the cached figures would mean nothing")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds_per_step": median,
        "quartiles": {name: statistics.quantiles(times, n=4) for name, times in seconds.items()},
        "computed_vs_plain": median["computed"] / median["plain"],
        "cached_vs_front_and_tail": median["cached"] / median["front_and_tail"],
        "goals": GOALS,
        "batch": batch,
        "steps": steps,
        "repeats": repeats,
    }


def _run_session(model: Any, inputs: dict[str, Any], steps: int, device: str, overrides: dict[str, Any]) -> list[float]:
    import dit_compile

    with dit_compile.session("overhead", **overrides):
        return _run(model, inputs, steps, device)


@torch.no_grad()
def _run(model: Any, inputs: dict[str, Any], steps: int, device: str) -> list[float]:
    """Seconds of each step of one denoising run (latents of a new identity at each step, slowly changing)."""
    times = []
    latents = inputs["hidden_states"]
    for step in range(steps):
        time_left = torch.full((latents.shape[0],), 1 - step / steps, device=device, dtype=latents.dtype)
        latents = latents * 0.999
        if device != "cpu":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model(**{**inputs, "hidden_states": latents, "timestep": time_left})
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times


def environment() -> dict[str, Any]:
    """What a figure is worthless without."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads(), "command": " ".join(sys.argv)}


def main(
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=6)] = 20,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: as they are")] = 1,
) -> None:
    """Prints and writes the two ratios for the bundled model."""
    if threads:
        torch.set_num_threads(threads)
    result = {**environment(), **measure(device, batch=batch, steps=steps, repeats=repeats)}
    table = Table("variant", "ms per step (median)", "ratio", "goal")
    ms = {name: f"{1000 * value:.3f}" for name, value in result["seconds_per_step"].items()}
    table.add_row("plain Inductor", ms["plain"], "1", "")
    table.add_row("dit_cache, computed step", ms["computed"], f"{result['computed_vs_plain']:.3f}", "<= 1.02")
    table.add_row("front + tail alone", ms["front_and_tail"], "1", "")
    table.add_row("dit_cache, cached step", ms["cached"], f"{result['cached_vs_front_and_tail']:.3f}", "<= 1.10")
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
