"""``dit_compile.compile``: what it takes, what it returns, and what becomes of the model."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import toys

import dit_compile
from dit_compile.config import ConfigError


class Pipe:
    """What is asked of a pipeline: its components by name."""

    def __init__(self, **components):
        self.components = components


def generation(model, seed=0):
    return [model(toys.latents(seed=seed), torch.tensor([float(t)] * 2)) for t in (1000, 900, 800)]


def test_returns_what_it_was_given():
    model, pipe = toys.build(toys.Toy), Pipe(transformer=toys.build(toys.Toy), vae=None)
    assert dit_compile.compile(model) is model and dit_compile.compile(pipe) is pipe


@torch.no_grad()
def test_every_transformer_of_a_pipeline():
    first, second, other = (toys.build(toys.Toy, seed) for seed in range(3))
    dit_compile.compile(Pipe(transformer=first, transformer_2=second, vae=other, tokenizer=object()), inner="eager")
    for model in (first, second, other):
        generation(model)
    assert [len(dit_compile.stats(model)) for model in (first, second, other)] == [1, 1, 0]
    assert len(dit_compile.graphs()) == 1, "experts share code"


def test_what_cannot_be_compiled():
    with pytest.raises(TypeError, match="got int"):
        dit_compile.compile(3)
    with pytest.raises(TypeError, match=r"no component named transformer \(modules: unet\)"):
        dit_compile.compile(Pipe(unet=toys.build(toys.Toy)))
    compiled = torch.compile(toys.build(toys.Toy))
    for given in (compiled, Pipe(transformer=compiled)):
        with pytest.raises(TypeError, match=r"compiled by torch\.compile already"):
            dit_compile.compile(given)
    with pytest.raises(ConfigError, match="given twice"):
        dit_compile.compile(toys.build(toys.Toy), fn=1, options={"fn": 2})


def test_a_wrong_setting_is_said_at_once():
    for settings, message in (
        ({"warmup": 3}, "compile\\(\\) argument 'warmup' is not a setting of dit_cache; did you mean 'warmup_steps'"),
        ({"fn": 0}, "compile\\(\\) argument 'fn': got 0"),
        ({"policy": "mask"}, "needs step_mask"),
        ({"options": {"warmup_step": 3}}, "did you mean 'warmup_steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            dit_compile.compile(toys.build(toys.Toy), **settings)


@torch.no_grad()
def test_compiling_again_replaces_settings():
    model = dit_compile.compile(toys.build(toys.Toy), inner="eager", residual_diff_threshold=0)
    generation(model)
    dit_compile.compile(model, inner="eager", policy="mask", step_mask="100")
    generation(model)
    assert [step.action for step in dit_compile.stats(model)[-1].steps] == ["compute", "reuse", "reuse"]


@torch.no_grad()
def test_positional_arguments_have_names():
    """The time is found by its name, which Dynamo does not know of a call by position."""
    model = dit_compile.compile(toys.build(toys.Toy), inner="eager")
    generation(model)
    assert "where the timestep jumps back" in dit_compile.stats(model)[-1].clock


@torch.no_grad()
def test_the_model_is_copied_pickled_and_freed_as_ever(tmp_path):
    model = toys.build(toys.Toy)
    wanted = generation(model)
    dit_compile.compile(model, inner="eager", residual_diff_threshold=0)
    generation(model)
    torch.save(model, tmp_path / "model")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model", weights_only=False),
    ):
        assert all(type(block) is toys.Block for block in other.blocks)
        assert all(torch.equal(a, b) for a, b in zip(generation(other), wanted, strict=True))
        assert dit_compile.stats(other) == [], "copies are not compiled"
    alive = weakref.ref(model)
    block = weakref.ref(model.blocks[0])
    del model, other
    gc.collect()
    assert alive() is None and block() is None


@torch.no_grad()
def test_threads():
    """Eight threads call one model at once, the first calls included."""
    model = toys.build(toys.Toy)
    wanted = [generation(model, seed) for seed in range(8)]
    dit_compile.compile(model, inner="eager", residual_diff_threshold=0, dynamic=False)
    results = [None] * 8

    def work(number):
        with torch.no_grad(), dit_compile.session(f"request {number}"):
            results[number] = generation(model, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(results, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@torch.no_grad()
def test_disabled_is_plain(monkeypatch):
    monkeypatch.setenv("DIT_CACHE_ENABLED", "0")
    model = toys.build(toys.Toy)
    wanted = generation(model)
    dit_compile.compile(model, inner="eager")
    assert all(torch.equal(a, b) for a, b in zip(generation(model), wanted, strict=True))
    assert dit_compile.graphs() == [] and dit_compile.stats(model) == []


@torch.no_grad()
@pytest.mark.parametrize("options", [{"regions": False}, {"watch": False}, {"switches": False}])
def test_each_part_can_be_switched_off(options):
    model = toys.build(toys.Toy)
    wanted = generation(model)
    dit_compile.compile(model, inner="eager", residual_diff_threshold=0, **options)
    assert all(torch.equal(a, b) for a, b in zip(generation(model), wanted, strict=True))
    (report,) = dit_compile.graphs()
    assert report.refusal is None
    assert (report.guards is None) == ("watch" in options)
