"""Rows of a batch that decide for themselves: equal to running each row alone, and run together where rows mix."""

import logging

import pytest
import torch
from tiers import slow_unless
from toys import WIDTH, Block, PassThrough, Toy, TwoStreams, build, latents

import dit_compile

STEPS = 10
TIMES = [1.0 - index / 1000 for index in range(STEPS)]  # slow: what differs is the latents
GUARDED = {"warmup_steps": 1, "residual_diff_threshold": 0.12, "max_continuous_cached_steps": 3, "taylor_order": 1}


def moving_at_different_speeds(batch, tokens=7):
    """Latents of one generation: each row moves twice as fast as the one before it."""
    start, direction = latents(batch, tokens, seed=1), latents(batch, tokens, seed=2)
    speed = 0.01 * 2.0 ** torch.arange(batch)[:, None, None]
    return [start + index * speed * direction for index in range(STEPS)]


def generate(model, xs, rows=slice(None), dynamic=True, **options):
    """The outputs for ``rows`` and, for each of them, what was decided at every step ("c" or "r")."""
    torch._dynamo.reset()
    dit_compile.reset()
    # tokens are a dimension of another size than the batch in every test
    compiled = torch.compile(
        model, backend="dit_cache", dynamic=dynamic, options={"inner": "eager", **GUARDED, **options}, fullgraph=True
    )
    with torch.no_grad():
        outs = [compiled(x[rows], torch.full((len(x[rows]),), t)) for x, t in zip(xs, TIMES, strict=True)]
    steps = dit_compile.stats(model)[-1].steps
    groups = sorted({step.rows for step in steps})
    return outs, ["".join(step.action[0] for step in steps if step.rows == group) for group in groups]


OPTIONS = [{}, {"policy": "teacache"}, {"forecast": "reuse", "downsample_factor": 2}, {"forecast": "dicache"}]


@pytest.mark.parametrize(
    "cls", slow_unless(lambda cls: cls is Toy, [Toy, TwoStreams, PassThrough], lambda cls: cls.__name__)
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_row_as_if_alone(cls, options):
    model, batch = build(cls), 5
    xs = moving_at_different_speeds(batch)
    together, decisions = generate(model, xs, batch_decision="rows", **options)
    assert len(set(decisions)) > 1, "all rows decide alike: nothing is tested"
    for row in range(batch):
        alone, (mine,) = generate(model, xs, slice(row, row + 1), **options)
        assert decisions[row] == mine
        for step in range(STEPS):
            torch.testing.assert_close(together[step][row : row + 1], alone[step], rtol=1e-5, atol=1e-5)


def test_each_half_as_if_alone():
    """Batched classifier-free guidance: the unconditional rows come first."""
    model, batch = build(Toy), 6
    xs = moving_at_different_speeds(batch)
    together, decisions = generate(model, xs, batch_decision="halves")
    assert len(decisions) == 2 and decisions[0] != decisions[1]
    for half, rows in enumerate((slice(0, 3), slice(3, 6))):
        alone, (mine,) = generate(model, xs, rows)
        assert decisions[half] == mine
        for step in range(STEPS):
            torch.testing.assert_close(together[step][rows], alone[step], rtol=1e-5, atol=1e-5)


def test_halves_of_an_odd_batch_decide_together():
    _, decisions = generate(build(Toy), moving_at_different_speeds(5), batch_decision="halves")
    assert len(decisions) == 1


def test_one_decision_is_the_default():
    _, decisions = generate(build(Toy), moving_at_different_speeds(5))
    assert len(decisions) == 1


def test_only_the_rows_that_need_it_run():
    """The region sees as many rows as compute, two at least."""
    model, batch = build(Toy), 5
    seen = []
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend="dit_cache", dynamic=True, fullgraph=True,
        options={"inner": "eager", **GUARDED, "batch_decision": "rows"},
    )  # fmt: skip
    xs = moving_at_different_speeds(batch)
    times = [torch.full((batch,), t) for t in TIMES]
    with torch.no_grad():
        compiled(xs[0], times[0])
        from dit_compile.runtime import region

        original = region.take
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(region, "take", lambda *args: [seen.append(o := original(*args)), o][1])
            for x, t in zip(xs[1:], times[1:], strict=True):
                compiled(x, t)
    steps = dit_compile.stats(model)[-1].steps
    computing = [sum(s.action == "compute" for s in steps if s.index == index) for index in range(1, STEPS)]
    mixed = [max(count, 2) for count in computing if 0 < count < batch]
    assert [operands[0].shape[0] for operands in seen] == mixed and mixed


@pytest.mark.slow
@torch.no_grad()
def test_rows_through_inductor():
    model, batch = build(Toy, depth=3), 4
    xs = moving_at_different_speeds(batch)
    eager, decisions = generate(model, xs, batch_decision="rows")
    compiled, same = generate(model, xs, batch_decision="rows", inner="inductor")
    assert decisions == same and len(set(decisions)) > 1
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Mixing(Block):
    def forward(self, x, temb):
        return super().forward(x - x.mean(0, keepdim=True), temb)


class OverTheBatch(Block):
    def forward(self, x, temb):
        return super().forward(x, temb) + torch.softmax(x, dim=0)


class Competing(Block):
    """Attention over the batch: the tokens of one sample see the other samples."""

    def forward(self, x, temb):
        q = x.transpose(0, 1)
        return super().forward(x, temb) + torch.nn.functional.scaled_dot_product_attention(q, q, q).transpose(0, 1)


def blocks_of(kind):
    class Mixed(Toy):
        def make_block(self, index, width):
            return kind(width)

    return Mixed


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Mixing, "combines the rows"), (OverTheBatch, "runs over the batch"), (Competing, "see each other")],
)
def test_where_rows_mix_they_decide_apart_and_run_together(kind, reason, caplog):
    """A row that computes gets what the batch gives: of the other rows, too, the blocks see the true values."""
    model, xs = build(blocks_of(kind)), moving_at_different_speeds(5)
    exact = [model(x, torch.full((5,), t)) for x, t in zip(xs, TIMES, strict=True)]
    with caplog.at_level(logging.WARNING, "dit_compile"):
        outs, decisions = generate(model, xs, batch_decision="rows")
    assert len(set(decisions)) > 1
    for step, (out, wanted) in enumerate(zip(outs, exact, strict=True)):
        computed = [row for row in range(5) if decisions[row][step] == "c"]
        torch.testing.assert_close(out[computed], wanted[computed], rtol=1e-5, atol=1e-5)
    (text,) = [r.getMessage() for r in caplog.records if "batch_decision" in r.getMessage()]
    assert reason in text and "run for all rows" in text


@pytest.mark.parametrize("cls", slow_unless(lambda cls: cls is Toy, [Toy, TwoStreams], lambda cls: cls.__name__))
@pytest.mark.parametrize("decision", ["rows", "halves"])
@pytest.mark.parametrize(("batch", "tokens"), [(4, 7), (4, 4)], ids=["other size", "batch size"])
def test_a_fixed_batch_size_changes_no_decision(cls, decision, batch, tokens, caplog):
    """Dynamo compiles one function with a fixed batch and with a symbolic one; either may serve a call. Where tokens
    are as many as samples, the symbolic batch size stands for both."""
    model, xs = build(cls), moving_at_different_speeds(batch, tokens)
    wanted, decisions = generate(model, xs, batch_decision=decision)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dit_compile"):
        outs, same = generate(model, xs, dynamic=False, batch_decision=decision)
    assert same == decisions and len(set(decisions)) > 1
    torch.testing.assert_close(outs, wanted, rtol=1e-5, atol=1e-5)
    (text,) = [r.getMessage() for r in caplog.records if "batch_decision" in r.getMessage()]
    assert "dynamic=True" in text and "run for all rows" in text


class Turned(Toy):
    """Tokens first, samples second."""

    def front(self, x, t):
        temb = t[:1, None].expand(x.shape[1], WIDTH) / 1000
        return self.blocks[0](self.embed(x.transpose(0, 1)), temb), temb

    def tail(self, h, temb):
        return self.head(h).transpose(0, 1)

    def forward(self, x, t):
        h, temb = self.front(x, t)
        return self.tail(self.region(h, temb), temb)


@pytest.mark.parametrize("dynamic", [True, False])
def test_where_the_batch_is_not_outermost_it_decides_as_one(dynamic, caplog):
    model, xs = build(Turned), moving_at_different_speeds(5)
    wanted, one = generate(model, xs, dynamic=dynamic)
    with caplog.at_level(logging.WARNING, "dit_compile"):
        outs, decisions = generate(model, xs, dynamic=dynamic, batch_decision="rows")
    assert decisions == one
    torch.testing.assert_close(outs, wanted)
    assert any("batch_decision=rows has no effect here" in record.getMessage() for record in caplog.records)


def test_decisions_can_be_divided_at_run_time():
    model = build(Toy)
    compiled = torch.compile(model, backend="dit_cache", dynamic=True, options={"inner": "eager", **GUARDED})
    xs = moving_at_different_speeds(5)
    with torch.no_grad():
        for decision, groups in (("one", 1), ("rows", 5)):
            with dit_compile.session(decision, batch_decision=decision):
                for x, t in zip(xs, TIMES, strict=True):
                    compiled(x, torch.full((5,), t))
            assert len({step.rows for step in dit_compile.stats(model)[-1].steps}) == groups
    assert WIDTH != 5
