"""`weighted_sum` and `store_residual` against an independent float64 formula, their guarantees and messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_compile.kernels import chunks
from dit_compile.kernels.store import store_residual
from dit_compile.kernels.weighted_sum import weighted_sum

# Half an ulp for the rounding to the dtype; float32 additionally rounds after every term.
PRECISION = {torch.float64: 1e-15, torch.float32: 6e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LAYOUTS = ("dense", "transposed", "window", "strided")


def build(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if layout == "transposed":
        return torch.randn(shape[::-1]).to(dtype).permute(tuple(reversed(range(len(shape)))))
    if layout == "window":
        return torch.randn([size + 2 for size in shape]).to(dtype)[tuple(slice(1, size + 1) for size in shape)]
    if layout == "strided":
        return torch.randn((*shape, 2)).to(dtype)[..., 1]
    return torch.randn(shape).to(dtype)


def check(actual: Tensor, base: Tensor | None, snapshots: list[Tensor], weights: list[float]) -> None:
    terms = [weight * snapshot.double() for weight, snapshot in zip(weights, snapshots, strict=True)]
    terms += [] if base is None else [base.double()]
    exact, size = sum(terms), sum(term.abs() for term in terms)
    assert isinstance(exact, Tensor) and isinstance(size, Tensor)
    bound = PRECISION[actual.dtype] * exact.abs() + 6e-7 * size * (actual.dtype != torch.float64) + 1e-15 * size + 1e-7
    error = (actual.double() - exact).abs()
    assert bool((error <= bound).all()), float((error - bound).max())


shapes = st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)
numbers = st.floats(-4, 4, allow_subnormal=False)


@settings(max_examples=150, deadline=None)
@given(
    shape=shapes,
    dtype=st.sampled_from(tuple(PRECISION)),
    weights=st.lists(numbers, min_size=1, max_size=6),
    base_layout=st.sampled_from((None, *LAYOUTS)),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=6, max_size=6),
    out_layout=st.sampled_from((None, *LAYOUTS)),
)
def test_formula(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weights: list[float],
    base_layout: str | None,
    layouts: list[str],
    out_layout: str | None,
) -> None:
    base = None if base_layout is None else build(base_layout, shape, dtype)
    snapshots = [build(layout, shape, dtype) for layout, _ in zip(layouts, weights, strict=False)]
    out = None if out_layout is None else build(out_layout, shape, dtype)
    strides = torch.empty_like(snapshots[0] if base is None else base).stride() if out is None else out.stride()
    actual = weighted_sum(base, snapshots, weights, out)
    assert out is None or actual is out
    assert actual.stride() == strides and actual.dtype == dtype and actual.shape == shape
    check(actual, base, snapshots, weights)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_large_tensors_are_cut_without_a_trace(dtype: torch.dtype, based: bool) -> None:
    first, *snapshots = torch.randn(4, 3, chunks.CHUNK - 7).to(dtype)
    base, weights = first if based else None, [1.5, -2.0, 0.25]
    whole = weighted_sum(base, snapshots, weights)
    check(whole, base, snapshots, weights)
    loose = torch.empty((*first.shape, 2), dtype=dtype)[..., 0]  # not contiguous: not cut
    assert torch.equal(weighted_sum(base, snapshots, weights, out=loose), whole)
    if based:
        assert torch.equal(weighted_sum(first, snapshots, weights, out=first), whole)


def test_low_precision_is_rounded_once() -> None:
    # 256 + 1 + 1 in bfloat16: rounded after every term it would stay 256, because 257 is a tie that goes to even.
    base, one = torch.tensor([256.0]).bfloat16(), torch.tensor([1.0]).bfloat16()
    assert weighted_sum(base, [one, one], [1.0, 1.0]).item() == 258.0


def test_reuse_of_a_snapshot_restores_the_value() -> None:
    entry, value = torch.randn(2, 4, 32)
    slot = torch.empty_like(value)
    store_residual(slot, value, entry)
    torch.testing.assert_close(weighted_sum(entry, [slot], [1.0]), value)


def test_results_carry_no_gradient() -> None:
    base = torch.randn(3, requires_grad=True)
    slot = torch.empty(3)
    assert not weighted_sum(base, [base], [1.0]).requires_grad
    assert not weighted_sum(None, [base], [1.0], out=slot).requires_grad
    store_residual(slot, base, base)
    assert not slot.requires_grad


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("slot_layout", LAYOUTS)
@pytest.mark.parametrize("base_layout", [None, *LAYOUTS])
def test_store_residual(dtype: torch.dtype, slot_layout: str, base_layout: str | None) -> None:
    slot, value = build(slot_layout, (3, 4, 5), dtype), build("window", (3, 4, 5), dtype)
    base = None if base_layout is None else build(base_layout, (3, 4, 5), dtype)
    strides, address = slot.stride(), slot.data_ptr()
    store_residual(slot, value, base)
    assert slot.stride() == strides and slot.data_ptr() == address
    assert torch.equal(slot, (value.double() - (0.0 if base is None else base.double())).to(dtype))


def test_messages_of_weighted_sum() -> None:
    tensor = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"0 snapshots, but it takes 1 to 6.*nothing to forecast from"):
        weighted_sum(tensor, [], [])
    with pytest.raises(ValueError, match=r"7 snapshots, but it takes 1 to 6: an order-n forecast needs n \+ 1"):
        weighted_sum(tensor, [tensor] * 7, [1.0] * 7)
    with pytest.raises(ValueError, match=r"2 snapshots but 1 weights: give one weight per snapshot"):
        weighted_sum(tensor, [tensor, tensor], [1.0])
    with pytest.raises(ValueError, match=r"snapshots\[1\] and snapshots\[0\] differ in shape"):
        weighted_sum(tensor, [tensor, tensor[:1]], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"base and snapshots\[0\] differ in dtype: base is float64\[2, 3\] on cpu"):
        weighted_sum(tensor.double(), [tensor], [1.0])
    with pytest.raises(ValueError, match=r"out and base differ in device"):
        weighted_sum(tensor, [tensor], [1.0], out=torch.empty(2, 3, device="meta"))
    with pytest.raises(ValueError, match=r"out starts where a snapshot does"):
        weighted_sum(tensor, [torch.zeros(2, 3), tensor], [1.0, 1.0], out=tensor)
    with pytest.raises(ValueError, match=r"snapshots\[0\] is bool\[3\]"):
        weighted_sum(None, [torch.ones(3, dtype=torch.bool)], [1.0])


def test_messages_of_store_residual() -> None:
    value = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"store_residual: slot and value differ in shape"):
        store_residual(torch.empty(3, 2), value, None)
    with pytest.raises(ValueError, match=r"store_residual: base and value differ in dtype"):
        store_residual(torch.empty(2, 3), value, value.half())
    with pytest.raises(ValueError, match=r"store_residual: value is complex64\[2\]"):
        store_residual(torch.empty(2), torch.zeros(2, dtype=torch.complex64), None)
