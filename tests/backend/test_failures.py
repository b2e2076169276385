"""What goes wrong in our own code, in a plug-in or on the disk costs the cache, never the model."""

import logging

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from toys import NoBlocks, Toy, build, compile_toy, latents, moved

import dit_compile
from dit_compile import analysis, backend
from dit_compile.forecast import FORECASTERS, Forecaster, register_forecaster
from dit_compile.passes import lower

T = torch.full((2,), 500.0)
PASSES = (
    "normalize", "find_blocks", "plan_region", "insert_guard", "find_batch_rows", "effects_of", "lower", "assemble",
    "analyse",
)  # fmt: skip


def broken(*args, **kwargs):
    raise KeyError("some node")


def errors(caplog):
    return [record for record in caplog.records if record.levelno == logging.ERROR]


@torch.no_grad()
def test_an_unforeseen_error_in_a_graph_that_is_not_cached(monkeypatch, caplog):
    """The graph was refused already; looking for its time fails as well."""
    monkeypatch.setattr(backend, "find_clock_inputs", broken)
    model = build(NoBlocks)
    torch.testing.assert_close(compile_toy(model)(latents(), T), model(latents(), T))
    [record] = errors(caplog)
    assert record.exc_info is not None and "uncached graph" in record.getMessage()


@torch.no_grad()
@pytest.mark.parametrize("name", PASSES)
def test_an_unforeseen_error_in_a_pass(name, monkeypatch, caplog):
    monkeypatch.setattr(backend if name in ("lower", "assemble", "analyse", "build") else analysis, name, broken)
    model = build(Toy)
    torch.testing.assert_close(compile_toy(model)(latents(), T), model(latents(), T))
    [record] = errors(caplog)
    assert record.exc_info is not None
    assert "DIT_CACHE_STRICT=1" in record.getMessage()
    [report] = dit_compile.graphs()
    assert report.refusal == "an unexpected error, KeyError: 'some node'"
    assert "in broken" in report.traceback
    assert dit_compile.stats(model) == []


@torch.no_grad()
@pytest.mark.parametrize("how", ["option", "environment"])
def test_strict_raises_it(how, monkeypatch):
    monkeypatch.setattr(analysis, "plan_region", broken)
    if how == "environment":
        monkeypatch.setenv("DIT_CACHE_STRICT", "1")
    with pytest.raises(BackendCompilerFailed, match="some node"):
        compile_toy(build(Toy), **({"strict": True} if how == "option" else {}))(latents(), T)


@torch.no_grad()
def test_strict_leaves_refusals_alone():
    model = build(NoBlocks)
    torch.testing.assert_close(compile_toy(model, strict=True)(latents(), T), model(latents(), T))


@torch.no_grad()
def test_a_dump_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    model = build(Toy)
    compiled = compile_toy(model, dump=str(tmp_path / "file"), residual_diff_threshold=0)
    torch.testing.assert_close(compiled(latents(), T), model(latents(), T))
    assert len(errors(caplog)) == 1
    [report] = dit_compile.graphs()
    assert report.refusal is None
    assert any("the dump in" in note for note in report.notes)
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed):
        compile_toy(model, dump=str(tmp_path / "file"), strict=True)(latents(), T)


@pytest.mark.parametrize("reason", ["switched off", "refused", "error", "gradients"])
@pytest.mark.parametrize(
    "given", [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True, "epilogue_fusion": False}}]
)
def test_plain_is_plain(reason, given, monkeypatch):
    """The plain compiler gets the user's mode and options as they are, CUDA graphs included."""
    seen = []
    monkeypatch.setattr(backend, "compile_graph", lambda gm, inner, patches: seen.append(patches) or gm.forward)
    if reason == "switched off":
        monkeypatch.setenv("DIT_CACHE_ENABLED", "0")
    if reason == "error":
        monkeypatch.setattr(analysis, "plan_region", broken)
    model = build(NoBlocks if reason == "refused" else Toy)
    with torch.set_grad_enabled(reason == "gradients"):
        torch.compile(model, backend="dit_cache", **given)(latents(), T)
    wanted = given.get("options") or torch._inductor.list_mode_options("max-autotune")
    assert seen == [dict(wanted)]
    assert seen[0]["triton.cudagraphs"] is True


@torch.no_grad()
def test_mode_among_the_options(monkeypatch):
    """torch.compile takes either mode or options."""
    seen = []
    monkeypatch.setattr(lower, "compile_graph", lambda gm, inner, patches: seen.append(patches) or gm.forward)
    options = {"mode": "max-autotune-no-cudagraphs", "preset": "fast", "epilogue_fusion": False}
    torch.compile(build(Toy), backend="dit_cache", options=options)(latents(), T)
    assert seen
    assert all(patches["max_autotune"] is True and patches["epilogue_fusion"] is False for patches in seen)
    assert dit_compile.graphs()[-1].settings.startswith("F1 B0 W2 C3 t0.16")
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match=r"mode 'fastest'.*max-autotune"):
        torch.compile(build(Toy), backend="dit_cache", options={"mode": "fastest"})(latents(), T)


class Raises(Forecaster):
    def snapshots(self, config):
        return 1

    def weights(self, steps, now, config):
        raise ZeroDivisionError("mine")


class NotANumber(Raises):
    def weights(self, steps, now, config):
        return [float("nan")] * len(steps)


class TooFew(Raises):
    def weights(self, steps, now, config):
        return []


class Words(Raises):
    def weights(self, steps, now, config):
        return ["one"] * len(steps)


class Seven(Raises):
    def snapshots(self, config):
        return 7

    def weights(self, steps, now, config):
        return [1 / len(steps)] * len(steps)


class NoCount(Raises):
    def snapshots(self, config):
        raise ZeroDivisionError("mine")


@torch.no_grad()
@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Raises, "weights() raised ZeroDivisionError: mine"),
        (NotANumber, "not all finite"),
        (TooFew, "0 weights for 1 snapshots"),
        (Words, "weights() raised ValueError"),
        (Seven, "snapshots() returned 7, expected an integer from 1 to 6"),
        (NoCount, "snapshots() raised ZeroDivisionError: mine"),
    ],
)
def test_a_forecaster_that_fails_costs_its_steps(cls, said, caplog):
    register_forecaster("failing")(cls)
    model = build(Toy)
    compiled = compile_toy(model, forecast="failing", residual_diff_threshold=1, warmup_steps=1)
    for i in range(4):
        torch.testing.assert_close(compiled(moved(i), T - i), model(moved(i), T - i))
    steps = dit_compile.stats(compiled)[-1].steps
    assert [step.reason for step in steps] == ["no_snapshot"] + ["forecaster_error"] * 3
    [warning] = [r.getMessage() for r in caplog.records if "the forecaster 'failing' failed" in r.getMessage()]
    assert said in warning
    dit_compile.configure(forecast="reuse")
    compiled(moved(5), T - 5)
    assert dit_compile.stats(compiled)[-1].steps[-1].reason == "hit"
    assert "failing" in FORECASTERS.names()


@torch.no_grad()
def test_the_last_graph_that_torch_compiles_is_said(caplog):
    class Growing(Toy):
        size = 0

        def forward(self, x, t):
            return super().forward(x, t) + self.size

    model = build(Growing)
    compiled = torch.compile(model, backend="dit_cache", options={"inner": "eager"})
    with torch._dynamo.config.patch(recompile_limit=3):
        for size in ("a", "b", "c"):
            model.size = ord(size)  # an integer of a module is a constant
            compiled(latents(), T)
            said = [r.getMessage() for r in caplog.records if "recompile_limit" in r.getMessage()]
            assert len(said) == (size == "c")
    assert "torch._dynamo.config.recompile_limit = 12" in said[0]
    assert "without the cache" in said[0]
