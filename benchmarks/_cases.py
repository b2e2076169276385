"""Operands and verdicts of gpu_check.py: the kernels against their references on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_compile.kernels.probe import probe, probe_reference
from dit_compile.kernels.store import store_residual
from dit_compile.kernels.weighted_sum import weighted_sum, weighted_sum_reference

DEVICE = "cuda"  # HIP devices have this name too
SHAPES = {"FLUX": (1, 4608, 3072), "Wan": (1, 75600, 5120)}
ULP = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def _dense(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape), device=DEVICE).to(dtype)


def _tail_of_cat(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _dense((shape[0], shape[1] + 5, *shape[2:]), dtype)[:, 5:]


def _transposed(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _dense((*shape[:-2], shape[-1], shape[-2]), dtype).transpose(-1, -2)


LAYOUTS: dict[str, tuple[Callable[[Sequence[int], torch.dtype], Tensor], ...]] = {
    "dense": (_dense,),
    "tail of a cat": (_tail_of_cat,),
    "tail and dense": (_tail_of_cat, _dense),
    "transposed and dense": (_transposed, _dense),
}


def within_an_ulp(actual: Tensor, expected: Tensor, terms: Sequence[Tensor]) -> bool:
    """Within one ulp of the dtype, plus float32's rounding of the terms that were added up."""
    size = torch.stack([term.abs().float() for term in terms]).sum(0)
    error = (actual.float() - expected.float()).abs()
    return bool((error <= ULP[expected.dtype] * expected.abs().float() + 2**-22 * size + 1e-7).all())


def check_case(dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> dict[str, Any]:
    makers = LAYOUTS[layout]
    value, entry, previous, out = (makers[index % len(makers)](shape, dtype) for index in range(4))
    residual, sums = probe(value, entry, previous)
    expected, expected_sums = probe_reference(value, entry, previous)
    forecast = weighted_sum(value, (entry, previous), (2.0, -1.0))
    weighted_sum(value, (entry, previous), (2.0, -1.0), out)
    reference, terms = weighted_sum_reference(value, (entry, previous), (2.0, -1.0)), (value, 2 * entry, previous)
    verdict = {
        "probe": torch.equal(residual, expected) and residual.stride() == expected.stride(),
        "sums": torch.allclose(sums, expected_sums, rtol=1e-5),
        "weighted_sum": all(within_an_ulp(one, reference, terms) for one in (forecast, out)),
    }
    store_residual(out, value, entry)
    verdict["store_residual"] = torch.equal(out, expected)
    return {"case": f"{dtype} {layout} {shape}", **verdict, "ok": all(verdict.values())}


def check_huge() -> dict[str, Any]:
    """More elements than int32 can count: exact numbers, looked at beyond 2**31."""
    count = 2**31 + 4096
    case = {"case": f"huge: {count} elements"}
    if torch.cuda.mem_get_info()[0] < 9 * count:
        return {
            **case,
            "ok": True,
            **dict.fromkeys(("probe", "sums", "weighted_sum", "store_residual"), "too little memory"),
        }
    value = torch.zeros(count, device=DEVICE, dtype=torch.bfloat16)
    value[-4096:] = 3.0
    previous = torch.ones_like(value)
    residual, sums = probe(value, None, previous)
    verdict = {
        "probe": bool((residual[-4096:] == 3.0).all() and (residual[-8192:-4096] == 0.0).all()),
        "sums": torch.allclose(sums.cpu(), torch.tensor([2.0**31 + 2 * 4096, float(count)]), rtol=1e-6),
    }
    weighted_sum(value, [previous], [0.5], out=residual)
    verdict["weighted_sum"] = bool((residual[-4096:] == 3.5).all() and (residual[-8192:-4096] == 0.5).all())
    store_residual(residual, value, previous)
    verdict["store_residual"] = bool((residual[-4096:] == 2.0).all())
    return {**case, **verdict, "ok": all(verdict.values())}
