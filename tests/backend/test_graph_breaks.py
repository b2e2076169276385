"""Graph breaks: one warning that names the place, the cause and a way out; the way out gives blocks that are cached."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from broken_toys import TRIALS, group_offload_of_blocks, ignoring, list_of_integers, mask, printing, toy, warning
from toys import Block, NoBlocks, Toy, build, moved, timestep_embedding

import dit_compile
from dit_compile.debug.messages import say_unseen
from dit_compile.passes import break_kinds
from dit_compile.passes.break_kinds import KINDS

ALWAYS = {"residual_diff_threshold": 1, "warmup_steps": 0, "max_continuous_cached_steps": -1}
OPTIONS = {"inner": "eager", **ALWAYS}
NAMES = {kind.name: kind for kind in KINDS}
STEPS = [(moved(i), torch.full((2,), 900.0 - 100 * i)) for i in range(3)]

pytestmark = pytest.mark.filterwarnings("ignore")


def compiled(model, fullgraph=False):
    return torch.compile(model, backend="dit_cache", fullgraph=fullgraph, options=OPTIONS)


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "dit_compile"]


def cached():
    return [graph.refusal is None for graph in dit_compile.graphs()]


@torch.no_grad()
def run(model, fullgraph=False):
    fast = compiled(model, fullgraph)
    got = [fast(*step) for step in STEPS]
    torch.testing.assert_close(got, [model(*step) for step in STEPS])
    return fast


# --- the table


def test_every_kind_and_every_way_out_is_tried():
    assert len(NAMES) == len(KINDS)
    assert {kind.name: [way.name for way in kind.ways] for kind in KINDS} == {
        name: list(trial.ways) for name, trial in TRIALS.items()
    }


def test_the_page_has_every_kind_and_every_way_out():
    page = (Path(__file__).parents[2] / "docs" / "graph-breaks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", page, re.MULTILINE))
    assert list(rows) == ["kind", *NAMES]
    for kind in KINDS:
        texts = [kind.cause, *(way.text for way in kind.ways)]
        assert all(part in rows[kind.name] for text in texts for part in re.split(r"\{\w+\}", text))
        assert ("none; instead: " in rows[kind.name]) is not kind.remedy


@pytest.mark.parametrize("name", TRIALS)
def test_the_warning_names_place_cause_and_way_out(name, caplog):
    kind, trial = NAMES[name], TRIALS[name]
    run(trial.make())
    assert not any(cached())
    [warning] = warned(caplog)
    place, quoted, rest = warning.split("Dynamo broke the graph at ")[1].split("`", 2)
    assert trial.line in quoted
    file, line = place.split(":")
    assert file.endswith(("broken_toys.py", "hooks.py", "group_offloading.py", "layerwise_casting.py"))
    assert int(line) > 0
    assert rest.startswith(": ")
    for text in (kind.cause, *(way.text for way in kind.ways)):
        parts = text.replace("{title}", "{function}").split("{function}")
        assert all(part in rest for part in parts)
    assert ("Way out: " in rest) is kind.remedy
    assert ("No way is known" in rest) is not kind.remedy


FIXES = [
    pytest.param(
        fix,
        id=f"{name}-{way}-{i}".replace(" ", "_"),
        marks=() if (way, i) == (next(iter(trial.ways)), 0) else pytest.mark.slow,
    )
    for name, trial in TRIALS.items()
    for way, fixes in trial.ways.items()
    for i, fix in enumerate(fixes)
]


@pytest.mark.parametrize("fix", FIXES)
@torch.no_grad()
def test_the_way_out_gives_blocks_that_are_cached(fix, caplog):
    model = fix.make()
    with torch._dynamo.config.patch(**fix.switches), fix.outside():
        fast = dit_compile.compile(model, **OPTIONS) if fix.entry else compiled(model, fix.fullgraph)
        fix.after(fast)
        for step in STEPS:
            fast(*step, **fix.inputs)
        assert cached()[-1]
        assert warned(caplog) == []
        [stats] = dit_compile.stats(model)
        assert (stats.computed, stats.reused) == (1, 2)
        dit_compile.configure(residual_diff_threshold=0)
        dit_compile.reset()
        got, wanted = ([call(*step, **fix.inputs) for step in STEPS] for call in (fast, model.forward))
        torch.testing.assert_close(got, wanted)
        assert dit_compile.stats(model)[-1].computed == 3


@torch.no_grad()
def test_functions_that_are_ignored_do_nothing_in_compiled_code(capsys):
    [fix] = ignoring(printing, print)
    fast = compiled(fix.make())
    with torch._dynamo.config.patch(**fix.switches):
        fast(*STEPS[0])
    assert capsys.readouterr().out == ""


def test_a_setting_that_dynamo_does_not_have_is_not_advised(monkeypatch, caplog):
    monkeypatch.setattr(break_kinds, "has_dynamo_setting", lambda name: False)
    run(TRIALS["print"].make())
    [warning] = warned(caplog)
    assert warning.endswith("print is called. Way out: remove the call")


# --- how often it is said


class DisabledBlock(Block):
    @torch.compiler.disable
    def forward(self, x, temb):
        return super().forward(x, temb)


class DisabledBlocks(Toy):
    """In a loop that Dynamo gives up on; only the embedding is left to be traced."""

    def make_block(self, index, width):
        return DisabledBlock(width)

    def forward(self, x, t):
        h, temb = self.embed(x), timestep_embedding(t)
        for block in self.blocks:
            h = block(h, temb)
        return self.head(h)


class DisabledRegion(Toy):
    """Two graphs, one before and one behind all blocks."""

    @torch.compiler.disable
    def region(self, h, temb):
        return super().region(h, temb)


class Disabled(Toy):
    """No graph at all."""

    @torch.compiler.disable
    def forward(self, x, t):
        return super().forward(x, t)


class LoopInFront(Toy):
    """Dynamo gives up on ``front`` only: its helper, then the blocks are graphs of their own."""

    def helper(self, x):
        return x + self.embed(x).mean()

    def front(self, x, t):
        for _ in range(2):
            x = self.helper(x)
            print("tokens", x.shape)
        return super().front(x, t)


class PrintsInFront(Toy):
    def front(self, x, t):
        print("tokens", x.shape)
        return super().front(x, t)


@pytest.mark.parametrize(
    "make",
    [
        group_offload_of_blocks,
        toy(mask),
        toy(list_of_integers),
        lambda: build(DisabledRegion),
        lambda: build(DisabledBlocks),
    ],
    ids=["group_offload", "mask", "tolist", "disabled_region", "disabled_blocks"],
)
def test_one_warning_however_many_graphs(make, caplog):
    run(make())
    assert len(warned(caplog)) == 1
    say_unseen()
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize("make", [PrintsInFront, LoopInFront])
def test_no_warning_when_the_blocks_are_cached_all_the_same(make, caplog):
    model = build(make)
    fast = compiled(model)
    with torch.no_grad():
        for step in STEPS:
            fast(*step)
    assert cached()[-1] and not cached()[0]
    assert dit_compile.stats(model)[-1].reused == 2
    say_unseen()
    assert warned(caplog) == []


def test_a_model_of_which_no_graph_was_made_is_spoken_of_at_the_end(caplog):
    run(build(Disabled))
    assert dit_compile.graphs() == [] and warned(caplog) == []
    say_unseen()
    [text] = warned(caplog)
    assert "nothing is cached" in text
    assert "Disabled.forward is under torch.compiler.disable" in text
    say_unseen()
    assert len(warned(caplog)) == 1


def test_graph_breaks_of_other_backends_are_not_spoken_of(caplog):
    with torch.no_grad():
        torch.compile(build(Disabled), backend="eager")(*STEPS[0])
    say_unseen()
    assert warned(caplog) == []


def test_graph_breaks_of_another_model_are_not_blamed(caplog):
    with torch.no_grad():
        torch.compile(TRIALS["print"].make(), backend="eager")(*STEPS[0])
    run(build(NoBlocks), fullgraph=True)
    [text] = warned(caplog)
    assert text.endswith("Compile the whole transformer, not a single block")


def test_two_causes_are_two_warnings_and_a_fixed_one_is_none(caplog):
    run(TRIALS["print"].make())
    run(toy(warning)())
    assert ["print" in text for text in warned(caplog)] == [True, False]
    caplog.clear()
    torch.compiler.reset()
    run(build(NoBlocks))
    [text] = warned(caplog)
    assert "broke" not in text


SCRIPT = """
import torch
from torch import nn
class Model(nn.Module):
    @torch.compiler.disable
    def forward(self, x):
        return x + 1
torch.compile(Model(), backend="dit_cache")(torch.zeros(2))
"""


@pytest.mark.slow
def test_the_end_of_the_process_is_an_occasion():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr.count("nothing is cached: Dynamo made no graph. Dynamo broke the graph at") == 1
