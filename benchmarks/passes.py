"""How long the passes take on a graph of full depth: FLUX's 19 + 38 blocks, at a small width (time goes by nodes).

Once with one region for the whole chain, once with a region per block (``scope=block``), which has 56 guards to insert.

    python benchmarks/passes.py --out benchmarks/results/passes_cpu.json
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import FluxTransformer2DModel
from rich.console import Console
from rich.table import Table

import dit_compile
from dit_compile.debug.report import GraphReport

SCOPES = ("chain", "block")
GOALS = {"find_blocks": 1.0, "all": 3.0}  # seconds on one core


def model_and_inputs(double: int, single: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A FLUX transformer of width 32 and the inputs of one call."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=double, num_single_layers=single, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    shapes = {"hidden_states": (1, 16, 4), "encoder_hidden_states": (1, 8, 32), "pooled_projections": (1, 32)}
    inputs: dict[str, Any] = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs |= {"timestep": torch.ones(1), "img_ids": torch.randn(16, 3), "txt_ids": torch.randn(8, 3)}
    return model.eval().requires_grad_(False), {**inputs, "return_dict": False}


def main(
    double: Annotated[int, typer.Option(help="two-stream blocks")] = 19,
    single: Annotated[int, typer.Option(help="single-stream blocks")] = 38,
    repeats: Annotated[int, typer.Option(min=1, help="compilations, of which the median is taken")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Compiles the graph several times with the eager inner compiler and prints the processor seconds of each pass."""
    torch.set_num_threads(1)
    compile_often(*model_and_inputs(2, 2), "chain", 1)  # what torch imports and builds once per process is not counted
    model, inputs = model_and_inputs(double, single)
    seconds: dict[str, dict[str, float]] = {}
    for scope in SCOPES:
        reports, whole = compile_often(model, inputs, scope, repeats)
        medians = {name: statistics.median(report.seconds[name] for report in reports) for name in reports[0].seconds}
        medians["all"] = statistics.median(sum(report.seconds.values()) for report in reports)
        seconds[scope] = medians | {"Dynamo and all passes": statistics.median(whole)}

    graph = {"blocks": len(reports[0].blocks), "nodes": reports[0].nodes}
    table = Table(
        "pass",
        *(f"scope={scope} (s)" for scope in SCOPES),
        "goal",
        title="{blocks} blocks, {nodes} nodes".format(**graph),
    )
    for name in seconds[SCOPES[0]]:
        table.add_row(
            name, *(f"{seconds[scope][name]:.3f}" for scope in SCOPES), f"{GOALS[name]:g}" if name in GOALS else ""
        )
    Console().print(table)
    if out is not None:
        facts = {"torch": torch.__version__, "device": platform.machine(), "command": " ".join(sys.argv)}
        out.write_text(json.dumps({**facts, **graph, "repeats": repeats, "seconds": seconds}, indent=1) + "\n")


def compile_often(
    model: torch.nn.Module, inputs: dict[str, Any], scope: str, repeats: int
) -> tuple[list[GraphReport], list[float]]:
    """What the backend reports of ``repeats`` compilations, and the CPU seconds of each first call."""
    whole = []
    for _ in range(repeats):
        torch._dynamo.reset_code_caches()
        options = {"inner": "eager", "scope": scope}
        start = time.process_time()
        with torch.no_grad():
            torch.compile(model, backend="dit_cache", fullgraph=True, options=options)(**inputs)
        whole.append(time.process_time() - start)
    return dit_compile.graphs()[-repeats:], whole


if __name__ == "__main__":
    typer.run(main)
