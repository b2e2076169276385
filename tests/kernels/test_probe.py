"""`probe` against an independent float64 formula, its guarantees and its messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_compile.kernels import chunks
from dit_compile.kernels.probe import probe

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@st.composite
def operand(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random values of `shape` in some memory layout: dense, a permutation, or a window into a larger tensor."""
    seed = draw(st.integers(0, 2**31 - 1))
    order = draw(st.permutations(range(len(shape))))
    padding = draw(st.lists(st.integers(0, 2), min_size=len(shape), max_size=len(shape)))
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn([shape[dim] + padding[dim] for dim in order], generator=generator).to(dtype)
    back = [order.index(dim) for dim in range(len(shape))]
    view = stored.permute(back)
    for dim, size in enumerate(shape):
        view = view.narrow(dim, padding[dim], size)
    return view


shapes = st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=shapes, dtype=st.sampled_from(FLOATING), with_entry=st.booleans(), compare=st.booleans())
def test_formula(
    data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, with_entry: bool, compare: bool
) -> None:
    value = data.draw(operand(shape, dtype))
    entry = data.draw(operand(shape, dtype)) if with_entry else None
    previous = data.draw(operand(shape, dtype)) if compare else None
    residual, sums = probe(value, entry, previous)

    exact = value.double() - (entry.double() if entry is not None else 0.0)
    assert torch.equal(residual, exact.to(dtype))  # a difference of two such numbers is exact in float64: one rounding
    assert residual.stride() == torch.empty_like(value).stride()
    assert sums.shape == (2,) and sums.dtype == torch.float32 and sums.device == value.device
    expected = [0.0, 0.0]
    if previous is not None:
        expected = [(previous.double() - residual.double()).abs().sum().item(), previous.double().abs().sum().item()]
    assert sums.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_large_tensors_are_cut_without_a_trace(dtype: torch.dtype) -> None:
    value, entry, previous = torch.randn(3, 2, chunks.CHUNK - 5).to(dtype)
    residual, sums = probe(value, entry, previous)
    exact = (previous.double() - residual.double()).abs().sum(), previous.double().abs().sum()
    assert torch.equal(residual, value - entry)
    assert sums.tolist() == pytest.approx([number.item() for number in exact], rel=1e-6)
    assert torch.equal(sums, probe(value, entry, previous)[1])
    loose = torch.stack((previous, previous), -1)[..., 0]  # every second element: not cut
    assert probe(value, entry, loose)[1].tolist() == pytest.approx(sums.tolist(), rel=1e-6)


def test_repeated_step_measures_zero_even_in_low_precision() -> None:
    value, entry = torch.randn(2, 4, 64).bfloat16()
    first, _ = probe(value, entry, None)
    _, sums = probe(value, entry, first)
    assert sums[0].item() == 0.0 and sums[1].item() > 0.0


def test_residual_is_a_copy_and_carries_no_gradient() -> None:
    value = torch.randn(3, 4, requires_grad=True)
    residual, sums = probe(value, None, value)
    assert residual.data_ptr() != value.data_ptr() and torch.equal(residual, value)
    assert not residual.requires_grad and not sums.requires_grad


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["value", "entry", "previous"])
def test_non_finite_numbers_reach_the_sums(poison: float, where: str) -> None:
    operands = {name: torch.randn(2, 9) for name in ("value", "entry", "previous")}
    operands[where][1, 8] = poison
    _, sums = probe(**operands)
    assert not sums[0].isfinite()
    assert bool(sums[1].isfinite()) == (where != "previous")


def test_messages_say_what_differs_and_what_to_do() -> None:
    value = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"previous and value differ in shape: previous is float32\[2, 4\] on cpu"):
        probe(value, None, torch.randn(2, 4))
    with pytest.raises(
        ValueError, match=r"entry and value differ in dtype: entry is bfloat16\[2, 3\].*compute the step"
    ):
        probe(value, value.bfloat16(), None)
    with pytest.raises(ValueError, match=r"differ in shape and dtype and device: previous is float16\[3, 2\] on meta"):
        probe(value, None, torch.empty(3, 2, dtype=torch.float16, device="meta"))
    with pytest.raises(ValueError, match=r"value is int64\[3\] on cpu, but only real floating-point"):
        probe(torch.arange(3), None, None)
