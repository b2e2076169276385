"""Sections of gpu_check.py: snapshots stored as bfloat16 or scaled float8 (``snapshot_dtype``)."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from _cases import DEVICE, LAYOUTS, SHAPES, ULP, within_an_ulp
from _timing import device_seconds, host_seconds
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dit_compile.kernels.storage import FLOAT8, triton_stores
from dit_compile.kernels.store import store_residual, store_scaled, store_scaled_reference
from dit_compile.kernels.weighted_sum import weighted_sum, weighted_sum_reference

GOAL = 0.9  # of a device copy's bandwidth, for reading float8
console = Console()


def correctness() -> tuple[Any, bool]:
    """Storing and reading against the references: dtypes, layouts, odd sizes, poison; no read by the host, no variant
    per scale, replayed in a CUDA graph."""
    shapes = ((1, 4608, 3072), (2, 333, 257), (3, 1, 1))
    results = [_case(*drawn) for drawn in itertools.product(ULP, LAYOUTS, shapes)]
    results += [_poison(), _graph(), _variants()]
    table = Table("case", "failed", title="stored dtypes against the references")
    for result in results:
        failed = [name for name, fine in result.items() if fine is False and name != "ok"]
        if failed:
            table.add_row(result["case"], ", ".join(failed))
    table.add_section()
    native = triton_stores(FLOAT8, torch.device(DEVICE, torch.cuda.current_device()))
    table.add_row(f"{sum(result['ok'] for result in results)} of {len(results)} cases agree", f"Triton: {native}")
    console.print(table)
    return {"triton": native, "cases": results}, all(result["ok"] for result in results)


def bandwidth() -> tuple[Any, bool]:
    """Bytes moved per second, over those of a device copy in the same process, and the time that fewer bytes save."""
    results: list[dict[str, Any]] = []
    table = Table("size", "kernel", "us", "GB/s", "of a copy", "host us", title=f"stored as float8, goal {GOAL}")
    for name, shape in SHAPES.items():
        base, first, second, out = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(4))
        wide = torch.empty(shape, device=DEVICE)
        slots = [torch.empty(shape, device=DEVICE, dtype=FLOAT8) for _ in range(2)]
        scales = [torch.empty((), device=DEVICE) for _ in range(2)]
        for slot, scale, value in zip(slots, scales, (first, second), strict=True):
            store_scaled(slot, scale, value, base)
        weights, read = (2.0, -1.0), weighted_sum
        candidates: list[tuple[str, int, Callable[[], object]]] = [  # name, bytes per element
            ("copy", 4, functools.partial(out.copy_, base)),
            ("weighted_sum of 2 bf16", 8, functools.partial(read, base, (first, second), weights, out)),
            ("weighted_sum of 2 float8", 6, functools.partial(read, base, slots, weights, out, scales)),
            ("weighted_sum of 2 bf16 to fp32", 12, functools.partial(read, wide, (first, second), weights, wide)),
            ("store_residual", 6, functools.partial(store_residual, out, first, base)),
            ("store_scaled", 9, functools.partial(store_scaled, slots[0], scales[0], first, base)),
        ]
        copy_rate = 0.0
        for kernel, size, run in candidates:
            seconds, host = device_seconds(run), host_seconds(run, runs=20)
            rate = size * base.numel() / seconds
            copy_rate = copy_rate or rate
            results.append(
                {
                    "size": name, "shape": shape, "kernel": kernel, "seconds": seconds, "host_seconds": host,
                    "bytes_per_second": rate, "ratio_to_copy": rate / copy_rate,
                }
            )  # fmt: skip
            figures = (f"{seconds * 1e6:.1f}", f"{rate / 1e9:.0f}", f"{rate / copy_rate:.3f}", f"{host * 1e6:.1f}")
            table.add_row(name, kernel, *figures)
    console.print(table)
    # Storing happens at computed steps only, beside the blocks themselves: shown, not judged.
    judged = [result for result in results if "weighted_sum" in result["kernel"]]
    return results, all(result["ratio_to_copy"] >= GOAL for result in judged)


def _verdict(case: str, verdict: dict[str, Any]) -> dict[str, Any]:
    return {"case": case, **verdict, "ok": all(fine is not False for fine in verdict.values())}


def _case(dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> dict[str, Any]:
    makers = LAYOUTS[layout]
    value, base, like = (makers[index % len(makers)](shape, dtype) for index in range(3))
    slot, expected = (torch.empty_like(like, dtype=FLOAT8) for _ in range(2))
    scale, expected_scale = (torch.zeros((), device=DEVICE) for _ in range(2))
    out = torch.empty_like(like)
    halves = [torch.empty_like(like, dtype=torch.bfloat16) for _ in range(2)] if dtype == torch.float32 else [value]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # the host may launch, but not wait
    try:
        store_scaled(slot, scale, value, base)
        weighted_sum(base, [slot, slot], (2.0, -0.5), out, [scale, scale])
        for half in halves[: 2 * (dtype == torch.float32)]:
            store_residual(half, value, base)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    store_scaled_reference(expected, expected_scale, value, base)
    steps = (slot.float() - expected.float()).abs() / torch.exp2(torch.floor(torch.log2(expected.float().abs()))).clamp(
        min=2.0**-6
    )
    read = weighted_sum_reference(base, [slot, slot], (2.0, -0.5), None, [scale, scale])
    term = slot.float() * scale
    verdict: dict[str, Any] = {
        "scale": torch.allclose(scale, expected_scale, rtol=1e-6, atol=0),
        # a quotient that is off by its last bit may fall on the other side of a tie: one step of e4m3
        "store_scaled": bool((steps <= 2**-3).all()) and float((steps == 0).float().mean()) > 0.99,
        "weighted_sum": within_an_ulp(out, read, [base, 2 * term, 0.5 * term]),
    }
    if dtype == torch.float32:
        verdict["bfloat16"] = _bfloat16(value, base, halves)
    return _verdict(f"{dtype} {layout} {shape}", verdict)


def _bfloat16(value: Tensor, base: Tensor, halves: list[Tensor]) -> bool:
    out, expected = weighted_sum(base, halves, (2.0, -1.0)), weighted_sum_reference(base, halves, (2.0, -1.0))
    rounded = torch.equal(halves[0], (value - base).bfloat16())
    return rounded and within_an_ulp(out, expected, [base, 2 * halves[0], halves[1]])


def _poison() -> dict[str, Any]:
    verdict = {}
    for poison in (float("nan"), float("inf")):
        value = torch.randn(300, 300, device=DEVICE)
        value[3, 7] = poison
        slot, scale = torch.empty_like(value, dtype=FLOAT8), torch.zeros((), device=DEVICE)
        store_scaled(slot, scale, value, None)
        out = weighted_sum(value.new_zeros(value.shape), [slot], [1.0], None, [scale])
        verdict[str(poison)] = not bool(out[3, 7].isfinite())
    zeros, slot = torch.zeros(300, 300, device=DEVICE), torch.empty(300, 300, device=DEVICE, dtype=FLOAT8)
    store_scaled(slot, scale, zeros, None)
    verdict["zeros"] = bool((slot.float() == 0).all() and scale > 0)
    return _verdict("what is not finite", verdict)


def _graph() -> dict[str, Any]:
    value, base = (torch.randn(4, 300, 640, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    slot, scale = torch.empty_like(value, dtype=FLOAT8), torch.zeros((), device=DEVICE)
    out = torch.empty_like(value)

    def run() -> None:
        store_scaled(slot, scale, value, base)
        weighted_sum(base, [slot], [1.0], out, [scale])

    run()  # compiles, outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    value.mul_(7)
    graph.replay()
    replayed = out.clone()
    run()
    near = (out.float() - value.float()).abs() <= value.float().abs() / 8 + base.float().abs() / 8 + 0.1
    return _verdict("CUDA graph", {"replayed": torch.equal(replayed, out), "near": bool(near.all())})


def _variants() -> dict[str, Any]:
    """Kernels that are compiled for new values, weights and scales: none."""
    if not triton_stores(FLOAT8, torch.device(DEVICE, torch.cuda.current_device())):
        return _verdict("variants", {"reference": "runs"})
    from dit_compile.kernels.store_triton import _largest_kernel, _store_scaled_kernel
    from dit_compile.kernels.weighted_sum_triton import _weighted_sum_kernel

    kernels = (_largest_kernel, _store_scaled_kernel, _weighted_sum_kernel)
    counts = []
    for index in range(20):
        base = torch.randn(4096, 256, device=DEVICE, dtype=torch.bfloat16)
        slot, scale = torch.empty_like(base, dtype=FLOAT8), torch.zeros((), device=DEVICE)
        store_scaled(slot, scale, base * 10.0 ** (index - 10), base)
        weighted_sum(base, [slot], [index / 7 - 1], None, [scale])
        counts.append(sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values()))
    return _verdict("variants", {"compiled for new numbers": counts[0] == counts[-1]})
