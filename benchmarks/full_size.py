"""A FLUX.1 of full size with random weights: plain Inductor, dit_cache and cache-dit, drawn in one process.

    python benchmarks/full_size.py [--out benchmarks/results/full_size.json] [--double 19 --single 38] [--no-peer]

Random weights say nothing about pictures, so nothing here is about quality: both caches are told to reuse the same
steps (thresholds that always hit, the same warm-up, at most two reused steps in a row), and what is compared is time
and memory for the same schedule. Quality is measured on the bundled model, by quality.py and the demo.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))  # overhead.py, beside this script

from overhead import environment

WARMUP, CONTINUOUS = 4, 2  # of both caches
FRONT = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}


@dataclass(frozen=True)
class Size:
    """What is drawn, and by how large a model. The defaults are FLUX.1-dev at 1024 x 1024."""

    double: int = 19
    single: int = 38
    heads: int = 24
    pixels: int = 1024
    text_tokens: int = 512
    steps: int = 28
    repeats: int = 3


def build(size: Size, device: str) -> Any:
    """The transformer with random bfloat16 weights, in a pipeline without encoders and VAE."""
    from diffusers import FluxTransformer2DModel

    from dit_compile.demo.pipeline import wrap_transformer

    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = FluxTransformer2DModel(
                patch_size=1, in_channels=64, num_layers=size.double, num_single_layers=size.single,
                attention_head_dim=128, num_attention_heads=size.heads, joint_attention_dim=4096,
                pooled_projection_dim=768, guidance_embeds=True,
            )  # fmt: skip
    finally:
        torch.set_default_dtype(dtype)
    return wrap_transformer(model.eval().requires_grad_(False))


def draw(pipe: Any, size: Size) -> torch.Tensor:
    """One generation; the same prompt tensors and noise at every call."""
    generator = torch.Generator().manual_seed(0)
    device = pipe.transformer.device

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    latents: torch.Tensor = pipe(
        prompt_embeds=noise(1, size.text_tokens, 4096),
        pooled_prompt_embeds=noise(1, 768),
        latents=noise(1, (size.pixels // 16) ** 2, 64),
        height=size.pixels,
        width=size.pixels,
        num_inference_steps=size.steps,
        guidance_scale=3.5,
        output_type="latent",
    ).images
    return latents


def time_generations(pipe: Any, size: Size) -> dict[str, Any]:
    """Seconds of the first generation, which compiles, and of ``size.repeats`` later ones; bytes at the peak."""
    wait: Callable[[], object] = torch.cuda.synchronize if pipe.transformer.device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(1 + size.repeats):
        if pipe.transformer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        latents = draw(pipe, size)
        wait()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if pipe.transformer.device.type == "cuda" else None
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1:],
        "median_seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "latents": latents.float().cpu(),
    }


@contextmanager
def compiled(pipe: Any, **kwargs: Any) -> Iterator[Any]:
    """The pipeline with its transformer compiled; afterwards as before, without what was compiled."""
    transformer = pipe.transformer
    pipe.transformer = torch.compile(transformer, fullgraph=True, **kwargs)
    try:
        yield pipe.transformer
    finally:
        pipe.transformer = transformer
        torch.compiler.reset()
        gc.collect()


def run_plain(pipe: Any, size: Size) -> dict[str, Any]:
    """torch.compile with Inductor, whole model: the baseline."""
    with compiled(pipe):
        return time_generations(pipe, size)


def run_ours(pipe: Any, size: Size) -> Iterator[tuple[str, dict[str, Any]]]:
    """dit_cache, compiled once: threshold 0 computes every step, 1 reuses whenever the limits allow it."""
    import dit_compile

    options = {"fn": 1, "bn": 0, "warmup_steps": WARMUP, "max_continuous_cached_steps": CONTINUOUS}
    options |= {"forecast": "taylorseer", "taylor_order": 1}
    with compiled(pipe, backend="dit_cache", options=options) as transformer:
        for name, threshold in (("dit_cache, every step computed", 0.0), ("dit_cache", 1.0)):
            with dit_compile.session(name, residual_diff_threshold=threshold):
                result = time_generations(pipe, size)
                last = dit_compile.stats(transformer)[-1]
            facts = {"reused": last.reused, "bytes_held": last.bytes_held, "host_reads": last.host_reads}
            yield name, result | facts


def run_peer(pipe: Any, size: Size, *, whole: bool) -> dict[str, Any]:
    """cache-dit, then torch.compile: of the blocks, which it recommends for precision, or of the ``whole`` model."""
    import cache_dit

    transformer = pipe.transformer
    cache_dit.enable_cache(
        pipe,
        cache_config=cache_dit.DBCacheConfig(
            **FRONT,
            residual_diff_threshold=100.0,
            max_warmup_steps=WARMUP,
            max_continuous_cached_steps=CONTINUOUS,
            max_cached_steps=-1,
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1),
    )
    cache_dit.set_compile_configs()
    try:
        if whole:
            pipe.transformer = torch.compile(transformer)
        else:
            transformer.compile_repeated_blocks()
        result = time_generations(pipe, size)
        contexts = list(pipe._context_manager._cached_context_manager.values())
        reused = [len(context.cached_steps) for context in contexts]
    finally:
        pipe.transformer = transformer
        cache_dit.disable_cache(pipe)
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            block._compiled_call_impl = None
        torch.compiler.reset()
        gc.collect()
    return result | {"reused": min(reused), "version": cache_dit.__version__}


def measure(
    size: Size,
    device: str,
    *,
    peer: bool = True,
    console: Console | None = None,
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """All variants in turn. One that raises is recorded with its error and does not stop the others; ``save`` gets what
    is known after each."""
    console = console or Console()
    pipe = build(size, device)
    parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    result: dict[str, Any] = {"size": asdict(size), "parameters": parameters, "variants": {}}
    wanted: torch.Tensor | None = None
    variants = [
        lambda: iter([("plain Inductor", run_plain(pipe, size))]),
        lambda: run_ours(pipe, size),
        lambda: iter([("cache-dit, blocks compiled", run_peer(pipe, size, whole=False))]),
        lambda: iter([("cache-dit, model compiled", run_peer(pipe, size, whole=True))]),
    ]
    for number, variant in enumerate(variants if peer else variants[:2]):
        try:
            for name, row in variant():
                latents = row.pop("latents")
                wanted = latents if wanted is None else wanted
                row["distance"] = float((latents - wanted).norm() / wanted.norm())
                result["variants"][name] = row
                console.print(f"{name}: {row['median_seconds']:.3f} s per picture")
                save(result)
        except Exception as error:  # the others are worth having
            result["variants"][f"variant {number}"] = {"error": f"{type(error).__name__}: {error}"}
            console.print(f"[red]{type(error).__name__}: {error}[/red]", highlight=False)
    return result


def table_of(result: dict[str, Any]) -> Table:
    """A row per variant: what a first run costs, what later ones take, against plain Inductor and at the same steps."""
    size, variants = result["size"], result["variants"]
    title = f"{result['parameters'] / 1e9:.1f} B parameters, {size['pixels']} x {size['pixels']}, {size['steps']} steps"
    table = Table("variant", "first run s", "s per picture", "speed", "reused", "peak GiB", "distance", title=title)
    plain = variants.get("plain Inductor", {}).get("median_seconds")
    for name, row in variants.items():
        if "error" in row:
            table.add_row(name, "failed")
            continue
        speed = f"{plain / row['median_seconds']:.2f}x" if plain else ""
        peak = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else ""
        times = (f"{row['first_seconds']:.1f}", f"{row['median_seconds']:.3f}", speed)
        table.add_row(name, *times, str(row.get("reused", "")), peak, f"{row['distance']:.4f}")
    return table


def main(
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    double: Annotated[int, typer.Option(min=2, help="double-stream blocks")] = Size.double,
    single: Annotated[int, typer.Option(min=2, help="single-stream blocks")] = Size.single,
    heads: Annotated[int, typer.Option(min=1, help="attention heads of 128 channels")] = Size.heads,
    pixels: Annotated[int, typer.Option(min=64, help="height and width, a multiple of 16")] = Size.pixels,
    steps: Annotated[int, typer.Option(min=6)] = Size.steps,
    repeats: Annotated[int, typer.Option(min=1)] = Size.repeats,
    peer: Annotated[bool, typer.Option(help="also run cache-dit")] = True,
) -> None:
    """Prints a table and writes the figures."""
    size = Size(double=double, single=single, heads=heads, pixels=pixels, steps=steps, repeats=repeats)

    def save(result: dict[str, Any]) -> None:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({**environment(), **result}, indent=2) + "\n")

    Console().print(table_of(measure(size, device, peer=peer, save=save)))


if __name__ == "__main__":
    typer.run(main)
