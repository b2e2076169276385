"""Snapshots in fewer bits than the stream: what storing loses, by formula, and that the forecast reads them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_compile.kernels import chunks, storage
from dit_compile.kernels.storage import FLOAT8, SMALLEST_SCALE, narrower, triton_stores
from dit_compile.kernels.store import store_residual, store_scaled
from dit_compile.kernels.weighted_sum import weighted_sum

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF_ULP = {torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def stored(value: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    slot, scale = torch.empty(value.shape, dtype=FLOAT8), torch.empty(())
    store_scaled(slot, scale, value, base)
    return slot, scale


def bound(exact: Tensor, scale: Tensor) -> Tensor:
    """Half a unit in the last place of e4m3 (3 mantissa bits, smallest step 2^-9), and float32's own rounding."""
    return torch.maximum(exact.abs() * 2**-4, scale.double() * 2**-10) * (1 + 2**-20)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-8, 3),
    based=st.booleans(),
    strided=st.booleans(),
)
def test_round_trip_error(
    shape: tuple[int, ...], dtype: torch.dtype, exponent: int, based: bool, strided: bool
) -> None:
    value = (torch.randn((*shape, 2)) * 10.0**exponent).to(dtype)[..., 1]
    value = value if strided else value.contiguous()
    base = torch.randn(shape).to(dtype) if based else None
    slot, scale = stored(value, base)
    exact = value.double() - (0.0 if base is None else base.double())
    if exact.numel():
        assert float(scale) == pytest.approx(float(exact.abs().max()) / 448, rel=1e-5, abs=2 * SMALLEST_SCALE)
    error = (slot.double() * scale.double() - exact).abs()
    assert bool((error <= bound(exact, scale) + 2**-23 * value.double().abs()).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_are_cut_without_a_trace(dtype: torch.dtype) -> None:
    value, base = torch.randn(2, 3, chunks.CHUNK - 7).to(dtype)
    value[1, 5] = 9.0  # the largest magnitude is in the middle piece
    base[1, 5] = 0.0
    slot, scale = stored(value, base)
    loose, loose_scale = stored(torch.stack((value, value), -1)[..., 0], base)  # not contiguous: not cut
    assert torch.equal(scale, loose_scale)
    assert torch.equal(slot.view(torch.uint8), loose.view(torch.uint8))
    assert float(scale) == pytest.approx(9 / 448)


def test_nothing_but_zeros_and_the_smallest_numbers() -> None:
    slot, scale = stored(torch.zeros(5))
    assert float(scale) == SMALLEST_SCALE and bool((slot.float() == 0).all())
    slot, scale = stored(torch.full((3,), 1e-40))
    assert bool(slot.float().isfinite().all())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_become_finite(poison: float) -> None:
    value = torch.randn(40)
    value[7] = poison
    slot, scale = stored(value)
    assert not bool((slot.float() * scale).isfinite()[7])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_forecast_from_float8(count: int, based: bool, dtype: torch.dtype) -> None:
    """Equal to the float64 sum over the numbers that were stored, whatever storing them has lost."""
    base = torch.randn(3, 50).to(dtype)
    pairs = [stored((torch.randn(3, 50) * 10.0**-j).to(dtype)) for j in range(count)]
    snapshots, scales = zip(*pairs, strict=True)
    weights = [0.7 - 0.35 * j for j in range(count)]
    out = weighted_sum(base if based else None, snapshots, weights, torch.empty_like(base), scales)
    terms = [w * s.double() * scale.double() for w, s, scale in zip(weights, snapshots, scales, strict=True)]
    terms += [base.double()] * based
    exact, size = torch.stack(terms).sum(0), torch.stack(terms).abs().sum(0)
    assert out.dtype == dtype
    assert bool(((out.double() - exact).abs() <= HALF_ULP[dtype] * exact.abs() + 2**-21 * size + 1e-7).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_bfloat16_is_rounded_once_and_read_as_it_is(based: bool, dtype: torch.dtype) -> None:
    base, value, other = torch.randn(3, 4, 65, dtype=dtype)
    slots = torch.empty(2, 4, 65, dtype=torch.bfloat16)
    for slot, residual in zip(slots, (value, other), strict=True):
        store_residual(slot, residual, base)
        assert torch.equal(slot, (residual - base).bfloat16())
    out = weighted_sum(base if based else None, list(slots), [2.0, -1.0], torch.empty_like(base))
    exact = 2 * slots[0].double() - slots[1].double() + (base.double() if based else 0.0)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-6)


def test_large_forecasts_are_cut_without_a_trace() -> None:
    base, value = torch.randn(2, 3, chunks.CHUNK - 7)
    slot, scale = stored(value, base)
    whole = weighted_sum(base, [slot, slot], [1.5, -0.5], scales=[scale, scale])
    loose = torch.empty((*base.shape, 2))[..., 0]
    assert torch.equal(weighted_sum(base, [slot, slot], [1.5, -0.5], loose, [scale, scale]), whole)
    in_place = weighted_sum(base, [slot, slot], [1.5, -0.5], base, [scale, scale])
    assert in_place is base and torch.equal(base, whole)


def test_only_what_is_narrower() -> None:
    assert narrower(torch.bfloat16, torch.float32) and narrower(FLOAT8, torch.bfloat16)
    assert not narrower(torch.bfloat16, torch.float16) and not narrower(torch.float16, torch.float32)


@pytest.mark.parametrize(("capability", "runs"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_devices_without_float8_take_the_reference(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    storage._converts_float8.cache_clear()
    device = torch.device("cuda", 0)
    try:
        assert triton_stores(FLOAT8, device) is runs
        assert triton_stores(torch.bfloat16, device)
    finally:
        storage._converts_float8.cache_clear()


def test_messages() -> None:
    value, slot, scale = torch.randn(2, 3), torch.zeros(2, 3, dtype=FLOAT8), torch.ones(())
    with pytest.raises(ValueError, match=r"store_scaled: value is int64\[2\]"):
        store_scaled(slot, scale, torch.ones(2, dtype=torch.int64), None)
    with pytest.raises(ValueError, match=r"slot and value differ in shape and dtype"):
        store_scaled(slot[:1], scale, value, None)
    with pytest.raises(ValueError, match=r"scale is torch.float32\[1\] on cpu, but it writes float8_e4m3fn with one"):
        store_scaled(slot, torch.ones(1), value, None)
    with pytest.raises(ValueError, match=r"base and value differ in dtype"):
        store_scaled(slot, scale, value, value.half())
    with pytest.raises(ValueError, match=r"store_residual: slot and value differ in dtype"):
        store_residual(slot, value, None)
    with pytest.raises(ValueError, match=r"1 snapshots are torch.float8_e4m3fn with 0 scales: float8 needs one"):
        weighted_sum(value, [slot], [1.0])
    with pytest.raises(ValueError, match=r"1 snapshots are torch.float32 with 1 scales"):
        weighted_sum(value, [value], [1.0], scales=[scale])
    with pytest.raises(ValueError, match=r"float8 snapshots need a base or out"):
        weighted_sum(None, [slot], [1.0], scales=[scale])
    with pytest.raises(ValueError, match=r"snapshots\[0\] and base differ in shape"):
        weighted_sum(value[:1], [slot], [1.0], scales=[scale])
