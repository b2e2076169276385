"""Whatever changes in a repeated block between two generations is seen: the second runs the block as it is then."""

import copy

import pytest
import torch
import toys
from torch import nn

import dit_compile

STEPS = 4


class Processor:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, x):
        return torch.tanh(x * self.scale)


class Sharper(Processor):
    def __call__(self, x):
        return torch.sin(x * self.scale)


class Block(toys.Block):
    """Has a processor, a plain attribute, a list and a dictionary of numbers."""

    def __init__(self, width=toys.WIDTH):
        super().__init__(width)
        self.processor, self.mode, self.gains, self.scaling = Processor(), "plain", [1.0, 2.0], {"a": 1.0}

    def forward(self, x, temb):
        y = self.processor(super().forward(x, temb)) * self.scaling["a"]
        return y * self.gains[0] if self.mode == "plain" else y - self.gains[1]


class Model(toys.Toy):
    def make_block(self, index, width):
        return Block(width)


class Low(nn.Module):
    """A linear layer with an adapter, as LoRA puts it in the layer's place."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(toys.WIDTH, 2), nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def put(block, **attributes):
    for name, value in attributes.items():
        setattr(block, name, value)


def negative(module, args, output):
    return -output


CHANGES = {
    "eps": lambda block: put(block.norm, eps=0.5),
    "processor": lambda block: put(block, processor=Sharper()),
    "attribute of a processor": lambda block: put(block.processor, scale=3.0),
    "text": lambda block: put(block, mode="other"),
    "item of a list": lambda block: block.gains.__setitem__(0, 0.25),
    "item of a dictionary": lambda block: block.scaling.update(a=0.5),
    "hook on a layer": lambda block: block.up.register_forward_hook(negative),
    "hook on the block": lambda block: block.register_forward_hook(negative),
    "layer": lambda block: put(block, up=nn.Linear(toys.WIDTH, 2 * toys.WIDTH)),
    "adapter": lambda block: put(block, up=Low(block.up)),
    "activation": lambda block: block.add_module("norm", nn.Identity()),
    "new parameters": lambda block: put(block.up, weight=nn.Parameter(block.up.weight * 2)),
    "no bias": lambda block: put(block.up, bias=None),
    "forward of a layer": lambda block: put(block.up, forward=lambda x: nn.functional.linear(x, -block.up.weight)),
    "values in place": lambda block: block.up.weight.mul_(2),
}


def generation(model):
    return [
        model(toys.moved(step), torch.tensor([float(t)])) for step, t in enumerate(range(1000, 1000 - 20 * STEPS, -20))
    ]


def equal(got, wanted):
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["one", pytest.param("all", marks=pytest.mark.slow)])
@torch.no_grad()
def test_change(change, which):
    torch.manual_seed(0)
    model = toys.build(Model)
    compiled = dit_compile.compile(copy.deepcopy(model), inner="eager", residual_diff_threshold=0, strict=True)
    equal(generation(compiled), generation(model))
    for number in [3] if which == "one" else range(len(model.blocks)):
        for each in (model, compiled):
            torch.manual_seed(1)
            CHANGES[change](each.blocks[number])
    before = [value.clone() for value in generation(compiled)]
    equal(before, generation(model))
    equal(generation(compiled), before)  # and again
    reports = dit_compile.graphs()
    assert all(report.refusal is None and report.guards[1] < report.guards[0] for report in reports)
    assert len(reports) == (1 if change in ("values in place", "new parameters") else 2)


@torch.no_grad()
def test_requires_grad_is_seen():
    model = dit_compile.compile(toys.build(Model), inner="eager")
    generation(model)
    model.requires_grad_(False)
    generation(model)
    generation(model)
    assert len(dit_compile.graphs()) == 2


@torch.no_grad()
def test_dtype_is_seen():
    model = toys.build(toys.Toy)
    compiled = dit_compile.compile(copy.deepcopy(model), inner="eager", residual_diff_threshold=0)
    generation(compiled)
    for each in (model, compiled):
        each.blocks.to(torch.float64)
        each.embed.to(torch.float64)
        each.head.to(torch.float64)
    for t in (1000.0, 900.0):
        x, t = toys.latents().double(), torch.tensor([t])
        with pytest.raises(RuntimeError):  # the time embedding is float32, as it is for the plain model
            model(x, t)
        with pytest.raises(RuntimeError):
            compiled(x, t)


@torch.no_grad()
def test_back_and_forth_compiles_nothing_new():
    """An adapter that is switched on and off: two graphs, however often."""
    model = toys.build(Model)
    compiled = dit_compile.compile(copy.deepcopy(model), inner="eager", residual_diff_threshold=0)
    plain = [block.up for block in model.blocks]
    adapted = [Low(up) for up in plain]
    ours = copy.deepcopy((plain, adapted))
    for turn in range(4):
        for each, layers in ((model, (plain, adapted)), (compiled, ours)):
            for block, layer in zip(each.blocks, layers[turn % 2], strict=True):
                block.up = layer
        equal(generation(compiled), generation(model))
    assert len(dit_compile.graphs()) == 2


@torch.no_grad()
def test_numbers_of_adapters_become_operands():
    """With the first new value a second graph, which serves all others; never a wrong result."""
    model = toys.build(Model)
    compiled = dit_compile.compile(copy.deepcopy(model), inner="eager", residual_diff_threshold=0, strict=True)
    for number, weight in enumerate((1.0, 0.5, 0.25, 0.8, 0.9, 0.7)):
        for each in (model, compiled):
            for place, block in enumerate(each.blocks):
                block.scaling["a"] = weight + (0.01 * place if number > 3 else 0)
        torch.testing.assert_close(generation(compiled), generation(model), rtol=1e-6, atol=1e-6)
        count = len(dit_compile.graphs())
        assert count <= 2
    assert count == len(dit_compile.graphs())


@torch.no_grad()
def test_a_model_that_never_rests_keeps_its_guards(caplog):
    model = dit_compile.compile(toys.build(Model), inner="eager")
    for number in range(6):
        model.blocks[1].mode = f"mode {number}"
        generation(model)
    assert "Dynamo's guards watch them" in caplog.text
    last = dit_compile.graphs()[-1]
    assert last.guards[0] == last.guards[1]


@torch.no_grad()
def test_models_of_one_class_share_code_only_if_alike():
    first, second, other = toys.build(Model), toys.build(Model, 1), toys.build(Model, 2)
    other.blocks[2].norm.eps = 0.5
    for model in (first, second, other):
        wanted = generation(model)
        equal(generation(dit_compile.compile(model, inner="eager", residual_diff_threshold=0)), wanted)
    assert len(dit_compile.graphs()) == 2
    assert [len(dit_compile.stats(model)) for model in (first, second, other)] == [1, 1, 1]


@torch.no_grad()
def test_watch_false_keeps_guards():
    model = dit_compile.compile(toys.build(Model), inner="eager", watch=False)
    generation(model)
    assert dit_compile.graphs()[0].guards is None
    model.blocks[1].mode = "other"
    generation(model)
    assert len(dit_compile.graphs()) == 2
