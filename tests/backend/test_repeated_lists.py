"""A list of blocks that runs several times in one call of the model: each run is a chain with its own decision."""

import pytest
import torch
from toys import Toy, build, compile_toy, latents, timestep_embedding

import dit_compile

REUSE = {"policy": "mask", "step_mask": "1010", "forecast": "reuse"}


class Runs(Toy):
    """``starts`` gives what each run begins with; None goes on with what the run before has left."""

    starts = (1.0, None)

    def run(self, h, temb, number):
        for block in self.blocks:
            h = block(h, temb)
        return h

    def forward(self, x, t):
        temb, results = timestep_embedding(t), []
        for number, start in enumerate(self.starts):
            h = self.embed(x * start) if start is not None else results[-1]
            results.append(self.run(h, temb, number))
        return self.head(results[-1] + sum(results[:-1]) if None not in self.starts else results[-1])


class TwoPrompts(Runs):
    """Guidance inside the model."""

    starts = (1.0, 2.0)


class Three(Runs):
    starts = (1.0, 2.0, 3.0)


class SkipsLayer(Runs):
    """Skip-layer guidance: the second run leaves a block out."""

    starts = (1.0, 2.0)

    def run(self, h, temb, number):
        for i, block in enumerate(self.blocks):
            if (number, i) != (1, 3):
                h = block(h, temb)
        return h


class Backwards(Runs):
    """The second run goes from the last block to the first."""

    def run(self, h, temb, number):
        for block in list(self.blocks)[::-1] if number else self.blocks:
            h = block(h, temb)
        return h


MODELS = {
    Runs: ["blocks.1 to blocks.5", "blocks.1 (run 2) to blocks.5 (run 2)"],
    TwoPrompts: ["blocks.1 to blocks.5", "blocks.1 (run 2) to blocks.5 (run 2)"],
    Three: ["blocks.1 to blocks.5", "blocks.1 (run 2) to blocks.5 (run 2)", "blocks.1 (run 3) to blocks.5 (run 3)"],
    SkipsLayer: ["blocks.1 to blocks.5", "blocks.1 (run 2) to blocks.5 (run 2)"],
    Backwards: ["blocks.1 to blocks.5", "blocks.3 (run 2) to blocks.0 (run 2)"],  # block 5 runs twice in a row
}


def reused(model, x, t, kept):
    """A step of eager code in which all but the first block of each run add what they added at the kept step."""
    temb, outs = timestep_embedding(t), []
    for number, start in enumerate(model.starts):
        h = model.embed(x * start) if start is not None else outs[-1]
        front = model.blocks[0](h, temb)
        now = model.run(h, temb, number)
        change = kept.setdefault(number, now - front)
        outs.append(front + change)
    return model.head(outs[-1] + sum(outs[:-1]) if None not in model.starts else outs[-1])


@torch.no_grad()
@pytest.mark.parametrize(("cls", "regions"), MODELS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_run_has_a_region(cls, regions):
    model = build(cls)
    compiled = compile_toy(model, **REUSE)
    xs, ts = [latents(seed=1) + 0.1 * i for i in range(4)], [torch.full((2,), 900.0 - 100 * i) for i in range(4)]
    got = [compiled(x, t) for x, t in zip(xs, ts, strict=True)]
    [report] = dit_compile.graphs()
    assert [f"{region.first} to {region.last}" for region in report.regions] == regions
    for step in (0, 2):
        torch.testing.assert_close(got[step], model(xs[step], ts[step]))
    if cls is not Backwards:
        kept = {}
        reused(model, xs[0], ts[0], kept)
        torch.testing.assert_close(got[1], reused(model, xs[1], ts[1], kept))
    steps = dit_compile.stats(compiled)[-1].steps
    assert [step.action for step in steps] == (["compute"] * len(regions) + ["reuse"] * len(regions)) * 2


@torch.no_grad()
def test_every_run_decides_for_itself():
    """The first run hardly changes from step to step, the second does."""

    class Drifting(TwoPrompts):
        def forward(self, x, t):
            temb = timestep_embedding(torch.ones_like(t))
            still = self.run(self.embed(x), temb, 0)
            moving = self.run(torch.sin(self.embed(x) * 3 * t[:, None, None]), temb, 1)
            return self.head(still + moving)

    compiled = compile_toy(build(Drifting), residual_diff_threshold=0.05, warmup_steps=1, forecast="reuse")
    for i in range(4):
        compiled(latents(seed=1), torch.full((2,), 4.0 - i))
    steps = dit_compile.stats(compiled)[-1].steps
    actions = {region: [step.action for step in steps if step.region == region] for region in (0, 1)}
    assert actions[0][1:3] == ["reuse", "reuse"]
    assert actions[1] == ["compute"] * 4


@torch.no_grad()
def test_two_weights_that_take_turns_are_one_chain():
    """Runs too short for a chain of their own: four runs of two blocks are a chain of eight."""

    class Shared(Toy):
        def __init__(self):
            super().__init__(depth=2)
            self.blocks = torch.nn.ModuleList(list(self.blocks) * 4)

    model = build(Shared)
    compiled = compile_toy(model, residual_diff_threshold=0)
    t = torch.full((2,), 500.0)
    torch.testing.assert_close(compiled(latents(), t), model(latents(), t))
    [report] = dit_compile.graphs()
    assert len(report.blocks) == 8
    assert [region.skipped for region in report.regions] == [7]


@torch.no_grad()
def test_the_summary_counts_runs():
    compiled = compile_toy(build(Three), residual_diff_threshold=0)
    compiled(latents(), torch.full((2,), 500.0))
    [report] = dit_compile.graphs()
    assert report.chain == "6 x Block, run 3 times"
    assert report.pieces <= 6  # one piece for all blocks of all runs
