"""The registered operators: `torch.library.opcheck`, and tracing by torch.compile."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dit_compile.kernels.probe import probe
from dit_compile.kernels.storage import FLOAT8
from dit_compile.kernels.store import store_residual, store_scaled
from dit_compile.kernels.weighted_sum import weighted_sum

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("probe", (torch.randn(2, 6), torch.randn(2, 6), torch.randn(2, 6))),
    ("probe", (torch.randn(6, 2).t().bfloat16(), None, torch.randn(2, 6).bfloat16())),
    ("probe", (torch.randn(2, 9, 4)[:, 3:], torch.randn(2, 6, 4), None)),
    ("weighted_sum", (torch.randn(2, 6), [torch.randn(2, 6), torch.randn(6, 2).t()], [0.5, 2.0])),
    ("weighted_sum", (None, [torch.randn(2, 6).half()], [1.0])),
    ("weighted_sum_out", (torch.empty(6, 2).t(), torch.randn(2, 6), [torch.randn(2, 6)], [0.5])),
    ("store_residual", (torch.empty(2, 6), torch.randn(2, 6), torch.randn(2, 6))),
    ("store_residual", (torch.empty(6, 2).t(), torch.randn(2, 6), None)),
    ("store_scaled", (torch.empty(2, 6).to(FLOAT8), torch.empty(()), torch.randn(2, 6), torch.randn(2, 6))),
    ("weighted_sum", (torch.randn(2, 6), [torch.randn(2, 6).to(FLOAT8)], [0.5], [torch.ones(())])),
    ("weighted_sum_out", (torch.empty(2, 6), None, [torch.randn(2, 6).to(FLOAT8)], [0.5], [torch.ones(())])),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CALLS)])
def test_opcheck(name: str, arguments: tuple[Any, ...]) -> None:
    tests: Any = "ALL"
    if FLOAT8 in {tensor.dtype for tensor in tree_leaves(arguments) if isinstance(tensor, Tensor)}:
        tests = ("test_faketensor", "test_autograd_registration")  # the others compare tensors, and cannot these
    torch.library.opcheck(getattr(torch.ops.dit_cache, name).default, arguments, test_utils=tests)


def test_operators_do_what_the_host_functions_do() -> None:
    value, entry, previous = torch.randn(3, 4, 8).unbind()
    for actual, expected in zip(
        torch.ops.dit_cache.probe(value, entry, previous), probe(value, entry, previous), strict=True
    ):
        assert torch.equal(actual, expected)
    expected = weighted_sum(value, [entry, previous], [0.5, -1.0])
    assert torch.equal(torch.ops.dit_cache.weighted_sum(value, [entry, previous], [0.5, -1.0]), expected)
    out = torch.empty_like(value)
    assert torch.ops.dit_cache.weighted_sum_out(out, value, [entry, previous], [0.5, -1.0]) is None
    assert torch.equal(out, expected)
    slots, scales = torch.zeros(2, 4, 8).to(FLOAT8), torch.zeros(2)
    torch.ops.dit_cache.store_scaled(slots[0], scales[0], value, entry)
    store_scaled(slots[1], scales[1], value, entry)
    assert torch.equal(slots[0].float(), slots[1].float()) and torch.equal(*scales) and float(scales[0]) > 0
    expected = weighted_sum(value, [slots[0]], [0.5], scales=[scales[0]])
    assert torch.equal(torch.ops.dit_cache.weighted_sum(value, [slots[0]], [0.5], [scales[0]]), expected)
    with pytest.raises(ValueError, match="differ in shape"):
        torch.ops.dit_cache.probe(value, entry[:1], None)


@pytest.mark.parametrize("through", ["operators", "host functions"])
def test_tracing(through: str) -> None:
    """Both ways give one graph; the operators stay opaque in it, the host functions dissolve into the reference."""
    ops: Any = torch.ops.dit_cache

    def step(value: Tensor, entry: Tensor, previous: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if through == "operators":
            residual, sums = ops.probe(value, entry, previous)
            ops.store_residual(slot, value, entry)
            return residual, sums, ops.weighted_sum(entry, [residual, previous], [2.0, -1.0])
        residual, sums = probe(value, entry, previous)
        store_residual(slot, value, entry)
        return residual, sums, weighted_sum(entry, [residual, previous], [2.0, -1.0])

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for width in (8, 24):  # the second size makes the graph symbolic
        operands = torch.randn(3, 4, width).unbind()
        eager_slot, slot = torch.empty(4, width), torch.empty(4, width)
        for actual, expected in zip(compiled(*operands, slot), step(*operands, eager_slot), strict=True):
            torch.testing.assert_close(actual, expected)
        assert torch.equal(slot, eager_slot)
