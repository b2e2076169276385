"""The Triton kernels against the references, through Triton's interpreter, on CPU tensors.

Not collected by itself: TRITON_INTERPRET is read when @triton.jit runs, so test_interpreted.py runs this file in a
process of its own. The interpreter's float32 -> bfloat16 store truncates instead of rounding, hence 1 ulp.
"""

import os
from collections.abc import Callable, Sequence

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_interpreted.py"

from dit_compile.kernels import probe_triton as probe_module  # noqa: E402
from dit_compile.kernels import store_triton as store_module  # noqa: E402
from dit_compile.kernels.layout import collapse  # noqa: E402
from dit_compile.kernels.library import triton_runs  # noqa: E402
from dit_compile.kernels.probe import probe, probe_reference  # noqa: E402
from dit_compile.kernels.storage import FLOAT8  # noqa: E402
from dit_compile.kernels.store import store_flagged, store_residual, store_scaled, store_scaled_reference  # noqa: E402
from dit_compile.kernels.weighted_sum import weighted_sum, weighted_sum_reference  # noqa: E402


@triton.jit
def _loop(end):  # type: ignore[no-untyped-def]
    for _ in range(tl.program_id(0), end):
        pass


try:
    _loop[(1,)](1)
except InterpreterError as error:
    # Triton 3.6 (torch 2.11) makes an int of an array with one dimension, which NumPy 2.4 refuses; 3.9 does not.
    if "only 0-dimensional arrays" not in str(error):
        raise
    pytest.skip("this Triton's interpreter needs NumPy < 2.4", allow_module_level=True)

ULP = {torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 2**-7}
DTYPES = list(ULP)


def dense(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape)).to(dtype)


def tail_of_cat(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The image tokens of a text-and-image concatenation: rows with a gap between batches."""
    batch, tokens, *rest = shape
    return torch.randn((batch, tokens + 3, *rest)).to(dtype)[:, 3:]


def chunk_of_last(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One of three chunks of a wide projection: a gap after every token."""
    *rest, last = shape
    return torch.randn((*rest, 3 * last)).to(dtype).chunk(3, dim=-1)[1]


def transposed(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    *rest, second, last = shape
    return torch.randn((*rest, last, second)).to(dtype).transpose(-1, -2)


Maker = Callable[[Sequence[int], torch.dtype], Tensor]
LAYOUTS: dict[str, tuple[Maker, ...]] = {
    "dense": (dense,),
    "tail": (tail_of_cat,),
    "chunk": (chunk_of_last,),
    "transposed": (transposed,),
    "tail-dense": (tail_of_cat, dense),
    "transposed-dense": (transposed, dense),
    "chunk-tail-dense": (chunk_of_last, tail_of_cat, dense),
}


def make(layout: str, count: int, shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    makers = LAYOUTS[layout]
    return [makers[index % len(makers)](shape, dtype) for index in range(count)]


def assert_close(actual: Tensor, expected: Tensor, terms: Sequence[Tensor] = ()) -> None:
    """Within one ulp of the dtype, plus float32's rounding of the terms that were added up."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    size = sum((term.abs().double() for term in terms), torch.zeros((), dtype=torch.float64))
    error = (actual.double() - expected.double()).abs()
    assert bool((error <= ULP[expected.dtype] * expected.abs().double() + 2**-22 * size + 1e-7).all()), float(
        error.max()
    )


def check_probe(value: Tensor, entry: Tensor | None, previous: Tensor | None) -> None:
    assert triton_runs(value)
    residual, sums = probe(value, entry, previous)
    expected, expected_sums = probe_reference(value, entry, previous)
    assert residual.stride() == expected.stride()
    assert_close(residual, expected)
    if previous is None:
        assert sums.tolist() == [0.0, 0.0]
        return
    # The kernel's own rounded residual must be what entered the difference, whatever rounding the interpreter uses.
    own = torch.stack(((previous.double() - residual.double()).abs().sum(), previous.double().abs().sum()))
    torch.testing.assert_close(sums.double(), own, rtol=2e-6, atol=1e-6)
    slack = ULP[value.dtype] * float(expected.double().abs().sum())  # every element one ulp off
    torch.testing.assert_close(sums, expected_sums, rtol=2e-6, atol=slack + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("entry", [True, False], ids=["entry", "no_entry"])
def test_probe(layout: str, entry: bool, dtype: torch.dtype) -> None:
    value, before, previous = make(layout, 3, (2, 5, 300), dtype)
    check_probe(value, before if entry else None, previous)


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1, 1), (2048,), (2049,), (3, 1367), (1, 9, 640)], ids=str)
def test_probe_sizes(shape: tuple[int, ...]) -> None:
    check_probe(*make("dense", 3, shape, torch.bfloat16))


def test_probe_without_previous_and_empty() -> None:
    value, entry = make("dense", 2, (3, 65), torch.float16)
    check_probe(value, entry, None)
    check_probe(value, None, None)
    empty = torch.empty(2, 0)
    residual, sums = probe(empty, empty, empty)
    assert residual.shape == (2, 0) and sums.tolist() == [0.0, 0.0]


def test_probe_programs_share_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "MOST_PROGRAMS", 2)
    check_probe(*make("dense", 3, (5, 2100), torch.float32))
    check_probe(*make("tail-dense", 3, (3, 4, 700), torch.float32))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_probe_propagates(poison: float, where: int) -> None:
    operands = make("dense", 3, (2, 1500), torch.bfloat16)
    operands[where].view(-1)[-1] = poison
    _, sums = probe(*operands)
    assert not bool(sums.isfinite().all())
    assert bool(sums[1].isfinite()) == (where != 2)


def test_probe_repeats_bitwise() -> None:
    operands = make("dense", 3, (3, 3000), torch.float32)
    first, second = probe(*operands), probe(*operands)
    assert torch.equal(first[1], second[1]) and torch.equal(first[0], second[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_weighted_sum(count: int, based: bool, dtype: torch.dtype) -> None:
    check_weighted_sum("dense", count, based, (2, 3, 401), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_weighted_sum_layouts(layout: str, based: bool) -> None:
    check_weighted_sum(layout, 2, based, (2, 5, 300), torch.bfloat16)


@pytest.mark.parametrize("shape", [(1,), (7,), (2048,), (2049,), (2, 2, 2, 2, 300)], ids=str)
def test_weighted_sum_sizes(shape: tuple[int, ...]) -> None:
    check_weighted_sum("dense", 2, True, shape, torch.float32)


@pytest.mark.parametrize("maker", [dense, tail_of_cat, chunk_of_last, transposed])
def test_weighted_sum_out(maker: Maker) -> None:
    shape = (2, 5, 300)
    base, *snapshots = make("dense", 3, shape, torch.float32)
    out = maker(shape, torch.float32)
    strides = out.stride()
    expected = weighted_sum_reference(base, snapshots, (2.0, -1.0))
    assert weighted_sum(base, snapshots, (2.0, -1.0), out) is out
    assert out.stride() == strides
    assert_close(out, expected, (base, 2 * snapshots[0], snapshots[1]))


def window(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A gap after every dimension: as many row dimensions as the shape has before its last."""
    return torch.randn([size + 1 for size in shape]).to(dtype)[tuple(slice(size) for size in shape)]


@pytest.mark.parametrize("shape", [(3, 2, 300), (2, 3, 2, 260), (2, 2, 2, 2, 256)], ids=str)
def test_rows_of_several_dimensions(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "MOST_PROGRAMS", 5)
    operands = [window(shape, torch.float32), dense(shape, torch.float32), window(shape, torch.float32)]
    rows = collapse(shape, tuple(operand.stride() for operand in operands))
    assert (rows is None) == (len(shape) == 5)  # four row dimensions are copied densely first
    check_probe(*operands)
    base, *snapshots = operands
    out = window(shape, torch.float32)
    weighted_sum(base, snapshots, (2.0, -1.0), out)
    assert_close(out, weighted_sum_reference(base, snapshots, (2.0, -1.0)), (base, 2 * snapshots[0], snapshots[1]))


def test_weighted_sum_in_place_of_base_and_empty() -> None:
    base, snapshot = make("dense", 2, (4, 300), torch.float32)
    expected = base + snapshot
    weighted_sum(base, [snapshot], [1], out=base)  # an int weight is a number like any other
    assert_close(base, expected, (base, snapshot))
    assert weighted_sum(None, [torch.empty(0, 3)], [1.0]).shape == (0, 3)


def test_expanded_operands() -> None:
    row = torch.randn(1, 1, 300).expand(2, 5, 300)
    others = make("dense", 2, (2, 5, 300), torch.float32)
    check_probe(others[0], row, others[1])
    check_probe(row, others[0], others[1])
    out = weighted_sum(row, others, (0.5, 0.25))
    assert_close(out, weighted_sum_reference(row, others, (0.5, 0.25)), (row, *others))


def check_weighted_sum(layout: str, count: int, based: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, *snapshots = make(layout, count + 1, shape, dtype)
    weights = [0.7 - 0.35 * index for index in range(count)]
    assert triton_runs(snapshots[0])
    actual = weighted_sum(base if based else None, snapshots, weights)
    expected = weighted_sum_reference(base if based else None, snapshots, weights)
    assert actual.stride() == expected.stride()
    assert_close(actual, expected, (base, *snapshots))


def check_store_scaled(layout: str, shape: tuple[int, ...], based: bool, dtype: torch.dtype) -> None:
    """The scale and the bytes of the reference.

    The interpreter loses the carry where rounding leads to the next power of two (triton 3.9, interpreter.py,
    _convert_float): its result is then half of the right one, and those elements are left out.
    """
    value, base, like = make(layout, 3, shape, dtype)
    slot, expected = (torch.empty_strided(shape, like.stride(), dtype=FLOAT8) for _ in range(2))
    scale, expected_scale = torch.empty(2)
    assert triton_runs(value)
    store_scaled(slot, scale, value, base if based else None)
    store_scaled_reference(expected, expected_scale, value, base if based else None)
    assert torch.equal(scale, expected_scale)
    exact = (value.float() - base.float() if based else value.float()) / scale
    carried = (expected.float().abs() > exact.abs()) & (torch.frexp(expected.float())[0].abs() == 0.5)
    same = slot.contiguous().view(torch.uint8) == expected.contiguous().view(torch.uint8)
    near = (slot.float() - expected.float()).abs() <= exact.abs() / 8 + 2**-9  # ties are rounded up, not to even
    assert bool((same | near | carried).all())
    assert float(same.float().mean()) > 0.8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_store_scaled(layout: str, based: bool, dtype: torch.dtype) -> None:
    check_store_scaled(layout, (2, 5, 300), based, dtype)


def test_store_scaled_programs_share_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_PROGRAMS", 2)
    check_store_scaled("dense", (5, 2100), True, torch.float32)
    check_store_scaled("tail-dense", (3, 4, 700), False, torch.bfloat16)


def test_store_scaled_of_exact_numbers() -> None:
    """Every finite number of e4m3 comes back as it was, at a scale that is a power of two."""
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8)
    codes = codes[codes.float().isfinite()]
    slot, scale = torch.empty(codes.shape, dtype=FLOAT8), torch.empty(())
    store_scaled(slot, scale, codes.float() * 2.0**-9 + 5.0, torch.full(codes.shape, 5.0))
    assert float(scale) == 2.0**-9
    assert torch.equal(slot.float(), codes.float())
    out = weighted_sum(torch.zeros(codes.shape), [slot], [2.0], scales=[scale])
    assert torch.equal(out, codes.float() * 2.0**-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
def test_store_flagged(layout: str, based: bool, dtype: torch.dtype) -> None:
    value, base, like = make(layout, 3, (2, 5, 300), dtype)
    slot, expected = (torch.empty_strided(like.shape, like.stride(), dtype=dtype) for _ in range(2))
    flag = torch.zeros(())
    assert store_flagged(slot, flag, value, base if based else None) is flag
    store_residual(expected, value, base if based else None)
    assert_close(slot, expected, (value, base))
    assert flag == 0
    value[1, 3, 77] = float("inf")
    store_flagged(slot, flag, value, base if based else None)
    assert flag.isnan()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2100, 5000])
def test_the_flag_is_set_if_an_element_is_not_finite(poison: float, place: int) -> None:
    value, slot, flag = torch.randn(5001), torch.empty(5001), torch.zeros(())
    value[place] = poison
    store_flagged(slot, flag, value, None)
    assert flag.isnan()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2100, 5000])
def test_the_scale_is_finite_if_all_elements_are(poison: float, place: int) -> None:
    value, slot, scale = torch.randn(5001), torch.empty(5001, dtype=FLOAT8), torch.empty(())
    store_scaled(slot, scale, value, None)
    assert scale.isfinite()
    value[place] = poison
    store_scaled(slot, scale, value, None)
    assert not scale.isfinite()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("count", "based"), [(1, True), (2, True), (2, False), (6, True)])
def test_weighted_sum_of_float8(layout: str, count: int, based: bool, dtype: torch.dtype) -> None:
    base, *snapshots = [tensor.to(FLOAT8) for tensor in make(layout, count + 1, (2, 5, 300), torch.float32)]
    weights, scales = [0.7 - 0.35 * index for index in range(count)], list((0.01 * 2.0 ** torch.arange(count)).unbind())
    first = base.to(dtype)
    actual, expected = torch.empty(2, *first.shape, dtype=dtype)
    weighted_sum(first if based else None, snapshots, weights, actual, scales)
    weighted_sum_reference(first if based else None, snapshots, weights, expected, scales)
    assert_close(actual, expected, (first, *(s.float() * scale for s, scale in zip(snapshots, scales, strict=True))))


@pytest.mark.parametrize("based", [True, False], ids=["base", "no_base"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weighted_sum_of_bfloat16_for_float32(layout: str, based: bool) -> None:
    snapshots = make(layout, 3, (2, 5, 300), torch.bfloat16)
    base = snapshots.pop().float()
    actual, expected = torch.empty_like(base), torch.empty_like(base)
    weighted_sum(base if based else None, snapshots, (2.0, -1.0), actual)
    weighted_sum_reference(base if based else None, snapshots, (2.0, -1.0), expected)
    assert_close(actual, expected, (base, 2 * snapshots[0].float(), snapshots[1].float()))
