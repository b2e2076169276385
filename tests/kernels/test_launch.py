"""The real launch path short of the launch: Triton's argument binder and specialisation, with a GPU in name only.

The interpreter replaces that machinery, and ahead-of-time compilation goes around it. Here the launchers run on CPU
tensors in Triton's own `warmup` mode: arguments are bound, specialised and compiled for sm_90, nothing is launched.
"""

import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: nothing to bind", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dit_compile.kernels.probe_triton import _probe_kernel, probe_triton
from dit_compile.kernels.storage import FLOAT8
from dit_compile.kernels.store_triton import (
    _largest_kernel,
    _store_flagged_kernel,
    _store_scaled_kernel,
    store_flagged_triton,
    store_scaled_triton,
)
from dit_compile.kernels.weighted_sum_triton import _weighted_sum_kernel, weighted_sum_triton

KERNELS = (_probe_kernel, _weighted_sum_kernel, _largest_kernel, _store_scaled_kernel, _store_flagged_kernel)


class NamedDriver:
    """A driver for a device that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the launches of a test compiled, a repeated one once per launch."""
    kernels: list[Any] = []

    def warm_up(kernel: JITFunction[Any], *args: Any, warmup: bool, **options: Any) -> None:
        kernels.append(JITFunction.run(kernel, *args, warmup=True, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setattr(driver, "_active", NamedDriver())  # its own reset_active() would look for a real device
    for kernel in KERNELS:
        kernel.device_caches.clear()
        monkeypatch.setattr(kernel, "run", functools.partial(warm_up, kernel))
    yield kernels
    for kernel in KERNELS:
        kernel.device_caches.clear()


def wide_accesses(kernel: Any) -> tuple[int, int]:
    """(16-byte loads, 16-byte stores)"""
    ptx = kernel.asm["ptx"]
    return len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)), len(re.findall(r"st\.global\S*\.v4\.b32", ptx))


def variants(kernel: Any) -> int:
    return sum(len(caches[0]) for caches in kernel.device_caches.values())


def test_probe(compiled: list[Any]) -> None:
    value, entry, previous = torch.zeros(3, 1, 512, 320, dtype=torch.bfloat16).unbind()
    residual, sums = probe_triton(value, entry, previous)
    assert residual.stride() == value.stride() and sums.shape == (2,)
    probe_triton(value, None, previous)
    tokens = torch.zeros(2, 512 + 64, 320, dtype=torch.bfloat16)[:, 64:]
    probe_triton(tokens, tokens, torch.zeros(2, 512, 320, dtype=torch.bfloat16))
    assert [wide_accesses(kernel) for kernel in compiled] == [(6, 2), (4, 2), (6, 2)]
    assert variants(_probe_kernel) == 3
    probe_triton(*torch.zeros(3, 1, 640, 320, dtype=torch.bfloat16).unbind())  # another resolution: nothing new
    assert variants(_probe_kernel) == 3


def test_weighted_sum(compiled: list[Any]) -> None:
    base, *snapshots = torch.zeros(4, 1, 512, 320, dtype=torch.bfloat16).unbind()
    for count in (1, 2, 3):
        weighted_sum_triton(base, snapshots[:count], [0.5] * count)
    weighted_sum_triton(None, snapshots[:2], [2.0, -1.0])
    slot = torch.zeros(2, 512 + 64, 320, dtype=torch.bfloat16)[:, 64:]
    pair = torch.zeros(2, 2, 512, 320, dtype=torch.bfloat16).unbind()
    assert weighted_sum_triton(pair[0], pair, [2.0, -1.0], out=slot) is slot
    assert [wide_accesses(kernel) for kernel in compiled] == [(4, 2), (6, 2), (8, 2), (4, 2), (6, 2)]


def test_weights_are_run_time_values(compiled: list[Any]) -> None:
    base, first, second = torch.zeros(3, 4096).unbind()
    for weights in ([2.0, -1.0], [1.0, 0.0], [0.0, 1.0], [1, 16], [1e-30, 1e30], [float("nan"), -0.0]):
        weighted_sum_triton(base, (first, second), weights)
    assert variants(_weighted_sum_kernel) == 1
    assert len(compiled) == 6


def test_misaligned_and_odd_operands_bind(compiled: list[Any]) -> None:
    base, snapshot = torch.zeros(2, 1001, dtype=torch.bfloat16).unbind()
    weighted_sum_triton(base[1:], [snapshot[1:]], [1.0])
    weighted_sum_triton(base, [snapshot], [1.0])
    weighted_sum_triton(base[:1], [snapshot[:1]], [1.0])
    assert all("ld.global" in kernel.asm["ptx"] for kernel in compiled)


def test_float8(compiled: list[Any]) -> None:
    """What is stored is read by one kernel for all weights and scales; nothing of the scale is known when compiling."""
    base, value = torch.zeros(2, 1, 512, 320, dtype=torch.bfloat16).unbind()
    slots, scales = torch.zeros(2, 1, 512, 320).to(FLOAT8), [torch.ones(()) for _ in range(2)]
    for slot, scale in zip(slots, scales, strict=True):
        store_scaled_triton(slot, scale, value, base)
    store_scaled_triton(slots[0], scales[0], torch.zeros(1, 640, 320, dtype=torch.bfloat16), None)
    for weights in ([2.0, -1.0], [1.0, 0.0]):
        weighted_sum_triton(base, slots.unbind(), weights, scales=scales)
    assert [variants(kernel) for kernel in (_largest_kernel, _store_scaled_kernel, _weighted_sum_kernel)] == [2, 2, 1]
    assert [wide_accesses(kernel) for kernel in compiled][-1] == (2 + 2, 2)


def test_store_flagged(compiled: list[Any]) -> None:
    value, base, slot = torch.zeros(3, 1, 512, 320, dtype=torch.bfloat16).unbind()
    store_flagged_triton(slot, torch.zeros(()), value, base)
    store_flagged_triton(slot, torch.zeros(()), value, None)
    narrow = torch.zeros(1, 512, 320, dtype=torch.bfloat16)
    store_flagged_triton(narrow, torch.zeros(()), value.float(), base.float())
    assert [wide_accesses(kernel) for kernel in compiled] == [(4, 2), (2, 2), (8, 2)]
    assert variants(_store_flagged_kernel) == 3
