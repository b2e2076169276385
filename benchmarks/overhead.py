"""What the cache itself costs: a computed step against plain Inductor, a cached step against front + tail alone.

Both ratios come from one process: the variants take turns, each repetition is one whole denoising run of each, and the
medians over all steps are compared. Before every call Dynamo checks its guards and collects the parameters, more of
them the larger the model, whatever the backend does; so each step is timed twice, as the caller sees it and inside the
callable that the backend returned.

    python benchmarks/overhead.py --size medium --out benchmarks/results/overhead_cpu_medium.json
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
from torch.fx import Graph, GraphModule, Node

GOALS = {"computed_vs_plain": 1.02, "cached_vs_front_and_tail": 1.10}


def build(size: str, device: str) -> nn.Module:
    """``bundled``: the emoji model of the demo. ``medium``: 12 blocks of width 768 with random weights."""
    if size == "bundled":
        from dit_compile.demo.pipeline import load_pipeline

        return load_pipeline(device).transformer
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model: nn.Module = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=4, num_single_layers=8, attention_head_dim=64, num_attention_heads=12,
        joint_attention_dim=256, pooled_projection_dim=256, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return model.eval().to(device)


def inputs_of(
    transformer: nn.Module, batch: int, device: str, dtype: torch.dtype, tokens: int = 64, text_tokens: int = 8
) -> dict[str, Any]:
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
        "encoder_hidden_states": draw(batch, text_tokens, config.joint_attention_dim),
        "pooled_projections": draw(batch, config.pooled_projection_dim),
        "img_ids": ids.reshape(-1, 3).to(device, dtype),
        "txt_ids": torch.zeros(text_tokens, 3, device=device, dtype=dtype),
        "return_dict": False,
    }


def front_and_tail(gm: GraphModule, example_inputs: Any, **_: Any) -> Callable[..., Any]:
    """A backend that compiles front and tail alone, as one graph: what a cached step cannot do without.

    The passes cut the graph; the tail then reads the stream where it enters the region. All that the front makes is
    returned, too, so that Inductor keeps what only a computed step needs (on a cached step we compute it as well).
    """
    from torch._inductor.compile_fx import compile_fx

    from dit_compile.passes.extract import duplicate, placeholder_like, with_dynamo_meta
    from dit_compile.passes.find_blocks import find_blocks
    from dit_compile.passes.insert_guard import insert_guard
    from dit_compile.passes.normalize import normalize
    from dit_compile.passes.plan_region import plan_region

    work = normalize(duplicate(gm))
    (region,) = (plan := plan_region(work, find_blocks(work), front=1, back=0, scope="chain")).regions
    top = insert_guard(work, plan)
    graph = Graph()
    named = {node.name: placeholder_like(graph, node) for node in work.graph.nodes if node.op == "placeholder"}
    kept: list[Node] = []
    results: Any = ()
    for segment in (top.front, top.tail):
        env: dict[Node, Node] = {}
        for node in segment.graph.nodes:
            if node.op == "placeholder":
                env[node] = named[node.name]
            elif node.op != "output":
                env[node] = named[node.name] = graph.node_copy(node, env.__getitem__)
            else:
                results = [env[value] for value in node.args[0]]
                kept += results
        named |= {exit.node.name: named[exit.base.name] for exit in region.exits if exit.base is not None}
    graph.output((*results, *kept))
    alone = with_dynamo_meta(GraphModule(work, graph), work)
    code = compile_fx(alone, [node.meta["example_value"] for node in graph.nodes if node.op == "placeholder"])
    return lambda *args: code(*args)[: len(results)]  # type: ignore[operator]


def measure(
    device: str = "cpu",
    transformer: nn.Module | None = None,
    *,
    batch: int = 1,
    steps: int = 20,
    repeats: int = 7,
    tokens: int = 64,
    pieces: str = "block",
    cuda_graphs: str = "auto",
) -> dict[str, Any]:
    """Seconds per step of the four variants and their ratios (medians); ``pieces`` and ``cuda_graphs`` are the settings
    of these names."""
    from torch._inductor.compile_fx import compile_fx

    import dit_compile
    from dit_compile.backend import dit_cache

    transformer = build("bundled", device) if transformer is None else transformer

    dtype = next(transformer.parameters()).dtype
    inputs = inputs_of(transformer, batch, device, dtype, tokens)
    plain = Timed(transformer, compile_fx, device)
    short = Timed(transformer, front_and_tail, device)
    cached = Timed(
        transformer, dit_cache, device, options={"warmup_steps": 0, "pieces": pieces, "cuda_graphs": cuda_graphs}
    )
    computing = {"residual_diff_threshold": 0.0}
    reusing = {"residual_diff_threshold": 0.999, "max_continuous_cached_steps": -1}
    runs: dict[str, Callable[[], Times]] = {
        "plain": lambda: _run(plain, inputs, steps),
        "computed": lambda: _run_session(cached, inputs, steps, computing),
        "front_and_tail": lambda: _run(short, inputs, steps),
        "cached": lambda: _run_session(cached, inputs, steps, reusing),
    }
    for run in runs.values():
        run()  # compiles
    settings = {"batch": batch, "tokens": tokens, "steps": steps, "repeats": repeats, "pieces": pieces}
    settings["cuda_graphs"] = cuda_graphs
    result: dict[str, Any] = settings | {"goals": GOALS}
    result |= _compare(runs, repeats)
    last = dit_compile.stats(transformer)[-1]
    reused, result["cuda_graphs_used"] = last.reused, last.cuda_graphs
    if reused < steps - 2:
        raise RuntimeError(f"only {reused} of {steps} steps were reused: the cached figures would mean nothing")
    return result


class Timed:
    """``model`` compiled with ``backend``, keeping the time of each call as a whole and inside the backend's code."""

    def __init__(self, model: nn.Module, backend: Callable[..., Any], device: str, **kwargs: Any) -> None:
        self.inside = self.whole = 0.0
        self._wait = torch.cuda.synchronize if device != "cpu" else lambda: None

        def timed_backend(gm: GraphModule, example_inputs: Any, **options: Any) -> Callable[..., Any]:
            code = backend(gm, example_inputs, **options)

            def run(*args: Any) -> Any:
                begin = time.perf_counter()
                result = code(*args)
                self._wait()
                self.inside = time.perf_counter() - begin
                return result

            return run

        self._model = torch.compile(model, backend=timed_backend, fullgraph=True, **kwargs)

    def __call__(self, **inputs: Any) -> None:
        self._wait()
        begin = time.perf_counter()
        self._model(**inputs)
        self._wait()
        self.whole = time.perf_counter() - begin


Times = list[tuple[float, float]]  # seconds of each step: as called, inside the backend's code


def _compare(runs: dict[str, Callable[[], Times]], repeats: int) -> dict[str, Any]:
    times: dict[str, Times] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name] += run()[2:]
    result: dict[str, Any] = {}
    for column, title in enumerate(("as_called", "inside")):
        seconds = {name: [step[column] for step in steps] for name, steps in times.items()}
        median = {name: statistics.median(values) for name, values in seconds.items()}
        result[title] = {
            "seconds_per_step": median,
            "quartiles": {name: statistics.quantiles(values, n=4) for name, values in seconds.items()},
            "computed_vs_plain": median["computed"] / median["plain"],
            "cached_vs_plain": median["cached"] / median["plain"],
            "cached_vs_front_and_tail": median["cached"] / median["front_and_tail"],
        }
    return result


def _run_session(model: Timed, inputs: dict[str, Any], steps: int, overrides: dict[str, Any]) -> Times:
    import dit_compile

    with dit_compile.session("overhead", **overrides):
        return _run(model, inputs, steps)


@torch.no_grad()
def _run(model: Timed, inputs: dict[str, Any], steps: int) -> Times:
    """One denoising run: slowly changing latents, a new object at each step, falling timesteps."""
    times = []
    latents = inputs["hidden_states"]
    for step in range(steps):
        time_left = torch.full((latents.shape[0],), 1 - step / steps, device=latents.device, dtype=latents.dtype)
        latents = latents * 0.999
        model(**{**inputs, "hidden_states": latents, "timestep": time_left})
        times.append((model.whole, model.inside))
    return times


def environment() -> dict[str, Any]:
    """What a figure is worthless without."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def print_table(result: dict[str, Any]) -> None:
    table = Table("variant", *(f"{column}, {where}" for where in ("as called", "inside") for column in ("ms", "ratio")))
    rows = {
        "plain Inductor": ("plain", None),
        "dit_cache, computed step": ("computed", "computed_vs_plain"),
        "front + tail alone": ("front_and_tail", None),
        "dit_cache, cached step": ("cached", "cached_vs_front_and_tail"),
    }
    for title, (name, ratio) in rows.items():
        cells = []
        for where in ("as_called", "inside"):
            cells.append(f"{1000 * result[where]['seconds_per_step'][name]:.3f}")
            cells.append(f"{result[where][ratio]:.3f} (goal {GOALS[ratio]:.2f})" if ratio else "1")
        table.add_row(title, *cells)
    Console().print(table)


def main(
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    size: Annotated[str, typer.Option(help="bundled or medium")] = "bundled",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    tokens: Annotated[int, typer.Option(min=16, help="image tokens, a square number")] = 64,
    steps: Annotated[int, typer.Option(min=6)] = 20,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: as they are")] = 1,
    pieces: Annotated[str, typer.Option(help="block, or segment: the skipped blocks as one piece of code")] = "block",
) -> None:
    """Prints and writes the two ratios."""
    if size not in ("bundled", "medium"):
        raise typer.BadParameter("choose bundled or medium", param_hint="--size")
    if threads:
        torch.set_num_threads(threads)
    if pieces not in ("block", "segment"):
        raise typer.BadParameter("choose block or segment", param_hint="--pieces")
    model = build(size, device)
    measured = measure(device, model, batch=batch, steps=steps, repeats=repeats, tokens=tokens, pieces=pieces)
    result = {**environment(), "model": size, **measured}
    print_table(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
