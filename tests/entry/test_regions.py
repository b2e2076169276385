"""Blocks marked as regions: traced once for each kind, with the results of the plain model bit for bit."""

import copy
import enum
import inspect
import pickle

import pytest
import torch
import toys
from torch import nn

import dit_compile
from dit_compile.entry.regions import mark, unmark

DEPTH = 6


class Calls(toys.Toy):
    """Hands its blocks what ``arguments`` gives; the other traits come from the block."""

    block = toys.Block

    def make_block(self, index, width):
        return self.block(width)

    def arguments(self, index, h, temb):
        return (h, temb), {}

    def forward(self, x, t):
        temb, h = toys.timestep_embedding(t), self.embed(x)
        for index, block in enumerate(self.blocks):
            args, kwargs = self.arguments(index, h, temb)
            out = block(*args, **kwargs)
            h = out if isinstance(out, torch.Tensor) else out["h"] if isinstance(out, dict) else out[0]
        return self.head(h)


class Keywords(Calls):
    class block(toys.Block):
        def forward(self, h, *, temb, rotary, scale=1.0, flag=None, extra=None):
            return super().forward(h * rotary[0] + rotary[1][0], temb) * scale * (1 if extra is None else extra["e"])

    def arguments(self, index, h, temb):
        rotary = (temb.cos()[:, None], [temb.sin()[:, None]])
        return (h,), dict(temb=temb, rotary=rotary, scale=0.5, flag=True, extra={"e": temb.mean()})


class NumberedKeys(Calls):
    """A dictionary whose keys are no names: what a region cannot take apart."""

    class block(toys.Block):
        def forward(self, h, streams):
            return super().forward(h + streams.get(1, 0 * h).mean(), streams["c"])

    def arguments(self, index, h, temb):
        return (h, {1: temb, "c": temb.sin()}), {}


class Mode(enum.IntEnum):
    OFF, ON = 0, 1


class Enumeration(Calls):
    """An argument that is a number, and more than that."""

    class block(toys.Block):
        def forward(self, h, temb, mode):
            return super().forward(h, temb) * (2 if mode is Mode.ON else 1)

    def arguments(self, index, h, temb):
        return (h, temb, Mode.ON), {}


class Sizes(Calls):
    """Every block gets a size, which is a symbol where shapes are dynamic."""

    class block(toys.Block):
        def forward(self, h, temb, tokens):
            return super().forward(h[:, : tokens - 1], temb).sum(1, keepdim=True) + h

    def arguments(self, index, h, temb):
        return (h, temb, h.shape[1]), {}


class SameTensorTwice(Calls):
    """The first and third block get one tensor for two arguments, the others two."""

    class block(toys.Block):
        def forward(self, a, b, temb):
            return super().forward(a - 0.5 * b, temb)

    def arguments(self, index, h, temb):
        return (h, h if index in (0, 2) else h.flip(1), temb), {}


class NumberOfEach(Calls):
    """Every block gets numbers and a text of its own."""

    class block(toys.Block):
        def forward(self, h, temb, shift, gain, name):
            return super().forward(h.roll(shift, 1), temb) * gain if name == "odd" else super().forward(h, temb) + shift

    def __init__(self):
        super().__init__()
        self.shifts, self.gains = [0, 1, 1, 2, 2, 3], [1.0, 0.5, 0.5, 0.25, 0.25, 2.0]

    def arguments(self, index, h, temb):
        return (h, temb, self.shifts[index], self.gains[index], "odd" if index % 2 else "even"), {}


class Attributes(Calls):
    """One block differs in a number that it has itself."""

    class block(toys.Block):
        gain = 1.0

        def forward(self, h, temb):
            return super().forward(h, temb) * self.gain

    def make_block(self, index, width):
        block = super().make_block(index, width)
        block.gain = 2.0 if index == 3 else 1.0
        return block


class Hooks(Calls):
    """One layer of one block has a hook, which Dynamo does not guard."""

    def make_block(self, index, width):
        block = super().make_block(index, width)
        if index == 3:
            block.up.register_forward_hook(lambda module, args, output: output * 2)
        return block


class Tied(Calls):
    """Some blocks share a layer, some share an activation, and each has a number of its own."""

    class block(toys.Block):
        number = 0

        def forward(self, h, temb):
            return super().forward(self.act(h) * (1 + self.number), temb)

    def __init__(self):
        super().__init__()
        for index, block in enumerate(self.blocks):
            block.number, block.act = index % 2, torch.tanh if index in (0, 1, 4) else torch.sin
            if index < 4:
                block.shift = self.blocks[0].shift


class TwoViews(Calls):
    """Returns two views of one tensor."""

    class block(toys.Block):
        def forward(self, h, temb):
            both = torch.cat([super().forward(h, temb), h], 1)
            return both[:, : h.shape[1]], both[:, h.shape[1] :]


class Untouched(Calls):
    """Returns one of its inputs as it is."""

    class block(toys.Block):
        def forward(self, h, temb):
            return super().forward(h, temb), temb


class InPlace(Calls):
    class block(toys.Block):
        def forward(self, h, temb):
            h = h.clone()
            h += super().forward(h, temb)
            return h


class Transposed(Calls):
    """Returns a tensor that lies otherwise in memory than what it got."""

    class block(toys.Block):
        def forward(self, h, temb):
            return super().forward(h, temb).transpose(0, 1).contiguous().transpose(0, 1)


class Dictionary(Calls):
    """Returns what a region cannot: traced block by block."""

    class block(toys.Block):
        def forward(self, h, temb):
            return {"h": super().forward(h, temb)}


class NestedLists(Calls):
    """Blocks with a list of layers of one class inside."""

    class block(toys.Block):
        def __init__(self, width):
            super().__init__(width)
            self.inner = nn.ModuleList(toys.Block(width) for _ in range(3))

        def forward(self, h, temb):
            for inner in self.inner:
                h = inner(h, temb)
            return super().forward(h, temb)


KINDS = {
    Keywords: 1, NumberedKeys: None, Enumeration: None, Sizes: 1,
    SameTensorTwice: 2, NumberOfEach: None, Attributes: 2, Hooks: 2, TwoViews: None,
    Untouched: 1, InPlace: 1, Tied: None, Transposed: None, Dictionary: None, NestedLists: 1,
}  # fmt: skip


def generation(model, batch=2, tokens=5):
    return [model(toys.latents(batch, tokens), torch.tensor([float(t)] * batch)) for t in (1000, 900, 800)]


@pytest.mark.parametrize("cls", KINDS)
@torch.no_grad()
def test_results_and_blocks(cls):
    model = toys.build(cls)
    wanted = generation(model)
    compiled = dit_compile.compile(copy.deepcopy(model), inner="eager", residual_diff_threshold=0, strict=True)
    for got, want in zip(generation(compiled), wanted, strict=True):
        assert torch.equal(got, want)
    (report,) = dit_compile.graphs()
    assert report.refusal is None and len(report.blocks) == DEPTH


@pytest.mark.parametrize("cls", [cls for cls, kinds in KINDS.items() if kinds])
@torch.no_grad()
def test_each_kind_is_traced_once(cls):
    graphs = []
    model = toys.build(cls)
    assert mark(model) == DEPTH
    torch.compile(model, backend=lambda gm, inputs: graphs.append(gm) or gm.forward)(toys.latents(), torch.ones(2))
    (graph,) = graphs
    calls = [node for node in graph.graph.nodes if "invoke_subgraph" in str(node.target)]
    assert len(calls) + sum(1 for _ in graph.children()) >= DEPTH
    assert len({node.args[0].target for node in calls}) <= KINDS[cls]


@pytest.mark.parametrize("cls", [Keywords, Sizes])
@torch.no_grad()
def test_dynamic_shapes(cls):
    model = toys.build(cls)
    compiled = dit_compile.compile(
        copy.deepcopy(model), dynamic=True, inner="eager", residual_diff_threshold=0, strict=True
    )
    for tokens in (5, 7, 9):
        for got, want in zip(generation(compiled, 2, tokens), generation(model, 2, tokens), strict=True):
            torch.testing.assert_close(got, want)
    assert len(dit_compile.graphs()) == 1


@torch.no_grad()
def test_through_inductor_with_reuse():
    """The same decisions and results with regions and without."""
    results = []
    for regions in (True, False):
        torch._dynamo.reset()
        model = dit_compile.compile(toys.build(TwoViews), regions=regions, policy="mask", step_mask="1101")
        results.append([model(toys.moved(step), torch.tensor([1000.0 - step] * 2)) for step in range(4)])
        assert [step.action for step in dit_compile.stats(model)[-1].steps] == ["compute"] * 2 + ["reuse", "compute"]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_marked_blocks_are_what_they_were():
    model = toys.build(Keywords)
    cls = type(model.blocks[0])
    mark(model)
    block = model.blocks[0]
    assert isinstance(block, cls) and type(block).__name__ == cls.__name__ and type(block).__doc__ == cls.__doc__
    assert inspect.signature(block.forward) == inspect.signature(cls.forward.__get__(block))
    assert type(copy.deepcopy(block)) is cls and type(pickle.loads(pickle.dumps(model.head))) is nn.Linear
    assert type(pickle.loads(pickle.dumps(toys_block()))) is toys.Block
    mark(model)
    assert mark(model) == DEPTH
    unmark(model)
    assert type(block) is cls


def toys_block():
    model = toys.build(toys.Toy)
    mark(model)
    return model.blocks[0]


@torch.no_grad()
def test_a_region_that_fails_costs_no_model(monkeypatch, caplog):
    """An error of torch's own while it traces a region: block by block then, with one message."""
    from torch._dynamo.variables import invoke_subgraph

    def fail(*args, **kwargs):
        raise RuntimeError("subgraph_reuse: unsupported guard type 'NEW_ONE'")

    monkeypatch.setattr(invoke_subgraph, "build_reuse_condition", fail)
    model = toys.build(toys.Toy)
    wanted = generation(model)
    compiled = dit_compile.compile(model, inner="eager", residual_diff_threshold=0)
    for got, want in zip(generation(compiled), wanted, strict=True):
        assert torch.equal(got, want)
    assert caplog.text.count("traced block by block") == 1
    assert dit_compile.graphs()[0].refusal is None


@torch.no_grad()
def test_an_error_of_the_model_is_raised_once():
    class Wrong(toys.Toy):
        calls = 0

        def forward(self, x, t):
            return super().forward(x[..., :3], t)

    model = dit_compile.compile(toys.build(Wrong), inner="eager")
    with pytest.raises(Exception, match=r"mat1 and mat2|size"):
        model(toys.latents(), torch.ones(2))
