"""Digests of weights: equal for equal weights, whatever the order; other ones after a change, of whatever kind."""

import copy

import pytest
import torch
from toys import Toy, build

from dit_compile.runtime.weights_digest import weights_digest, weights_state


def digest(model):
    return weights_digest([*model.parameters(), *model.buffers()])


def test_equal_weights_in_any_order():
    one, other = build(Toy), build(Toy)
    assert digest(one) == digest(other) == weights_digest(list(reversed(list(other.parameters()))))
    assert len(digest(one)) == 64
    assert weights_digest([]) == weights_digest([])


CHANGES = {
    "written": lambda model: model.blocks[2].up.weight.data.mul_(1.01),
    "replaced": lambda model: setattr(model.blocks[2].up, "weight", torch.nn.Parameter(torch.zeros(32, 16))),
    "dtype": lambda model: model.to(torch.bfloat16),
    "added": lambda model: model.register_parameter("more", torch.nn.Parameter(torch.zeros(3))),
    "not a number": lambda model: model.blocks[0].up.bias.data.fill_(float("nan")),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_weights(change):
    model, other = build(Toy), build(Toy)
    CHANGES[change](other)
    assert digest(other) != digest(model) and digest(copy.deepcopy(other)) == digest(other)


@torch.no_grad()
def test_what_needs_a_new_digest():
    model = build(Toy)
    tensors = list(model.parameters())
    before = weights_state(tensors)
    assert weights_state(tensors) == before
    tensors[3].mul_(1.01)
    written = weights_state(tensors)
    tensors[3].data = tensors[3].data.clone()
    assert len({before, written, weights_state(tensors)}) == 3


@torch.no_grad()
def test_quantised_weights():
    """They are tensors that are made of others."""
    quantization = pytest.importorskip("torchao.quantization")
    plain, one, other = build(Toy), build(Toy), build(Toy)
    for model in (one, other):
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert digest(one) == digest(other) != digest(plain)
    tensors = list(one.parameters())
    assert weights_state(tensors) == weights_state(tensors)
