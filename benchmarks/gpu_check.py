"""Everything that needs a GPU, in one run, with one JSON at the end.

    python benchmarks/gpu_check.py [--out benchmarks/results/gpu_check.json] [--only bandwidth --only demo] [--sweep]

A section is a function that returns what goes into the JSON and whether it met its goal; SECTIONS lists them. A section
that raises is recorded with its traceback and does not stop the others. Exit code: 0 all goals met, 1 not, 2 no GPU.
"""

import functools
import importlib
import itertools
import json
import platform
import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # _cases.py, overhead.py, ...: scripts beside this one, not part of the package

import _plan_check  # noqa: E402
import _speed  # noqa: E402
import _stored  # noqa: E402
from _cases import DEVICE, LAYOUTS, SHAPES, ULP, check_case, check_huge, within_an_ulp  # noqa: E402
from _timing import device_seconds, host_seconds  # noqa: E402

from dit_compile.kernels.probe import probe, probe_reference  # noqa: E402
from dit_compile.kernels.store import store_residual  # noqa: E402
from dit_compile.kernels.weighted_sum import weighted_sum, weighted_sum_reference  # noqa: E402

GOAL = 0.9  # of a device copy's bandwidth
LIMIT = 480  # seconds that all sections should take

console = Console()
Section = Callable[[], tuple[Any, bool]]


def correctness() -> tuple[Any, bool]:
    """The kernels against the references on the device: dtypes, odd sizes, layouts, more than 2**31 elements."""
    results = [
        check_case(dtype, layout, shape)
        for dtype, layout, shape in itertools.product(ULP, LAYOUTS, ((1, 4608, 3072), (2, 333, 257), (3, 1, 1)))
    ]
    results.append(check_huge())
    table = Table(
        "case", "probe", "probe sums", "weighted_sum", "store_residual", title="kernels against the references"
    )
    for result in results:
        if not result["ok"] or "huge" in result["case"]:
            table.add_row(*(str(result[key]) for key in ("case", "probe", "sums", "weighted_sum", "store_residual")))
    table.add_section()
    table.add_row(f"{sum(result['ok'] for result in results)} of {len(results)} cases agree", "", "", "", "")
    console.print(table)
    return results, all(result["ok"] for result in results)


def bandwidth() -> tuple[Any, bool]:
    """Bytes moved per second by each kernel, over those of a device copy in the same process."""
    results: list[dict[str, Any]] = []
    table = Table("size", "kernel", "us", "GB/s", "of a copy", "host us", title=f"bandwidth, bf16, goal {GOAL}")
    for name, shape in SHAPES.items():
        base, first, second, third, out = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(5))
        candidates: list[tuple[str, int, Callable[[], object]]] = [
            ("copy", 2, functools.partial(out.copy_, base)),
            ("probe", 4, functools.partial(probe, base, first, second)),
            ("weighted_sum of 2", 4, functools.partial(weighted_sum, base, (first, second), (2.0, -1.0), out)),
            (
                "weighted_sum of 3",
                5,
                functools.partial(weighted_sum, base, (first, second, third), (3.0, -3.0, 1.0), out),
            ),
            ("store_residual", 3, functools.partial(store_residual, out, base, first)),
        ]
        copy_rate = 0.0
        for kernel, tensors, run in candidates:
            seconds = device_seconds(run)
            rate = tensors * base.numel() * base.element_size() / seconds
            copy_rate = copy_rate or rate
            host = host_seconds(run, runs=20)
            results.append(
                {
                    "size": name, "shape": shape, "kernel": kernel, "seconds": seconds, "host_seconds": host,
                    "bytes_per_second": rate, "ratio_to_copy": rate / copy_rate,
                }
            )  # fmt: skip
            figures = (f"{seconds * 1e6:.1f}", f"{rate / 1e9:.0f}", f"{rate / copy_rate:.3f}", f"{host * 1e6:.1f}")
            table.add_row(name, kernel, *figures)
    console.print(table)
    # store_residual is PyTorch's own kernel: shown, not judged.
    return results, all(result["ratio_to_copy"] >= GOAL for result in results if result["kernel"] != "store_residual")


def determinism() -> tuple[Any, bool]:
    """The probe's sums over 20 runs: bitwise equal."""
    value, entry, previous = (torch.randn(SHAPES["FLUX"], device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    runs = {tuple(probe(value, entry, previous)[1].tolist()) for _ in range(20)}
    console.print(f"probe: {len(runs)} different result(s) in 20 runs")
    return {"different_results": len(runs)}, len(runs) == 1


def recompilation() -> tuple[Any, bool]:
    """How many kernels 50 different weights compile: one."""
    from dit_compile.kernels.weighted_sum_triton import _weighted_sum_kernel

    base, snapshot = (torch.randn(4096, 256, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    weighted_sum(base, [snapshot], [0.5])
    before = sum(len(caches[0]) for caches in _weighted_sum_kernel.device_caches.values())
    for index in range(50):
        weighted_sum(base, [snapshot], [index / 7 - 3])
    after = sum(len(caches[0]) for caches in _weighted_sum_kernel.device_caches.values())
    console.print(f"weighted_sum: {after - before} kernel(s) compiled for 50 further weights")
    return {"compiled_for_new_weights": after - before}, after == before


def cuda_graph() -> tuple[Any, bool]:
    """Both kernels captured in a CUDA graph and replayed on new numbers."""
    value, entry, previous = (torch.randn(4, 300, 640, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    out = torch.empty_like(value)
    probe(value, entry, previous), weighted_sum(value, [entry], [0.5], out)  # compiles, outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        residual, sums = probe(value, entry, previous)
        weighted_sum(value, [entry], [0.5], out)
    value.normal_()
    graph.replay()
    expected, expected_sums = probe_reference(value, entry, previous)
    fine = torch.equal(residual, expected) and torch.allclose(sums, expected_sums, rtol=1e-5)
    fine = fine and within_an_ulp(out, weighted_sum_reference(value, [entry], [0.5]), [value, entry])
    console.print(f"replayed CUDA graph: {'agrees' if fine else 'DIFFERS'}")
    return {"agrees": fine}, fine


def full_size() -> tuple[Any, bool]:
    """FLUX.1-dev's size with random weights (full_size.py); fine when every variant ran and ours is first."""
    full = importlib.import_module("full_size")
    result = full.measure(full.Size(repeats=2), DEVICE, console=console)
    console.print(full.table_of(result))
    variants = result["variants"]
    complete = len(variants) == 5 and all("error" not in row for row in variants.values())
    return result, complete and variants["dit_cache"] is min(variants.values(), key=lambda row: row["median_seconds"])


def sweep() -> tuple[Any, bool]:
    """Tile sizes and warps of both kernels at FLUX size, to choose the constants in tile_triton.py; with --sweep."""
    from dit_compile.kernels import tile_triton

    base, first, second, out = (torch.randn(SHAPES["FLUX"], device=DEVICE, dtype=torch.bfloat16) for _ in range(4))
    chosen = (tile_triton.BLOCK, tile_triton.NUM_WARPS)
    results = []
    table = Table("BLOCK", "warps", "probe us", "weighted_sum us", title="sweep")
    try:
        for block, warps in itertools.product((1024, 2048, 4096, 8192), (4, 8, 16)):
            if block < warps * 32 * 8:  # less than one 16-byte access per thread
                continue
            tile_triton.BLOCK, tile_triton.NUM_WARPS = block, warps
            seconds = (
                device_seconds(functools.partial(probe, base, first, second)),
                device_seconds(functools.partial(weighted_sum, base, (first, second), (2.0, -1.0), out)),
            )
            results.append({"block": block, "warps": warps, "probe": seconds[0], "weighted_sum": seconds[1]})
            table.add_row(str(block), str(warps), *(f"{figure * 1e6:.1f}" for figure in seconds))
    finally:
        tile_triton.BLOCK, tile_triton.NUM_WARPS = chosen
    console.print(table)
    return results, True


SECTIONS: dict[str, Section] = {
    "correctness": correctness,
    "determinism": determinism,
    "recompilation": recompilation,
    "cuda_graph": cuda_graph,
    "bandwidth": bandwidth,
    "stored": _stored.correctness,
    "stored_bandwidth": _stored.bandwidth,
    "steps": _speed.steps,
    "demo": _speed.demo,
    "first_picture": _speed.first_picture,
    "plan": _plan_check.plan,
    "full_size": full_size,
}


def main(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = HERE / "results" / "gpu_check.json",
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run: {', '.join(SECTIONS)}.")] = None,
    with_sweep: Annotated[bool, typer.Option("--sweep", help="Also time other tile sizes.")] = False,
) -> None:
    """Runs the sections, prints tables, writes one JSON."""
    unknown = [name for name in only or () if name not in SECTIONS]
    if unknown:
        raise typer.BadParameter(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        reason = "is a CPU build" if torch.version.cuda is None and torch.version.hip is None else "finds no GPU"
        console.print(f"[red]gpu_check needs a CUDA or HIP device, but torch {torch.__version__} {reason}.[/red]")
        console.print(
            "Nothing was run or written. The tests under tests/kernels cover what can be checked without one."
        )
        raise typer.Exit(2)
    chosen = {name: section for name, section in SECTIONS.items() if not only or name in only}
    if with_sweep:
        chosen["sweep"] = sweep
    report: dict[str, Any] = {"environment": _environment(), "sections": {}}
    for name, section in chosen.items():
        console.rule(name)
        report["sections"][name] = _run(section)
        out.parent.mkdir(parents=True, exist_ok=True)  # written after every section: a crash keeps what was found
        out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    seconds = {name: section["seconds"] for name, section in report["sections"].items()}
    slowest = ", ".join(f"{name} {seconds[name]:.0f}" for name in sorted(seconds, key=seconds.__getitem__)[:-4:-1])
    console.print(f"{sum(seconds.values()):.0f} s in all, most of it in {slowest} (all sections: {LIMIT} s)")
    failed = [name for name, section in report["sections"].items() if not section["ok"]]
    console.rule()
    console.print(f"[red]not met: {', '.join(failed)}[/red]" if failed else "[green]every goal met[/green]", f"({out})")
    raise typer.Exit(1 if failed else 0)


def _run(section: Section) -> dict[str, Any]:
    begin = perf_counter()
    try:
        result, ok = section()
        torch.cuda.synchronize()
    except Exception as error:  # recorded: one broken section must not cost the others their GPU time
        console.print(f"[red]{type(error).__name__}: {error}[/red]", highlight=False)
        return {"ok": False, "seconds": perf_counter() - begin, "error": traceback.format_exc()}
    finally:
        torch.cuda.empty_cache()
    return {"ok": ok, "seconds": perf_counter() - begin, "result": result}


def _environment() -> dict[str, Any]:
    try:
        triton_version = importlib.import_module("triton").__version__
    except ImportError:
        triton_version = None
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
    }


if __name__ == "__main__":
    typer.run(main)
