"""The kernels compiled for GPUs that are not here: 16-byte accesses, no spills, and how many registers they take."""

import importlib.util
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: nothing to compile", allow_module_level=True)

import triton
from tiers import slow_unless
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dit_compile.kernels import tile_triton
from dit_compile.kernels.probe_triton import _probe_kernel
from dit_compile.kernels.storage import LARGEST, SMALLEST_SCALE
from dit_compile.kernels.store_triton import (
    MOST_PROGRAMS,
    _largest_kernel,
    _store_flagged_kernel,
    _store_scaled_kernel,
)
from dit_compile.kernels.weighted_sum_triton import _weighted_sum_kernel

CUDA = {name: GPUTarget("cuda", arch, 32) for name, arch in (("sm_80", 80), ("sm_90", 90), ("sm_100", 100))}
HIP = GPUTarget("hip", "gfx942", 64)
ALIGNED = [["tt.divisibility", 16]]


@dataclass
class Source:
    """A kernel's argument types as the launcher passes them, and how many loads it makes."""

    signature: dict[str, Any]
    constants: dict[str, Any]
    loads: int
    kernel: Any


def rows(count: int, wide: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Types of (sizes, strides) for `count` row dimensions."""
    return ("i32",) * count, ("i64" if wide else "i32",) * count


def probe_source(dtype: str, row_dims: int = 0, wide: bool = False, entry: bool = True) -> Source:
    sizes, strides = rows(row_dims, wide)
    size = "i64" if wide else "i32"
    signature: dict[str, Any] = {
        "RESIDUAL_ptr": f"*{dtype}",
        "VALUE_ptr": f"*{dtype}",
        "ENTRY_ptr": f"*{dtype}" if entry else "constexpr",
        "PREVIOUS_ptr": f"*{dtype}",
        "PARTIALS_ptr": "*fp32",
        "inner": size,
        "tiles_per_row": "i32",
        "tiles": "i32",
        "sizes": sizes,
        "residual_strides": strides,
        "value_strides": strides,
        "entry_strides": strides if entry else (),
        "previous_strides": strides,
        "BLOCK": "constexpr",
    }
    constants = {"BLOCK": tile_triton.BLOCK} | ({} if entry else {"ENTRY_ptr": None})
    return Source(signature, constants, 2 + entry, _probe_kernel)


def weighted_sum_source(
    dtype: str, snapshots: int, row_dims: int = 0, wide: bool = False, base: bool = True, stored: str = ""
) -> Source:
    sizes, strides = rows(row_dims, wide)
    signature: dict[str, Any] = {
        "OUT_ptr": f"*{dtype}",
        "BASE_ptr": f"*{dtype}" if base else "constexpr",
        "SNAPSHOT_ptrs": (f"*{stored or dtype}",) * snapshots,
        "weights": ("fp32",) * snapshots,
        "SCALE_ptrs": ("*fp32",) * snapshots if stored == "fp8e4nv" else (),
        "inner": "i64" if wide else "i32",
        "tiles_per_row": "i32",
        "sizes": sizes,
        "out_strides": strides,
        "base_strides": strides if base else (),
        "snapshot_strides": (strides,) * snapshots,
        "BLOCK": "constexpr",
    }
    constants = {"BLOCK": tile_triton.BLOCK} | ({} if base else {"BASE_ptr": None})
    return Source(signature, constants, snapshots + base, _weighted_sum_kernel)


def store_source(kernel: Any, dtype: str) -> Source:
    """Either pass of store_scaled, with a base, for one dense row."""
    largest = kernel is _largest_kernel
    signature: dict[str, Any] = {
        **({} if largest else {"SLOT_ptr": "*fp8e4nv", "SCALE_ptr": "*fp32"}),
        "PARTIALS_ptr": "*fp32",
        "VALUE_ptr": f"*{dtype}",
        "BASE_ptr": f"*{dtype}",
        "inner": "i32",
        "tiles_per_row": "i32",
        "tiles": "i32",
        **({} if largest else {"partials": "i32"}),
        "sizes": (),
        **({} if largest else {"slot_strides": ()}),
        "value_strides": (),
        "base_strides": (),
        **({} if largest else dict.fromkeys(("LARGEST", "SMALLEST_SCALE", "PARTIALS"), "constexpr")),
        "BLOCK": "constexpr",
    }
    constants: dict[str, Any] = {"BLOCK": tile_triton.BLOCK}
    if not largest:
        constants |= {"LARGEST": LARGEST, "SMALLEST_SCALE": SMALLEST_SCALE, "PARTIALS": MOST_PROGRAMS}
    return Source(signature, constants, 2, kernel)


def store_flagged_source(dtype: str, stored: str, row_dims: int = 0) -> Source:
    sizes, strides = rows(row_dims, wide=False)
    signature: dict[str, Any] = {
        "SLOT_ptr": f"*{stored}",
        "FLAG_ptr": "*fp32",
        "VALUE_ptr": f"*{dtype}",
        "BASE_ptr": f"*{dtype}",
        "inner": "i32",
        "tiles_per_row": "i32",
        "sizes": sizes,
        "slot_strides": strides,
        "value_strides": strides,
        "base_strides": strides,
        "BLOCK": "constexpr",
    }
    return Source(signature, {"BLOCK": tile_triton.BLOCK}, 2, _store_flagged_kernel)


def compile_source(source: Source, target: GPUTarget) -> Any:
    attributes: dict[tuple[int, ...], Any] = {}

    def align(path: tuple[int, ...], kind: Any, name: str) -> None:
        if isinstance(kind, tuple):
            for index, inner in enumerate(kind):
                align((*path, index), inner, name)
        elif kind.startswith("*") or name == "inner" or name.endswith("_strides"):
            attributes[path] = ALIGNED

    for position, (name, kind) in enumerate(source.signature.items()):
        align((position,), kind, name)
    made = ASTSource(fn=source.kernel, signature=source.signature, constexprs=source.constants, attrs=attributes)
    return triton.compile(made, target=target, options={"num_warps": tile_triton.NUM_WARPS})


SOURCES: dict[str, Callable[[], Source]] = {
    "probe-bf16": lambda: probe_source("bf16"),
    "probe-bf16-no_entry": lambda: probe_source("bf16", entry=False),
    "probe-fp16-rows": lambda: probe_source("fp16", row_dims=1),
    "probe-fp32-wide-rows": lambda: probe_source("fp32", row_dims=2, wide=True),
    "weighted_sum-bf16-2": lambda: weighted_sum_source("bf16", 2),
    "weighted_sum-bf16-3-no_base": lambda: weighted_sum_source("bf16", 3, base=False),
    "weighted_sum-fp16-2-rows": lambda: weighted_sum_source("fp16", 2, row_dims=1),
    "weighted_sum-fp32-6-wide-rows": lambda: weighted_sum_source("fp32", 6, row_dims=3, wide=True),
    "store_flagged-bf16": lambda: store_flagged_source("bf16", "bf16"),
    "store_flagged-fp32-rows": lambda: store_flagged_source("fp32", "fp32", row_dims=1),
}
ELSEWHERE = ("probe-bf16", "weighted_sum-bf16-2", "weighted_sum-fp32-6-wide-rows", "store_flagged-bf16")
ALONE = {"probe": 2, "store_flagged": 1}  # accesses of one number: the two partial sums, the flag


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "sm_90") for name in SOURCES]
    + [pytest.param(name, target, marks=pytest.mark.slow) for name in ELSEWHERE for target in ("sm_80", "sm_100")],
)
def test_cuda(name: str, target: str, tmp_path: Path) -> None:
    source = SOURCES[name]()
    compiled = compile_source(source, CUDA[target])
    ptx = compiled.asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global\S*", ptx)
    vectors = [access for access in accesses if re.search(r"\.v(4\.[bf]32|2\.[bf]64|8\.[bf]32)", access)]
    per_operand = tile_triton.BLOCK // (32 * tile_triton.NUM_WARPS) * (4 if "fp32" in name else 2) // 16
    if target == "sm_100" and len(vectors) != (source.loads + 1) * per_operand:
        per_operand //= 2  # Blackwell has 32-byte accesses
    assert len(vectors) == (source.loads + 1) * per_operand, accesses
    assert len(accesses) - len(vectors) == ALONE.get(name.partition("-")[0], 0), accesses

    registers, stack = resource_usage(compiled, tmp_path)
    print(f"{name} {target}: {registers} registers, {stack} bytes of stack")
    assert stack == 0, "spills"
    assert registers <= 128, "fewer than four blocks of 128 threads per multiprocessor"


def resource_usage(compiled: Any, folder: Path) -> tuple[int, int]:
    """(registers per thread, bytes of stack, which is where spills go), read by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this Triton brings no {tool.name}: registers and spills cannot be read")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    text = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "probe-bf16", ELSEWHERE, str))
def test_hip(name: str) -> None:
    source = SOURCES[name]()
    assembly = compile_source(source, HIP).asm["amdgcn"]
    assert len(re.findall(r"(?:global|buffer|flat)_load_dwordx4", assembly)) >= source.loads, "16-byte loads"
    assert re.search(r"(?:global|buffer|flat)_store_dwordx4", assembly), "16-byte stores"
    assert re.search(r"\.vgpr_spill_count: +0\b", assembly), "spills"


def test_odd_sizes_compile_too() -> None:
    source = probe_source("bf16", row_dims=1)
    made = ASTSource(fn=source.kernel, signature=source.signature, constexprs=source.constants)
    assert "ld.global" in triton.compile(made, target=CUDA["sm_90"]).asm["ptx"]


# name: (source, 16-byte accesses, other accesses: one per scale, or eight for all partial maxima and one for the scale)
FLOAT8_SOURCES: dict[str, tuple[Callable[[], Source], int, int]] = {
    "weighted_sum-bf16-2": (lambda: weighted_sum_source("bf16", 2, stored="fp8e4nv"), 2 + 2 + 2, 2),
    "weighted_sum-fp32-6-rows": (lambda: weighted_sum_source("fp32", 6, row_dims=2, stored="fp8e4nv"), 4 + 6 + 4, 6),
    "store-bf16": (lambda: store_source(_store_scaled_kernel, "bf16"), 4 + 1, 9),
    "store-fp32": (lambda: store_source(_store_scaled_kernel, "fp32"), 8 + 1, 9),
    "largest-bf16": (lambda: store_source(_largest_kernel, "bf16"), 4, 1),
}


@pytest.mark.parametrize("target", ["sm_90", pytest.param("sm_100", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FLOAT8_SOURCES)
def test_float8(name: str, target: str, tmp_path: Path) -> None:
    source, wide, narrow = FLOAT8_SOURCES[name]
    compiled = compile_source(source(), CUDA[target])
    accesses = re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"])
    vectors = [access for access in accesses if access.endswith(".v4.b32")]
    assert len(vectors) == wide and len(accesses) - wide == narrow, accesses
    registers, stack = resource_usage(compiled, tmp_path)
    assert stack == 0, "spills"
    assert registers <= 64, "fewer than eight blocks of 128 threads per multiprocessor"


def test_bfloat16_snapshots_of_float32() -> None:
    ptx = compile_source(weighted_sum_source("fp32", 2, stored="bf16"), CUDA["sm_80"]).asm["ptx"]
    vectors = [access for access in re.findall(r"(?:ld|st)\.global\S*", ptx) if access.endswith(".v4.b32")]
    per_half = tile_triton.BLOCK // (32 * tile_triton.NUM_WARPS) * 2 // 16
    assert len(vectors) >= 2 * per_half + 2 * per_half, "16-byte loads and stores"


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "store-bf16", FLOAT8_SOURCES, str))
def test_float8_elsewhere(name: str) -> None:
    """AMD's compiler converts in software; NVIDIA's refuses before sm_89, hence storage.triton_stores."""
    source = FLOAT8_SOURCES[name][0]
    assert re.search(r"\.vgpr_spill_count: +0\b", compile_source(source(), HIP).asm["amdgcn"]), "spills"
    if "largest" not in name:  # which sees no float8
        with pytest.raises(triton.CompilationError, match="fp8e4nv not supported"):
            compile_source(source(), CUDA["sm_80"])
