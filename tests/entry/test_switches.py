"""Settings of Dynamo that a model needs: found at its first call, set for it alone, said once."""

import builtins
import logging
import threading
import zlib

import pytest
import torch
from broken_toys import branch, integer, logging_info, printing, sizes, toy, warning
from registry import registered
from tiers import slow_unless
from torch.utils._pytree import tree_leaves
from toys import Block, Toy, build, moved

import dit_compile
from dit_compile.entry.switches import Switches

ALWAYS = {
    "inner": "eager", "residual_diff_threshold": 1, "warmup_steps": 0, "max_continuous_cached_steps": -1,
}  # fmt: skip
STEPS = [(moved(i), torch.full((2,), 900.0 - 100 * i)) for i in range(4)]
SETTINGS = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs", "ignore_logging_functions")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def config_is_as_before():
    def read():
        return {name: repr(getattr(torch._dynamo.config, name)) for name in SETTINGS}

    before = read()
    yield
    assert read() == before


def said(caplog, level=logging.INFO):
    """Lines that are neither about a graph nor about regions."""
    lines = [r.getMessage() for r in caplog.records if r.name == "dit_compile" and r.levelno == level]
    others = ("skips", "block by block", *(["not cached"] if level == logging.INFO else []))
    return [line for line in lines if not any(words in line for words in others)]


def cached():
    return [graph for graph in dit_compile.graphs() if graph.refusal is None]


@torch.no_grad()
def steps(model, *more):
    return [model(*step, *more) for step in STEPS]


def computes_what_eager_does(model, *more):
    dit_compile.reset()
    with dit_compile.session("exact", residual_diff_threshold=0):
        got = steps(model, *more)
    with torch.no_grad():
        torch.testing.assert_close(got, [model.forward(*step, *more) for step in STEPS])


# --- what is found


@pytest.mark.parametrize(
    ("forward", "setting", "place"),
    [
        (sizes, "capture_dynamic_output_shape_ops = True", "torch.nonzero(x[..., 0])"),
        (integer, "capture_scalar_outputs = True", "count = (x > 100).sum().item()"),
        (printing, "ignore_logging_functions: print", 'print("tokens", x.shape)'),
        (logging_info, "ignore_logging_functions: Logger.info", 'log.info("tokens %s", x.shape)'),
        (warning, "ignore_logging_functions: warn", 'warnings.warn("careful", stacklevel=1)'),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_setting_is_found_said_once_and_reported(forward, setting, place, caplog):
    model = dit_compile.compile(toy(forward)(), **ALWAYS)
    steps(model)
    [line] = said(caplog)
    assert line.startswith(f"dit_cache: Broken is compiled with torch._dynamo.config.{setting} (")
    assert place in line
    assert said(caplog, logging.WARNING) == []
    [graph] = dit_compile.graphs()
    assert graph.refusal is None and graph.dynamo == (setting,)
    [stats] = dit_compile.stats(model)
    assert (stats.computed, stats.reused) == (1, 3)
    computes_what_eager_does(model)
    assert len(dit_compile.graphs()) == 1


def test_dynamo_does_not_advise_what_is_set_anyway(monkeypatch):
    torch._dynamo.variables.tensor.TensorVariable._warn_capture_scalar_outputs.cache_clear()  # given once in a process
    heard = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    logger = logging.getLogger("torch._dynamo.variables.tensor")
    monkeypatch.setattr(logger, "handlers", [handler])
    steps(dit_compile.compile(toy(integer)(), **ALWAYS))
    assert heard == []
    torch._dynamo.variables.tensor.TensorVariable._warn_capture_scalar_outputs.cache_clear()
    steps(torch.compile(toy(integer)(), backend="dit_cache", options=ALWAYS))
    assert ["capture_scalar_outputs" in record.msg for record in heard] == [True]


def both(block, x, temb):
    print("tokens", x.shape)
    return sizes(block, x, temb)


def test_several_settings_are_found_together(caplog):
    steps(dit_compile.compile(toy(both)(), **ALWAYS))
    [line] = said(caplog)
    assert "ignore_logging_functions: print, torch._dynamo.config.capture_dynamic_output_shape_ops = True (" in line
    assert [len(graph.dynamo) for graph in dit_compile.graphs()] == [2]


def test_a_model_that_needs_none_gets_none(caplog, monkeypatch):
    searched = []
    monkeypatch.setattr(Switches, "_search", lambda *args: searched.append(args))
    model = dit_compile.compile(build(Toy), **ALWAYS)
    steps(model)
    assert searched == [] and said(caplog) == []
    assert [graph.dynamo for graph in dit_compile.graphs()] == [()]


def test_calls_that_find_compiled_code_enter_no_settings(monkeypatch):
    entered = []
    compiling = Switches._compiling
    monkeypatch.setattr(Switches, "_compiling", lambda self, code: entered.append(code) or compiling(self, code))
    model = dit_compile.compile(toy(sizes)(), **ALWAYS)
    with torch.no_grad():
        model(*STEPS[0])
        count = len(entered)
        assert count > 0
        for step in STEPS[1:]:
            model(*step)
    assert len(entered) == count
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Counting(Toy):
    """Counts its calls, and needs a setting."""

    calls = 0

    def forward(self, x, t):
        self.calls += 1
        return super().forward(x + 0 * torch.nonzero(x).sum(), t)


def test_an_attempt_that_fails_has_run_nothing():
    model = dit_compile.compile(build(Counting), **ALWAYS)
    with torch.no_grad():
        model(*STEPS[0])
    assert model.calls == 1
    assert len(cached()) == 1


class Masked(Toy):
    """Needs a setting only where there is a mask."""

    def forward(self, x, t, mask=None):
        if mask is not None:
            x = x + 0 * x[mask].sum()
        return super().forward(x, t)


def test_a_later_compilation_may_need_a_setting(caplog):
    model = dit_compile.compile(build(Masked), **ALWAYS)
    steps(model)
    assert said(caplog) == []
    computes_what_eager_does(model, STEPS[0][0] > 0)
    [line] = said(caplog)
    assert "capture_dynamic_output_shape_ops" in line
    assert [len(graph.dynamo) for graph in cached()] == [0, 1]
    computes_what_eager_does(model)
    assert len(cached()) == 2, "what was compiled before is still there"


# --- code that runs at the first call only


class Table(Toy):
    """Builds a table at its first call by code that Dynamo does not trace."""

    table = None

    def forward(self, x, t):
        if self.table is None:
            self.table = torch.full((1,), float(zlib.crc32(b"table") % 3))
        return super().forward(x * self.table, t)


def test_the_first_call_runs_without_compilation_where_that_may_help(caplog):
    model = dit_compile.compile(build(Table), **ALWAYS)
    got = steps(model)
    torch.testing.assert_close(got[0], model.forward(*STEPS[0]))
    [line] = said(caplog)
    assert line.startswith("dit_cache: the first call of Table runs without compilation, in case that ")
    assert 'zlib.crc32(b"table")' in line and "Way out" not in line
    assert len(dit_compile.graphs()) == len(cached()) == 1
    [stats] = dit_compile.stats(model)
    assert (stats.computed, stats.reused) == (1, 2)
    computes_what_eager_does(model)


# --- graph breaks that no setting mends


class BranchInFront(Toy):
    """What is in front of the blocks cannot be traced; the blocks can, with a setting."""

    def make_block(self, index, width):
        return Counted(width) if self.needs_setting else Block(width)

    def forward(self, x, t):
        if x.sum() > 1000:
            x = x * 2
        return super().forward(x, t)


class Counted(Block):
    def forward(self, x, temb):
        return super().forward(x, temb) + 0 * torch.nonzero(x).sum()


class Harmless(BranchInFront):
    needs_setting = False


class Harmful(BranchInFront):
    needs_setting = True


def test_a_harmless_break_stays(caplog):
    model = dit_compile.compile(build(Harmless), **ALWAYS)
    computes_what_eager_does(model)
    assert [graph.dynamo for graph in cached()] == [()]
    assert said(caplog) == said(caplog, logging.WARNING) == []
    assert dit_compile.stats(model)[-1].computed == 4


def test_a_setting_behind_a_break_that_stays(caplog):
    model = dit_compile.compile(build(Harmful), **ALWAYS)
    computes_what_eager_does(model)
    assert [graph.dynamo for graph in cached()] == [("capture_dynamic_output_shape_ops = True",)]
    [line] = said(caplog)
    assert line.startswith("dit_cache: Harmful is compiled with torch._dynamo.config.capture_dynamic_output_shape_ops")
    assert said(caplog, logging.WARNING) == []
    before = len(dit_compile.graphs())
    computes_what_eager_does(model)
    assert len(dit_compile.graphs()) == before


def printing_branch(block, x, temb):
    print("tokens", x.shape)
    return branch(block, x, temb)


@pytest.mark.parametrize("forward", [branch, printing_branch])
def test_a_model_that_cannot_be_cached_runs_as_without(forward, caplog, capsys):
    model = dit_compile.compile(toy(forward)(), **ALWAYS)
    steps(model)
    computes_what_eager_does(model)
    assert cached() == []
    assert said(caplog) == []
    [line] = said(caplog, logging.WARNING)
    assert "this graph is not cached" in line and "dit_compile.compile" not in line
    assert [graph.dynamo for graph in dit_compile.graphs()][-1] == ()
    if forward is printing_branch:
        capsys.readouterr()
        steps(model)
        assert "tokens" in capsys.readouterr().out, "a setting that did not help is not kept"


# --- whose settings


def test_another_model_has_no_settings():
    steps(dit_compile.compile(toy(sizes)(), **ALWAYS))
    assert [bool(graph.dynamo) for graph in dit_compile.graphs()] == [True]

    def compile_meanwhile(gm, examples):
        seen.append(torch._dynamo.config.capture_dynamic_output_shape_ops)
        return gm.forward

    seen = []
    steps(torch.compile(build(Toy), backend=compile_meanwhile))
    steps(torch.compile(toy(sizes)(), backend=compile_meanwhile))
    assert seen and not any(seen)


def test_what_the_user_has_set_stays(capsys):
    ignored = {builtins.print}
    with torch._dynamo.config.patch(ignore_logging_functions=ignored):
        steps(dit_compile.compile(toy(logging_info)(), **ALWAYS))
        assert torch._dynamo.config.ignore_logging_functions == {builtins.print}
    assert [graph.dynamo for graph in dit_compile.graphs()] == [("ignore_logging_functions: Logger.info",)]
    torch.compiler.reset()
    with torch._dynamo.config.patch(ignore_logging_functions=ignored):
        steps(dit_compile.compile(toy(printing)(), **ALWAYS))
    assert [graph.dynamo for graph in dit_compile.graphs()] == [()]
    assert capsys.readouterr().out == ""


def test_without_switches_breaks_stay(caplog):
    steps(dit_compile.compile(toy(sizes)(), switches=False, **ALWAYS))
    assert cached() == []
    [line] = said(caplog, logging.WARNING)
    assert "Way out: dit_compile.compile(model), which sets what the model needs; or torch._dynamo.config." in line


def test_fullgraph_still_means_no_graph_break():
    model = dit_compile.compile(toy(branch)(), fullgraph=True, **ALWAYS)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent branching"):
        steps(model)
    torch.compiler.reset()
    model = dit_compile.compile(toy(both)(), fullgraph=True, **ALWAYS)
    steps(model)
    assert [graph.dynamo for graph in cached()] == [("ignore_logging_functions: print",)]


def test_errors_of_the_model_pass_through():
    class Failing(Toy):
        def forward(self, x, t):
            y = super().forward(x, t)
            torch._assert_async(y.sum() < -1e9, "too large")
            return y

    model = dit_compile.compile(build(Failing), **ALWAYS)
    with pytest.raises(RuntimeError, match="too large"):
        steps(model)


def test_errors_that_the_user_suppresses_stay_suppressed(monkeypatch):
    def fail(*args):
        raise NotImplementedError("a backend that fails")

    monkeypatch.setattr("dit_compile.backend.build", fail)
    with torch._dynamo.config.patch(suppress_errors=True):
        computes_what_eager_does(dit_compile.compile(build(Toy), strict=True, **ALWAYS))
    torch.compiler.reset()
    with pytest.raises(Exception, match="a backend that fails"):
        steps(dit_compile.compile(build(Toy), strict=True, **ALWAYS))


def test_threads_that_call_first_at_once():
    model = dit_compile.compile(toy(both)(), **ALWAYS)
    with torch.no_grad():
        wanted = model.forward(*STEPS[0])
    results = []

    def call():
        with torch.no_grad():
            results.append(model(*STEPS[0]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(results, [wanted] * 4)
    assert len(cached()) == 1


# --- models of diffusers

NEEDY = {
    "MochiTransformer3DModel": (("capture_dynamic_output_shape_ops = True",), 0),
    "HunyuanVideo15Transformer3DModel": (("capture_dynamic_output_shape_ops = True",), 1),
    "HunyuanVideoFramepackTransformer3DModel": (("capture_scalar_outputs = True",), 0),
    "HunyuanImageTransformer2DModel": ((), 0),
    "Lumina2Transformer2DModel": ((), 0),
    "ZImageTransformer2DModel": ((), 1),
    "BriaFibo2Transformer2DModel": ((), 1),
}


@pytest.mark.parametrize("cls", slow_unless(lambda cls: cls.startswith("Mochi"), NEEDY, str))
@torch.no_grad()
def test_models_of_diffusers_are_cached_without_a_flag(cls, caplog):
    """``NEEDY`` has the settings that are found, and how many calls pass before steps are cached."""
    settings, late = NEEDY[cls]
    spec = registered(cls)
    if not spec.exists:
        pytest.skip("not in this diffusers")
    model, plain = dit_compile.compile(spec.build(), inner="eager", residual_diff_threshold=0), spec.build()
    for index in range(4):
        got, wanted = model(**spec.call(index)), plain(**spec.call(index))
        torch.testing.assert_close(tree_leaves(got), tree_leaves(wanted))
    assert said(caplog, logging.WARNING) == []
    assert [graph.dynamo for graph in cached()] == [settings]
    [stats] = dit_compile.stats(model)
    assert len(stats.steps) == 4 - late
