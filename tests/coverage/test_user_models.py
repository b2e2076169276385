"""Models as users change them: blocks are found however they are called, or the graph is refused with the reason."""

import functools
import re
from dataclasses import fields

import pytest
import torch
from examine import ALTERNATING, examine
from registry import registered
from specs import Model
from tiers import slow_unless
from torch import nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from toys import WIDTH, Block, LongSkips, latents, timestep_embedding

import dit_compile

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = [(latents() + 0.2 * i * latents(seed=1), torch.full((2,), 900.0 - 100 * i)) for i in range(3)]
NOTICED = 0.05  # a reused step differs from a computed one by more


def names(*numbers, path="blocks"):
    return tuple(f"{path}.{number}" for number in numbers)


class Plain(nn.Module):
    """embed -> blocks -> head; subclasses say how the blocks are kept (``prepare``) and what is called (``steps``).

    ``found`` are the names the backend should give (empty: any), ``base`` what a forecast is added to, ``parts`` is
    what eager code gives around the calls that are skipped.
    """

    found, base, block = names(*range(6)), "entry", Block

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(self.block() for _ in range(6))
        self.prepare()

    def prepare(self):
        pass

    def steps(self):
        return list(self.blocks)

    def start(self, x, t):
        return self.embed(x), timestep_embedding(t).to(x.dtype)

    def forward(self, x, t):
        h, temb = self.start(x, t)
        for step in self.steps():
            h = step(h, temb)
        return self.head(h)

    def parts(self, x, t, front):
        """The stream where it enters the skipped calls and where it leaves them."""
        h, temb = self.start(x, t)
        stream = [h := step(h.clone(), temb) for step in self.steps()]
        return stream[front - 1], stream[-1]


def closure(block):
    return lambda h, temb: block(h, temb)


class Closures(Plain):
    found = names(*range(6), path="structure")

    def prepare(self):
        self.calls = [closure(block) for block in self.blocks]

    def steps(self):
        return self.calls


class InAClosureOnly(Plain):
    """The model has no such submodules."""

    found = names(*range(6), path="steps.__closure__.0.cell_contents")

    def prepare(self):
        blocks, self.blocks = list(self.blocks), None
        self.steps = lambda: blocks


class HelperFunction(Plain):
    def steps(self):
        def call(block, *args):
            return block(*args)

        return [functools.partial(call, block) for block in self.blocks]


class Partials(Plain):
    def forward(self, x, t):
        h, temb = self.start(x, t)
        for step in [functools.partial(block, temb=temb) for block in self.blocks]:
            h = step(h)
        return self.head(h)


class PartialsOfForward(Closures):
    """Past ``__call__``: Dynamo enters no module."""

    def prepare(self):
        self.calls = [functools.partial(type(block).forward, block) for block in self.blocks]


class CheckpointedInTraining(Plain):
    def steps(self):
        return [functools.partial(checkpoint, block) if self.training else block for block in self.blocks]


class Checkpointed(Plain):
    """Dynamo makes one operation of each block, which hides what is inside."""

    found = ()

    def steps(self):
        return [functools.partial(checkpoint, block, use_reentrant=False) for block in self.blocks]


class Sequential(Plain):
    """One argument per block."""

    class block(Block):
        def forward(self, x, temb=None):
            return x + self.down(gelu(self.up(self.norm(x))))

    def prepare(self):
        self.blocks = nn.Sequential(*self.blocks)

    def start(self, x, t):
        return self.embed(x) + timestep_embedding(t)[:, None], None

    def forward(self, x, t):
        return self.head(self.blocks(self.start(x, t)[0]))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, temb):
        return x + self.out(scaled_dot_product_attention(*self.qkv(self.norm(x)).chunk(3, -1)))


class PeriodOfThree(Plain):
    found = names(*range(9))

    def prepare(self):
        self.blocks = nn.ModuleList([Attention() if i % 3 == 2 else Block() for i in range(9)])


class PeriodOfThreeInClosures(PeriodOfThree):
    """Without names the smallest thing that repeats is the period."""

    found = names(*range(3), path="structure")

    def prepare(self):
        super().prepare()
        self.calls = [closure(block) for block in self.blocks]

    def steps(self):
        return self.calls


class Dictionary(Plain):
    found = names(*range(6), path="structure")

    def prepare(self):
        self.blocks = nn.ModuleDict({f"layer_{i}": block for i, block in enumerate(self.blocks)})

    def steps(self):
        return list(self.blocks.values())


class Attributes(Plain):
    found = names(*range(6), path="structure")

    def prepare(self):
        for i in range(6):
            setattr(self, f"block{i}", Block())

    def steps(self):
        return [getattr(self, f"block{i}") for i in range(6)]


class PythonList(Attributes):
    found = names(*range(6), path="listed")

    def prepare(self):
        super().prepare()
        self.listed = super().steps()

    def steps(self):
        return self.listed


class OneSharedBlock(Plain):
    found = names(*range(6), path="structure")

    def steps(self):
        return [self.blocks[0]] * 6


class TwoSharedBlocks(Plain):
    def prepare(self):
        self.blocks = nn.ModuleList([self.blocks[0], self.blocks[1]] * 3)


class EachTwice(Plain):
    def steps(self):
        return [block for block in self.blocks for _ in range(2)]


class Skipping(Plain):
    found, skipped = names(0, 1, 3, 4, 5), (2,)

    def steps(self):
        return [block for i, block in enumerate(self.blocks) if i not in self.skipped]


class Backwards(Plain):
    found = names(*reversed(range(6)))

    def steps(self):
        return list(reversed(self.blocks))


class Hooks(Plain):
    """The stream is scaled on its way: no residual path leads through, so the value itself is forecast."""

    base = "none"

    def prepare(self):
        self.blocks[2].register_forward_pre_hook(lambda block, args: (args[0] * 1.1, *args[1:]))
        self.blocks[4].register_forward_hook(lambda block, args, out: out + 0.1)


class Parametrized(Plain):
    def prepare(self):
        for block in self.blocks[::2]:
            weight_norm(block.up)
        self.twice = nn.Sequential(nn.Tanh(), nn.Hardtanh())
        nn.utils.parametrize.register_parametrization(self.blocks[3].down, "weight", self.twice)


class PostNorm(Plain):
    class block(Block):
        def forward(self, x, temb):
            return self.norm(x + self.down(gelu(self.up(x) * self.up(temb)[:, None])))


class LongSkipsOfToys(LongSkips):
    """U-shaped, joined by concatenation."""

    found, base, steps = Plain.found, "none", Plain.steps

    def parts(self, x, t, front):
        kept = []
        hook = self.head.register_forward_pre_hook(lambda head, args: kept.append(args[0]))
        self(x, t)
        hook.remove()
        return kept[0], kept[0]


class AddedSkips(Plain):
    """U-shaped: the second half adds what the first half gave, last first."""

    def walk(self, h, temb):
        outs = [self.blocks[0](h, temb)]
        for i, block in enumerate(self.blocks[1:], 1):
            outs.append(block(outs[-1] + outs[5 - i] if i > 3 else outs[-1], temb))
        return outs[0], outs[-1]

    def forward(self, x, t):
        return self.head(self.walk(*self.start(x, t))[1])

    def parts(self, x, t, front):
        return self.walk(*self.start(x, t))


class BlocksCompiledBefore(Plain):
    """What diffusers calls regional compilation."""

    def prepare(self):
        for block in self.blocks:
            block.compile(backend="eager")


class AccelerateHooks(Plain):
    def prepare(self):
        hooks = pytest.importorskip("accelerate.hooks")
        for block in self.blocks:
            hooks.add_hook_to_module(block, hooks.ModelHook())


KINDS = [
    Plain, Closures, InAClosureOnly, HelperFunction, Partials, PartialsOfForward, CheckpointedInTraining, Checkpointed,
    Sequential, PeriodOfThree, PeriodOfThreeInClosures, Dictionary, Attributes, PythonList, OneSharedBlock,
    TwoSharedBlocks, EachTwice, Skipping, Backwards, Hooks, Parametrized, PostNorm, LongSkipsOfToys, AddedSkips,
    BlocksCompiledBefore, AccelerateHooks,
]  # fmt: skip


def build(cls, **changes):
    torch.manual_seed(0)
    return type(cls.__name__, (cls,), changes)().eval().requires_grad_(False)


def compiled(model, fullgraph=True, **options):
    options = {"inner": "eager", "policy": "mask", "forecast": "reuse", "step_mask": "110", **options}
    return torch.compile(model, backend="dit_cache", fullgraph=fullgraph, options=options)


def check(model, dtype=torch.float32):
    """Two computed steps equal eager, the third is what eager makes of the change in the second."""
    fast = compiled(model)
    steps = [(x.to(dtype), t) for x, t in STEPS]
    outs, wanted = [fast(*step) for step in steps], [model(*step) for step in steps]
    torch.testing.assert_close(outs[:2], wanted[:2])
    [report] = dit_compile.graphs()
    assert report.refusal is None
    assert report.blocks == model.found or not model.found
    front = len(model.steps()) // len(report.blocks)  # calls that the first of the found blocks stands for
    (before, after), (entry, _) = (model.parts(*step, front) for step in steps[1:])
    reused = model.head(after if model.base == "none" else entry + (after - before))
    torch.testing.assert_close(outs[2], reused)
    assert (reused - wanted[2]).abs().max() > NOTICED
    assert [stream.base for stream in report.regions[0].streams] == [model.base]


def check_refused(model, reason, caplog, **options):
    """Runs as in eager code and warns, naming the reason."""
    fast = compiled(model, **options)
    for step in STEPS:
        torch.testing.assert_close(seeded(fast, step), seeded(model, step))
    assert dit_compile.graphs() and all(report.refusal is not None for report in dit_compile.graphs())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(re.search(reason, text) for text in warned), f"{warned} of {caplog.text}"


def seeded(model, step):
    torch.manual_seed(1)
    return model(*step)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_blocks_are_found_and_reused_as_in_eager_code(kind):
    check(build(kind))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_half_precision(dtype):
    check(build(Plain).to(dtype), dtype)


@torch.no_grad()
def test_a_model_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        check(build(Plain))


@torch.no_grad()
def test_a_model_has_statistics_and_can_be_reset_even_if_its_blocks_are_in_a_closure_only():
    model = build(InAClosureOnly)
    fast = compiled(model, step_mask="1000")
    for step in STEPS[:2]:
        fast(*step)
    dit_compile.reset(model)
    torch.testing.assert_close(fast(*STEPS[2]), model(*STEPS[2]))
    assert [[step.action for step in s.steps] for s in dit_compile.stats(model)] == [["compute", "reuse"], ["compute"]]


class Noisy(Block):
    def forward(self, x, temb):
        return super().forward(dropout(x, 0.1, self.training), temb)


class Writing(Block):
    def forward(self, x, temb):
        x += self.down(gelu(self.up(self.norm(x)) + self.up(temb)[:, None]))
        return x


WAYS = pytest.mark.parametrize("way", [Plain, Checkpointed], ids=lambda way: way.__name__)


@WAYS
@torch.no_grad()
def test_dropout_that_is_on_is_refused(way, caplog):
    """A checkpoint wrapper hides it from the graph, not from the random numbers of what comes after."""
    check_refused(build(way, block=Noisy).train(), "dropout", caplog)


@WAYS
@torch.no_grad()
def test_blocks_that_write_into_their_input(way):
    check(build(way, block=Writing))


@torch.no_grad()
def test_four_checkpointed_blocks_are_found_or_refused_for_being_checkpointed(caplog):
    model = build(Checkpointed)
    model.blocks = model.blocks[:4]
    torch.testing.assert_close(compiled(model)(*STEPS[0]), model(*STEPS[0]))
    assert dit_compile.graphs()[-1].refusal is None or "checkpoint" in caplog.text, caplog.text


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_layers_of_one_fused_operation_are_refused(fused, caplog, monkeypatch):
    """In eval mode nn.TransformerEncoder calls one operation per layer, too little for a block, unless told not to."""
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", fused)

    class Encoder(Sequential):
        found = names(*range(6), path="blocks.layers")

        def prepare(self):
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, norm_first=True)
            self.blocks = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

        def steps(self):
            return [lambda h, temb, layer=layer: layer(h) for layer in self.blocks.layers]

    if fused:
        check_refused(build(Encoder), r"no chain .*lists of modules seen: blocks\.layers", caplog)
    else:
        check(build(Encoder))


class Undone(Plain):
    @torch.compiler.disable
    def one(self, block, h, temb):
        return block(h, temb)

    def steps(self):
        return [functools.partial(self.one, block) for block in self.blocks]


class Devices(Plain):
    """What accelerate puts on models that are offloaded. Dynamo does not trace it."""

    def prepare(self):
        hooks = pytest.importorskip("accelerate.hooks")
        for block in self.blocks:
            hooks.add_hook_to_module(block, hooks.AlignDevicesHook(execution_device="cpu"))


@torch.no_grad()
@pytest.mark.parametrize("kind", [Undone, Devices], ids=lambda kind: kind.__name__)
def test_a_graph_break_in_every_block_is_named(kind, caplog):
    check_refused(build(kind), "not cached.*(graph break|broke the graph)", caplog, fullgraph=False)


@torch.no_grad()
def test_steps_are_counted_whichever_graph_serves_them():
    """Another set of blocks for a few steps (skip-layer guidance) is another graph, not another generation."""
    model = build(Skipping)
    fast = compiled(model, policy="interval", interval=1)
    for i in range(6):
        model.skipped = (2,) if i in (2, 3) else ()
        step = STEPS[0][0] + 0.1 * i, STEPS[0][1] - i
        torch.testing.assert_close(fast(*step), model(*step))
    assert [[step.index for step in stats.steps] for stats in dit_compile.stats(model)] == [[0, 1, 2, 3, 4, 5]]


@torch.no_grad()
def test_features_that_a_hook_takes_are_forecast_like_the_stream():
    model, taken = build(Plain), {}
    model.blocks[3].register_forward_hook(lambda block, args, out: taken.update(feature=out))
    fast = compiled(model)

    def feature(call, step):
        call(*step)
        return taken["feature"]

    got, wanted = [feature(fast, step) for step in STEPS], [feature(model, step) for step in STEPS]
    torch.testing.assert_close(got[:2], wanted[:2])
    entries = [model.parts(*step, front=1)[0] for step in STEPS]
    torch.testing.assert_close(got[2], entries[2] + (wanted[1] - entries[1]))


class WithLora(Model):
    """LoRA in two blocks of each list."""

    def build(self, seed=0):
        peft = pytest.importorskip("peft")
        model = super().build(seed)
        torch.manual_seed(seed)
        where = r".*blocks\.[13]\..*(to_q|to_v|net\.2)"
        model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=where, init_lora_weights=False))
        return model.eval().requires_grad_(False)


def with_lora(name):
    spec = registered(name)
    return WithLora(**{field.name: getattr(spec, field.name) for field in fields(spec)})


LORA = ("WanTransformer3DModel", "FluxTransformer2DModel", "SD3Transformer2DModel")


@pytest.mark.parametrize("name", slow_unless(lambda name: name.startswith("Flux"), LORA, str))
def test_lora_in_some_blocks_only(name):
    found = examine(with_lora(name))
    assert found.report.refusal is None
    assert found.report.blocks == found.expected_blocks
    assert max(found.computed_error, found.reused_error) < 1e-4 < 1e-3 < found.change
    assert found.actions == ALTERNATING.replace("1", "c").replace("0", "r")


@pytest.mark.slow
@torch.no_grad()
def test_lora_is_weighed_switched_off_and_fused_between_steps():
    spec = with_lora("WanTransformer3DModel")
    model, outs = spec.build(), []
    fast = compiled(model, policy="interval", interval=1)
    changes = [lambda: model.set_adapters("default", 0.5), model.disable_lora, model.enable_lora, model.fuse_lora]
    for change in [lambda: None, *changes]:
        change()
        outs.append(fast(**spec.call(0))[0])
        torch.testing.assert_close(outs[-1], model(**spec.call(0))[0])
    assert (outs[1] - outs[2]).abs().max() > NOTICED
