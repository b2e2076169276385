"""What a piece does besides returning values, read from AOTAutograd's functional run."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from dit_compile.passes.effects import effects_of
from dit_compile.passes.identity import identity
from dit_compile.passes.plan import Refusal


@torch.library.custom_op("dit_effects::accumulate", mutates_args={"x"})
def accumulate(x: torch.Tensor, y: torch.Tensor) -> None:
    x.add_(y)


@torch.library.custom_op("dit_effects::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw(x: torch.Tensor) -> torch.Tensor:
    return torch.rand_like(x)


@draw.register_fake
def _(x):
    return torch.empty_like(x)


class Drawing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.rand_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def assign(x, y):
    x[1:] = y[1:]
    return x.t()


def fill(x, y):
    new = torch.empty_like(x)
    new.copy_(y)
    return new * 2


def write_a_view(x, y):
    torch.ops.dit_effects.accumulate(x[:2], y=y[:2])
    return y + 1


def attend(x, y):
    q = x.view(1, 1, 4, 16)
    return flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + y[i, j])


def effects(function, capture):
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return function(x, y)

    gm = capture(Model(), torch.randn(4, 16), torch.randn(4, 16))
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    found = effects_of(gm, "piece")
    return found, [names[i].strip("_").removeprefix("l_") for i in found.written]


@pytest.mark.parametrize(
    ("function", "written", "operator"),
    [
        (lambda x, y: accumulate(x, y), ["x"], "dit_effects.accumulate.default"),
        (lambda x, y: torch.ops.dit_effects.accumulate(x, y), ["x"], "dit_effects.accumulate.default"),
        (lambda x, y: torch.ops.dit_effects.accumulate.default(y=x, x=y), ["y"], "dit_effects.accumulate.default"),
        (write_a_view, ["x"], "dit_effects.accumulate.default"),
        (assign, ["x"], "aten.copy_.default"),
        (lambda x, y: torch.add(x, 1, out=y), ["y"], "aten.add.out"),
        (lambda x, y: F.relu(x, inplace=True), ["x"], "aten.relu_.default"),
        (lambda x, y: x.transpose(0, 1).mul_(2), ["x"], "aten.mul_.Tensor"),
        (fill, [], None),
        (lambda x, y: accumulate(x.clone(), y), [], None),
        (lambda x, y: x + y, [], None),
    ],
)
@torch.no_grad()
def test_writes(function, written, operator, capture):
    found, names = effects(lambda x, y: (function(x, y), x + 1, y + 1), capture)
    assert names == written
    assert operator is None or operator in found.writers


@pytest.mark.parametrize(
    ("function", "random"),
    [
        (lambda x, y: F.dropout(x, 0.5), "dropout"),
        (lambda x, y: F.dropout(x, 0.5, training=False), None),
        (lambda x, y: F.dropout(x, 0.0), None),
        (lambda x, y: x + torch.randn_like(x), "randn_like"),
        (lambda x, y: x.clone().uniform_(), "uniform_"),
        (lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None], dropout_p=0.3), "dropout"),
        (lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]), None),
        (lambda x, y: torch.cond(x.sum() > 0, lambda a: a * torch.rand_like(a), lambda a: a * 1.0, (y,)), "rand_like"),
        (lambda x, y: Drawing.apply(x), "rand_like"),
        (lambda x, y: torch.ops.dit_effects.draw(x), "draw"),
        (attend, None),
        (lambda x, y: torch.nn.functional.gumbel_softmax(x), "exponential"),
    ],
)
@torch.no_grad()
def test_random_numbers(function, random, capture):
    found, written = effects(lambda x, y: (function(x, y),), capture)
    assert written == []
    assert (found.random is None) == (random is None)
    assert random is None or random in found.random


@torch.no_grad()
def test_views_need_no_code(capture):
    assert effects(lambda x, y: (x.view(-1), y.chunk(2)[0]), capture)[0].only_views
    assert not effects(lambda x, y: (x.view(-1), y + 1), capture)[0].only_views
    assert not effects(lambda x, y: (x.view(-1), y.mul_(2)), capture)[0].only_views


def reduced(group):
    """A piece that sums its input over the ranks of ``group``, as TorchDynamo writes it."""
    collectives = pytest.importorskip("torch.distributed._functional_collectives")
    assert collectives is not None
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    with FakeTensorMode():
        x.meta["example_value"] = torch.ones(2)
    total = graph.call_function(torch.ops._c10d_functional.all_reduce, (x, "sum", group))
    graph.output((graph.call_function(torch.ops._c10d_functional.wait_tensor, (total,)),))
    return torch.fx.GraphModule({}, graph)


def test_collectives_name_their_group():
    found = effects_of(reduced("tensor_parallel"), "piece")
    assert found.groups == ("tensor_parallel",)
    assert found.written == ()
    nodes = [[n for n in gm.graph.nodes if n.op == "call_function"] for gm in map(reduced, ("a", "a", "b"))]
    one, same, other = (identity(node[0].graph.owning_module, node) for node in nodes)
    assert one == same != other


def test_what_cannot_be_determined_is_refused():
    """No shape is known: nothing can be run."""
    graph = torch.fx.Graph()
    graph.output((graph.call_function(torch.relu, (graph.placeholder("x"),)),))
    with pytest.raises(Refusal, match="what the block writes or draws could not be determined"):
        effects_of(torch.fx.GraphModule({}, graph), "the block")
