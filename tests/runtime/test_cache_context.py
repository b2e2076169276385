"""diffusers' names of calls ("cond", "uncond"): heard where a pipeline says them, and then they tell branches apart."""

import contextlib
import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from examine import error
from registry import registered

import dit_compile
from dit_compile.api import table
from dit_compile.runtime.clock import Clock
from dit_compile.runtime.inputs import Call
from dit_compile.runtime.transfer import Parcel


class Loop:
    """Every call brings new tensors, on a device: only names tell calls apart. Notes (step, branch) of each."""

    def __init__(self):
        self.clock, self.kept, self.places = Clock(), [], []

    def call(self, *names):
        for name in names:
            x, t, prompt = torch.zeros(2, 3), torch.zeros(2), torch.zeros(1, 2)
            self.kept += [x, t, prompt]
            position = self.clock.tick(Call(0, [x], t, [prompt], None, name), cfg="auto", num_steps=None)
            self.places.append((position.step, position.branch))


def test_names_make_steps_of_new_tensors():
    loop = Loop()
    for _ in range(3):
        loop.call("cond", "uncond")
    assert loop.places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_without_names_each_call_of_new_tensors_is_a_step():
    loop = Loop()
    loop.call(None, None, None)
    assert loop.places == [(0, 0), (1, 0), (2, 0)]


def test_guidance_in_an_interval():
    loop = Loop()
    for names in (["cond"], ["cond"], ["cond", "uncond"], ["cond", "uncond"], ["cond"], ["cond", "uncond"]):
        loop.call(*names)
    assert loop.places == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (5, 0), (5, 1)]


def test_three_names_keep_their_branches_when_the_first_stays_away():
    loop = Loop()
    for names in (["cond", "uncond", "uncond_stg"], ["cond", "uncond_stg"], ["cond", "uncond", "uncond_stg"]):
        loop.call(*names)
    assert loop.places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_prompt_that_changes_under_its_name_is_noticed():
    clock, kept = Clock(), []

    def call(prompt):
        kept.append((x := torch.zeros(2, 3), t := torch.zeros(2)))
        return clock.tick(Call(0, [x], t, [prompt], None, "cond"), cfg="auto", num_steps=None)

    first, second = torch.zeros(1), torch.zeros(1)
    assert [call(p).new_prompt for p in (first, first, second, second)] == [False, False, True, False]


@pytest.mark.parametrize("names", [["cond", "uncond"], ["cond"]], ids=str)
def test_the_call_that_nobody_heard_takes_its_name_later(names):
    """The model is found at its first call, when the name has been said. Times are on the host, all else is new."""
    clock, kept, places = Clock(), [], []
    for step in range(3):
        for name in names:
            kept.append((x := torch.zeros(2, 3), t := torch.full((2,), 9.0 - step), prompt := torch.zeros(1)))
            heard = None if len(kept) == 1 else name
            position = clock.tick(Call(0, [x], t, [prompt], 9.0 - step, heard), cfg="auto", num_steps=None)
            places.append((position.step, position.branch))
    assert places == [(step, branch) for step in range(3) for branch in range(len(names))]


def flux():
    spec = registered("FluxTransformer2DModel")
    return spec, spec.build()


@pytest.fixture
def on_a_device(monkeypatch):
    monkeypatch.setattr("dit_compile.runtime.inputs.on_host", lambda tensor: False)
    monkeypatch.setattr(Parcel, "ready", lambda self: False)


@torch.no_grad()
def generate(spec, model, steps=4, same_latents=True):
    """Guidance with prompts and times that are made anew for every call, and maybe the latents, too."""
    outs = []
    for index in range(steps):
        x = spec.call(0.1 * index, steps=40)["hidden_states"]
        for branch, name in enumerate(("cond", "uncond")):
            call = spec.call(0.1 * index, steps=40, seed=1 + branch)
            call["hidden_states"] = x if same_latents else x.clone()
            with model.cache_context(name):
                outs.append(model(**call))
    return outs


def test_a_model_of_diffusers_is_heard(on_a_device):
    spec, plain = flux()
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", "residual_diff_threshold": 0})
    outs = generate(spec, model)
    assert [(s.index, s.branch) for s in dit_compile.stats(model)[-1].steps] == [
        (i, b) for i in range(4) for b in (0, 1)
    ]
    for got, wanted in zip(outs, generate(spec, plain), strict=True):
        assert error(got, wanted) < 1e-5


def test_names_alone_are_enough_from_the_second_generation_on(on_a_device):
    """The model is found at its first call, when its name has been said already."""
    spec, plain = flux()
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", "residual_diff_threshold": 0})
    generate(spec, model, steps=2, same_latents=False)
    dit_compile.reset()
    generate(spec, model, steps=2, same_latents=False)
    assert [(s.index, s.branch) for s in dit_compile.stats(model)[-1].steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@torch.no_grad()
def test_nothing_is_left_on_the_model(tmp_path):
    """Hooks of diffusers come and go, and a used model is copied, pickled and saved as one that was never compiled."""
    from diffusers.hooks import HookRegistry, ModelHook

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return (output[0] * 2,)

    spec, plain = flux()
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager"})
    call = spec.call(0)
    with model.cache_context("cond"):
        wanted = model(**call)[0]
    registry = HookRegistry.check_if_exists_or_initialize(plain)
    assert registry.hooks == {}
    registry.register_hook(Doubling(), "doubling")
    torch.testing.assert_close(plain(**call)[0], 2 * wanted, rtol=1e-4, atol=1e-5)
    registry.remove_hook("doubling")
    torch.save(plain, tmp_path / "model.pt")
    for copied in (copy.deepcopy(plain), torch.load(tmp_path / "model.pt", weights_only=False)):
        with copied.cache_context("cond"):
            torch.testing.assert_close(copied(**call)[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_end_of_a_pipeline_call_ends_the_generation():
    """Its memory is freed at once, and what comes next is a generation, though its time goes on falling."""
    spec, plain = flux()
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", "residual_diff_threshold": 1.0})
    generate(spec, model, steps=3)
    state = next(state for (_, name), state in table._states.items() if name == "default" and state.generation)
    assert state.bytes_held() > 0
    plain._reset_stateful_cache()
    assert state.bytes_held() == 0
    assert dit_compile.stats(model)[-1].ended and dit_compile.stats(model)[-1].bytes_held > 0
    with torch.no_grad():
        model(**spec.call(5, steps=40))
    assert [len(generation.steps) for generation in dit_compile.stats(model)] == [6, 1]
    assert dit_compile.stats(model)[-1].steps[0].reason == "no_snapshot"


class Aborted(Exception):
    pass


class Plain(DiffusionPipeline):
    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)

    def __call__(self, spec, steps, flip=1):
        for index in self.progress_bar(steps):
            if index is None:
                raise Aborted
            call = spec.call(index, steps=40)
            self.transformer(**call | dict(hidden_states=call["hidden_states"] * flip**index))
        self.maybe_free_model_hooks()


@torch.no_grad()
def test_a_run_that_was_aborted_is_over_when_the_next_begins():
    """Nothing else tells: the next run, of the second half of the steps, goes on in time with the same tensors."""
    spec, plain = flux()
    model = torch.compile(plain, backend="dit_cache", options={"inner": "eager", "residual_diff_threshold": 1.0})
    pipe = Plain(model)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(Aborted):
        pipe(spec, steps=[0, 1, 2, None])
    pipe(spec, steps=range(20, 25))
    assert [len(generation.steps) for generation in dit_compile.stats(model)] == [3, 5]


@torch.no_grad()
def test_schedules_look_at_no_latents_while_a_pipeline_is_under_way():
    """It says when it ends. After a run that was aborted nobody does."""
    spec, plain = flux()
    options = {"inner": "eager", "policy": "mask", "step_mask": "1101010101"}
    pipe = Plain(model := torch.compile(plain, backend="dit_cache", options=options))
    pipe.set_progress_bar_config(disable=True)
    pipe(spec, steps=[0, 1, 2, 3], flip=-1)  # latents that move by more than there was
    assert [step.action[0] for step in dit_compile.stats(model)[-1].steps] == ["c", "c", "r", "c"]
    with contextlib.suppress(Aborted):
        pipe(spec, steps=[0, 1, None])
    for index in (20, 21, 22):
        model(**spec.call(index, steps=40))
    assert [len(generation.steps) for generation in dit_compile.stats(model)] == [4, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("named", [True, False])
def test_listening_compiles_nothing_again(named):
    """Allegro reads ``self.dtype``, which looks at the hooks of all modules, so Dynamo guards on them."""
    spec = registered("AllegroTransformer3DModel")
    model = torch.compile(plain := spec.build(), backend="dit_cache", dynamic=False, options={"inner": "eager"})
    for index in range(3):
        with plain.cache_context("cond") if named else contextlib.nullcontext():
            model(**spec.call(index, steps=3))
    assert len(dit_compile.graphs()) == 1
    assert hasattr(plain, "_diffusers_hook") == named
