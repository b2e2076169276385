"""Which pieces are one piece of code: equal in all that compiled code may depend on, whatever they are called."""

import dataclasses
import enum

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from toys import WIDTH, Block, Toy, build, latents

from dit_compile.passes.effects import effects_of
from dit_compile.passes.find_blocks import find_blocks
from dit_compile.passes.identity import content, describe, identity
from dit_compile.passes.insert_guard import insert_guard
from dit_compile.passes.normalize import normalize
from dit_compile.passes.outline import Outliner
from dit_compile.passes.plan_region import plan_region

INPUTS = (latents(), torch.full((2,), 500.0))


def pieces_of(make, capture):
    """For each block of a model whose block ``i`` is ``make(i)``, the name of its piece."""

    class Model(Toy):
        def make_block(self, index, width):
            return make(index)

    gm = normalize(capture(build(Model), *INPUTS))
    plan = plan_region(gm, find_blocks(gm), front=1, back=0, scope="chain")
    outliner = Outliner()
    outliner.outline(insert_guard(gm, plan))
    for name, piece in outliner.pieces.items():
        effects_of(piece, name)
    piece_of = {use: piece for piece, uses in outliner.uses().items() for use in uses}
    return [piece_of[f"blocks.{i}"] for i in range(6)]


class Inner(Block):
    """A block with ``body(x)`` around its stream."""

    def __init__(self, body):
        super().__init__(WIDTH)
        self.body = body

    def forward(self, x, temb):
        return super().forward(x, temb) + self.body(x)


def cond(add):
    return lambda x: torch.cond(x.sum() > 0, lambda a: a + add, lambda a: a * 1.0, (x,))


def nested_cond(add):
    def outer(a):
        return torch.cond(a.sum() > 1, lambda b: b * add, lambda b: b * 1.0, (a,))

    return lambda x: torch.cond(x.sum() > 0, outer, lambda a: a * 1.0, (x,))


def mapped(add):
    return lambda x: torch._higher_order_ops.map(lambda row: row * add, x)


def scanned(add):
    def combine(carry, row):
        return carry + row * add, carry * 1.0

    return lambda x: torch._higher_order_ops.scan(combine, x[:, 0].contiguous(), x.transpose(0, 1))[0][:, None]


def flex(add):
    def score(s, b, h, q, k):
        return s + add * (q - k)

    return lambda x: flex_attention(x[:, None], x[:, None], x[:, None], score_mod=score)[:, 0]


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, add):
        return x * add

    @staticmethod
    def backward(ctx, grad):
        return grad, None


BODIES = {
    "constant": lambda add: lambda x: x * add,
    "cond": cond,
    "cond in cond": nested_cond,
    "map": mapped,
    "scan": scanned,
    "flex_attention": flex,
    "autograd.Function": lambda add: lambda x: Function.apply(x, add),
    "dtype": lambda add: lambda x: x.to(torch.float64 if add == 1.0 else torch.float16).float(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_blocks_that_differ_inside_are_apart_and_others_together(body, capture):
    pieces = pieces_of(lambda i: Inner(body(1.0 if i % 2 else 0.5)), capture)
    assert pieces == [pieces[0], pieces[1]] * 3
    assert pieces[0] != pieces[1]


def test_blocks_that_share_a_module(capture):
    """One weight for all, or two that take turns: wiring to an input is no difference, reading one input twice is."""
    shared, others = nn.Linear(WIDTH, WIDTH), [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
    assert len(set(pieces_of(lambda i: Inner(shared), capture))) == 1
    assert len(set(pieces_of(lambda i: Inner(others[i % 2]), capture))) == 1
    both = [lambda x: others[0](others[0](x)), lambda x: others[1](others[0](x))]
    pieces = pieces_of(lambda i: Inner(both[i % 2]), capture)
    assert pieces[0] != pieces[1]


def test_triton_kernels_are_known_by_kernel_and_constants():
    """Dynamo numbers the constants of every call anew."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation

    def call(kernel, **constants):
        graph = torch.fx.Graph()
        kwargs = {
            "kernel_idx": kernel_side_table.add_kernel(kernel),
            "constant_args_idx": kernel_side_table.add_constant_args(constants),
            "grid": [(1, 1, 1)], "tma_descriptor_metadata": {}, "kwargs": {"x": graph.placeholder("x")},
        }  # fmt: skip
        node = graph.call_function(triton_kernel_wrapper_mutation, (), kwargs)
        return identity(torch.fx.GraphModule({}, graph), [node])

    def one():
        pass

    def two():
        pass

    assert call(one, BLOCK=64) == call(one, BLOCK=64)
    assert call(one, BLOCK=64) != call(one, BLOCK=128)
    assert call(one, BLOCK=64) != call(two, BLOCK=64)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    size: int
    names: list


def test_content():
    numbers = [1, 1.0, True, 0.0, -0.0, float("nan")]
    distinct = [*numbers, "1", None, (1,), [1], {1: 2}, slice(1), Colour.RED, torch.float32]
    assert len({content(value) for value in distinct}) == len(distinct)
    assert content(Settings(1, [2])) == content(Settings(1, [2])) != content(Settings(1, [3]))
    assert content(float("nan")) == content(float("nan"))
    tensor = torch.ones(2)
    assert content(tensor) == content(tensor) != content(torch.ones(2))
    assert content(test_content) == content(test_content) != content(lambda: None)


class Wrapped(torch.Tensor):
    """A tensor subclass with a context, as quantized weights are."""

    def __new__(cls, data, context):
        new = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)
        new.data_, new.context = data, context
        return new

    def __tensor_flatten__(self):
        return ["data_"], self.context

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError

    def __repr__(self):
        return "always the same"


class Opaque:
    def __repr__(self):
        return "always the same"


def test_subclasses_are_described_by_inner_tensors_and_context():
    def described(dtype=torch.float32, context=None, shape=(2, 3)):
        return describe(Wrapped(torch.ones(shape, dtype=dtype), context))

    assert described(context=Settings(1, [])) == described(context=Settings(1, []))
    assert described(context=Settings(1, [])) != described(context=Settings(2, []))
    assert described(context=Opaque()) != described(context=Opaque())
    assert described() != described(dtype=torch.float16)
    assert described() != described(shape=(3, 2))


def test_layouts():
    x = torch.ones(2, 3, 4)
    assert describe(x) == describe(torch.zeros(2, 3, 4))
    assert describe(x) != describe(x.double())
    assert describe(x) != describe(torch.ones(3, 2, 4).transpose(0, 1))
    assert describe(torch.ones(5, 1)[:4]) == describe(torch.ones(1, 4).t())  # the stride of a single element
    z = torch.ones(2, dtype=torch.complex64)
    assert describe(z) != describe(z.conj())
