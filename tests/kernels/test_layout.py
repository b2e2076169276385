"""The rows that the Triton kernels walk, checked by writing out every address."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_compile.kernels import layout as layout_module
from dit_compile.kernels.layout import Layout, collapse, common_layout


def addresses(layout: Layout, operand: int) -> list[int]:
    """The addresses in the order in which the kernels visit them."""
    rows = [
        sum(index * stride for index, stride in zip(reversed(indices), layout.strides[operand], strict=True))
        for indices in itertools.product(*(range(size) for size in reversed(layout.sizes)))
    ]
    return [row + column for row in rows for column in range(layout.inner)]


def collapsed(*tensors: Tensor) -> Layout | None:
    return collapse(tuple(tensors[0].shape), tuple(tensor.stride() for tensor in tensors))


def test_dense_tensors_are_one_row() -> None:
    dense = torch.empty(2, 300, 4)
    assert common_layout(dense, [dense, dense]) == Layout(2400, (), ((), (), ()))
    assert collapsed(dense, dense) == Layout(2400, (), ((), ()))
    permuted = torch.empty(2, 300, 4).permute(2, 0, 1)
    assert common_layout(permuted, [permuted]) == Layout(2400, (), ((), ()))
    assert collapsed(torch.empty(1, 1)) == Layout(1, (), ((),))


def test_image_tokens_behind_text_tokens_are_one_row_per_batch() -> None:
    tokens, dense = torch.empty(2, 512 + 64, 128)[:, 512:], torch.empty(2, 64, 128)
    assert common_layout(dense, [tokens]) == Layout(64 * 128, (2,), ((64 * 128,), (576 * 128,)))
    assert common_layout(tokens[:1], [dense[:1]]) == Layout(64 * 128, (), ((), ()))  # one image: dense after all


def test_what_needs_a_copy_first() -> None:
    dense = torch.empty(2, 512, 512)
    assert collapsed(dense, dense.transpose(1, 2)) is None  # no common consecutive elements
    assert collapsed(torch.empty(512, 8), torch.empty(512, 16)[:, :8]) is None  # rows too short
    assert collapsed(dense[:1].expand(2, 512, 512), dense) is None  # written elements overlap
    assert collapsed(dense, dense[:1].expand(2, 512, 512)) is not None  # reading them twice is fine


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    orders=st.lists(st.permutations(range(4)), min_size=1, max_size=3),
    padding=st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=3, max_size=3),
)
def test_rows_visit_matching_elements(shape: list[int], orders: list[list[int]], padding: list[list[int]]) -> None:
    tensors = []
    for order, pad in zip(orders, padding, strict=False):
        order = [dim for dim in order if dim < len(shape)]
        stored = torch.empty([shape[dim] + pad[dim] for dim in order])
        view = stored.permute([order.index(dim) for dim in range(len(shape))])
        tensors.append(view[tuple(slice(size) for size in shape)])
    shortest, layout_module.SHORTEST_ROW = layout_module.SHORTEST_ROW, 1
    try:
        found = collapse.__wrapped__(tuple(shape), tuple(tensor.stride() for tensor in tensors))
    finally:
        layout_module.SHORTEST_ROW = shortest
    if found is None:
        return
    indices = list(itertools.product(*(range(size) for size in shape)))
    expected = {
        tuple(sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for tensor in tensors)
        for index in indices
    }
    visited = list(zip(*(addresses(found, operand) for operand in range(len(tensors))), strict=True))
    assert len(visited) == len(indices) and set(visited) == expected
