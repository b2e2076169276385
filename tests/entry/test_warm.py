"""Compiled models that are saved and loaded: nothing is compiled again, and what does not fit is refused."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys

import dit_compile
from dit_compile.compat import counters
from dit_compile.entry import target, warm

STEPS = 4
HELPERS = Path(toys.__file__).parent
SETTINGS = {
    "inner": "eager",
    "residual_diff_threshold": 1.0,
    "warmup_steps": 2,
    "max_continuous_cached_steps": -1,
    "strict": True,
}


class Broken(toys.Toy):
    """Dynamo breaks the graph in front of the blocks."""

    def forward(self, x, t):
        temb = toys.timestep_embedding(t)
        h = self.embed(x)
        torch._dynamo.graph_break()
        return self.tail(self.region(self.blocks[0](h, temb), temb), temb)


class Activated(toys.Toy):
    """A function that is an attribute of the model, outside of its blocks."""

    def __init__(self):
        super().__init__()
        self.activation = torch.nn.functional.silu

    def forward(self, x, t):
        return super().forward(self.activation(x), t)


class Wider(toys.Toy):
    def forward(self, x, t):
        return super().forward(x, t) * 2


def build(cls=toys.Toy, **kwargs):
    model = toys.build(cls, **kwargs)
    return dit_compile.compile(model, record=True, **SETTINGS)


@torch.no_grad()
def generation(model, tokens=5):
    times = toys.timesteps(STEPS)
    latents = toys.latents(tokens=tokens)
    return [model(latents + 0.1 * step, torch.tensor([time, time])) for step, time in enumerate(times)]


def equal(got, wanted):
    return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def next_process(monkeypatch):
    """Nothing that was compiled is left, and no name that was given to a structure."""
    torch._dynamo.reset()
    counters().clear()
    monkeypatch.setattr(target, "_structures", {})


def loaded(monkeypatch, path):
    """The toy in the next process, with what ``path`` has."""
    next_process(monkeypatch)
    model = dit_compile.compile(toys.build(toys.Toy), **SETTINGS)
    assert dit_compile.load(model, path)
    return model


def compiled_frames():
    return counters()["frames"]["total"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model, path = build(), tmp_path_factory.mktemp("saved") / "toy.dit"
    outputs = generation(model)
    dit_compile.save(model, path)
    return path, outputs


@pytest.fixture
def saved(original, tmp_path):
    """(file, outputs of the model that was saved)"""
    shutil.copy(original[0], tmp_path)
    return tmp_path / "toy.dit", original[1]


def test_nothing_is_compiled_after_loading(saved, monkeypatch):
    path, outputs = saved
    model = loaded(monkeypatch, path)
    assert equal(generation(model), outputs)
    assert compiled_frames() == 0
    assert counters()["dit_cache"]["graphs"] == 1
    [report] = dit_compile.graphs()
    assert report.refusal is None and "6 x Block" in report.chain
    assert dit_compile.stats(model)[-1].reused == STEPS - 2


def test_another_process(saved):
    path, outputs = saved
    torch.save(outputs, path.with_suffix(".pt"))
    program = f"""
import dit_compile, test_warm, toys, torch
model = dit_compile.compile(toys.build(toys.Toy), **test_warm.SETTINGS)
dit_compile.load(model, {str(path)!r})
assert test_warm.equal(test_warm.generation(model), torch.load({str(path.with_suffix(".pt"))!r}))
assert test_warm.compiled_frames() == 0
"""
    run(program)


def run(program, **environment):
    paths = os.pathsep.join([str(HELPERS), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_of_the_run_may_be_others(saved, monkeypatch):
    path, outputs = saved
    next_process(monkeypatch)
    model = dit_compile.compile(toys.build(toys.Toy), **{**SETTINGS, "residual_diff_threshold": 0.0})
    dit_compile.load(model, path)
    got = generation(model)
    assert compiled_frames() == 0
    assert dit_compile.stats(model)[-1].reused == 0
    assert equal(got[:2], outputs[:2]) and not equal(got, outputs)


def hooked(model):
    model.blocks[2].up.register_forward_hook(lambda module, args, output: -output)
    return model


def scaled(model):
    for block in model.blocks:
        block.norm.eps = 0.25
    return model


def with_setting(**settings):
    return lambda path: dit_compile.load(dit_compile.compile(toys.build(toys.Toy), **{**SETTINGS, **settings}), path)


def with_model(make):
    return lambda path: dit_compile.load(dit_compile.compile(make(), **SETTINGS), path)


def with_content(change):
    def load(path):
        path.write_bytes(change(path.read_bytes()))
        return with_setting()(path)

    return load


REFUSED = {
    "setting": (with_setting(fn=2), "fn was 1, and is 2 here"),
    "another compiler": (with_setting(inner="inductor"), "inner was 'eager', and is 'inductor'"),
    "Inductor's setting": (with_setting(options={"max_autotune": True}), "max_autotune of Inductor was not set"),
    "switched off": (with_setting(enabled=False), "enabled was True"),
    "policy with another tap": (with_setting(policy="teacache"), "what guards watch"),
    "dtype": (with_model(lambda: toys.build(toys.Toy).double()), r"embed.weight was float32\[16, 16\] on cpu"),
    "width": (with_model(lambda: toys.build(toys.Toy, width=32)), r"float32\[32, 32\]"),
    "depth": (with_model(lambda: toys.build(toys.Toy, depth=5)), "not there here"),
    "class": (with_model(lambda: toys.build(Wider)), "it is a toys.Toy, and this is a .*Wider"),
    "hook": (with_model(lambda: hooked(toys.build(toys.Toy))), "other blocks of it are alike"),
    "attribute": (with_model(lambda: scaled(toys.build(toys.Toy))), r"0.25|became"),
    "number of models": (
        lambda path: dit_compile.load(dit_compile.compile(pipeline(), **SETTINGS), path), "1 models, and 2 are"
    ),
    "damaged": (with_content(lambda content: content[:-1] + b"?"), "is damaged"),
    "cut off": (with_content(lambda content: content[:-100]), "is damaged"),
    "empty": (with_content(lambda content: b""), "is no file of dit_compile.save"),
    "another file": (with_content(lambda content: b"\x80\x04]" + content), "is no file of dit_compile.save"),
    "header": (with_content(lambda content: b"dit_compile {" + content), "is no file of dit_compile.save"),
    "no file": (lambda path: with_setting()(path.with_suffix(".none")), "No such file"),
    "not compiled by us": (lambda path: dit_compile.load(toys.build(toys.Toy), path), "is not compiled with"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, saved, monkeypatch):
    load, reason = REFUSED[case]
    next_process(monkeypatch)
    with pytest.raises(dit_compile.ArtifactError, match=reason):
        load(saved[0])


@pytest.mark.parametrize("name", ["torch", "Python", "Triton", "CPU", "GPU", "dit_compile", "machine"])
def test_refused_where_made_for_something_else(name, saved, monkeypatch):
    here = warm._here()
    monkeypatch.setattr(warm, "_here", lambda: {**here, name: "other"})
    with pytest.raises(dit_compile.ArtifactError, match=f"made for another {name}: .*, and here is other"):
        with_setting()(saved[0])


def test_environment_counts(saved, monkeypatch):
    next_process(monkeypatch)
    monkeypatch.setenv("DIT_CACHE_FN", "2")
    with pytest.raises(dit_compile.ArtifactError, match=r"fn was 1, and is 2 here .*DIT_CACHE"):
        with_setting()(saved[0])


def test_a_refused_model_compiles(saved, monkeypatch, caplog):
    next_process(monkeypatch)
    model = dit_compile.compile(toys.build(toys.Toy), **{**SETTINGS, "fn": 2})
    assert not dit_compile.load(model, saved[0], strict=False)
    assert "fn was 1, and is 2 here" in caplog.text
    generation(model)
    assert compiled_frames() == 1
    assert dit_compile.graphs()[-1].regions[0].front == 2


def test_sizes(tmp_path, monkeypatch):
    """Each size that was called, and those that a graph with symbolic sizes serves."""
    model = build()
    wanted = {tokens: generation(model, tokens) for tokens in (5, 7, 9)}
    assert compiled_frames() == 2
    dit_compile.save(model, tmp_path / "file")
    model = loaded(monkeypatch, tmp_path / "file")
    for tokens, outputs in wanted.items():
        assert equal(generation(model, tokens), outputs)
    generation(model, 11)
    assert compiled_frames() == 0


def test_another_size_is_compiled(saved, monkeypatch):
    model = loaded(monkeypatch, saved[0])
    generation(model)
    generation(model, 9)
    assert compiled_frames() == 1
    dit_compile.save(model, saved[0])  # both of them
    model = loaded(monkeypatch, saved[0])
    generation(model)
    generation(model, 9)
    assert compiled_frames() == 0


def pipeline(second=toys.Toy):
    parts = {"transformer": toys.build(toys.Toy), "transformer_2": toys.build(second, seed=1)}
    return SimpleNamespace(components=parts)


@pytest.mark.parametrize("second", [toys.Toy, toys.TwoStreams])
def test_two_transformers(second, tmp_path, monkeypatch):
    pipe = dit_compile.compile(pipeline(second), record=True, **SETTINGS)
    wanted = [generation(model) for model in pipe.components.values()]
    dit_compile.save(pipe, tmp_path / "file")
    next_process(monkeypatch)
    pipe = dit_compile.compile(pipeline(second), **SETTINGS)
    dit_compile.load(pipe, tmp_path / "file")
    for model, outputs in zip(pipe.components.values(), wanted, strict=True):
        assert equal(generation(model), outputs)
    assert compiled_frames() == 0


def test_two_models_from_one_file(saved, monkeypatch):
    """Each keeps its own weights and settings."""
    path, outputs = saved
    next_process(monkeypatch)
    models = [toys.build(toys.Toy), toys.build(toys.Toy, seed=1)]
    plain = [copy.deepcopy(model) for model in models]
    for model, threshold in zip(models, (1.0, 0.0), strict=True):
        dit_compile.compile(model, **{**SETTINGS, "residual_diff_threshold": threshold})
        dit_compile.load(model, path)
    assert equal(generation(models[0]), outputs)
    assert equal(generation(models[1]), generation(plain[1]))
    assert [dit_compile.stats(model)[-1].reused for model in models] == [STEPS - 2, 0]


def test_broken_graph(tmp_path):
    """The parts of one are functions that other models share."""
    model = build(Broken)
    generation(model)
    generation(model)
    with pytest.raises(dit_compile.ArtifactError, match=r"torch broke its graph.*\(forward, torch_dynamo_resume"):
        dit_compile.save(model, tmp_path / "file")


def test_functions_outside_of_blocks(tmp_path, monkeypatch):
    model = dit_compile.compile(toys.build(Activated), record=True, **{**SETTINGS, "residual_diff_threshold": 0})
    generation(model)
    dit_compile.save(model, tmp_path / "file")
    changed = toys.build(Activated)
    changed.activation = model.activation = torch.relu
    assert equal(generation(model), generation(changed))
    next_process(monkeypatch)
    with pytest.raises(dit_compile.ArtifactError, match=r"silu became .*relu"):
        dit_compile.load(dit_compile.compile(changed, **SETTINGS), tmp_path / "file")
    model = dit_compile.compile(toys.build(Activated), **{**SETTINGS, "residual_diff_threshold": 0})
    dit_compile.load(model, tmp_path / "file")
    generation(model)
    assert compiled_frames() == 0
    model.activation = torch.relu
    assert equal(generation(model), generation(toys_with_relu()))


def toys_with_relu():
    model = toys.build(Activated)
    model.activation = torch.relu
    return model


@pytest.mark.parametrize("change", [hooked, scaled])
def test_changes_after_loading_are_seen(change, saved, monkeypatch):
    next_process(monkeypatch)
    model = dit_compile.compile(toys.build(toys.Toy), **{**SETTINGS, "residual_diff_threshold": 0})
    dit_compile.load(model, saved[0])
    generation(model)
    change(model)
    with torch.no_grad():
        wanted = generation(change(toys.build(toys.Toy)))
    assert equal(generation(model), wanted)
    assert compiled_frames() == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: dit_compile.compile(toys.build(toys.Toy), **SETTINGS), "record=True"),
        (lambda: build(), "nothing was compiled so far"),
        (lambda: toys.build(toys.Toy), "is not compiled with dit_compile.compile"),
    ],
)
def test_not_saved(make, reason, tmp_path):
    with pytest.raises(dit_compile.ArtifactError, match=reason):
        dit_compile.save(make(), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_compiler_whose_code_cannot_be_kept(tmp_path):
    model = dit_compile.compile(toys.build(toys.Toy), record=True, **{**SETTINGS, "inner": "aot_eager"})
    generation(model)
    with pytest.raises(dit_compile.ArtifactError, match="no form of a compiled piece"):
        dit_compile.save(model, tmp_path / "file")


def test_a_model_that_cannot_be_kept_compiles(tmp_path, caplog):
    class Hidden(toys.Toy):
        def forward(self, x, t):
            return super().forward(x, t)

    model = build(Hidden)
    outputs = generation(model)
    assert equal(outputs, generation(dit_compile.compile(toys.build(toys.Toy), **SETTINGS)))
    assert "Hidden cannot be saved" in caplog.text
    with pytest.raises(dit_compile.ArtifactError, match="defined in local scope"):
        dit_compile.save(model, tmp_path / "file")


@pytest.mark.slow
def test_flux_in_two_processes(tmp_path):
    """Compiled by Inductor, whose caches are there for the second process; with a LoRA adapter put on afterwards."""
    program = """
import torch, dit_compile, test_warm
from tiny_models import FLUX
model = dit_compile.compile(FLUX.build(), residual_diff_threshold=0.5, record=True)
path = {path!r}
first = {first}
if not first:
    assert dit_compile.load(model, path)
def generate():
    inputs, outputs = FLUX.inputs(), []
    for step in range(6):
        inputs["timestep"] = torch.full((1,), 1 - step / 6)
        with torch.no_grad():
            outputs.append(model(**inputs)[0])
    return outputs
outputs = generate()
if first:
    dit_compile.save(model, path)
    torch.save(outputs, path + ".pt")
else:
    assert test_warm.equal(outputs, torch.load(path + ".pt"))
    assert test_warm.compiled_frames() == 0
    assert dit_compile.stats(model)[-1].reused > 0
    from peft import LoraConfig
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    assert not test_warm.equal(generate(), outputs)
    assert test_warm.counters()["frames"]["ok"] == 1
"""
    cache = str(tmp_path / "inductor")
    for first in (True, False):
        run(program.format(path=str(tmp_path / "flux.dit"), first=first), TORCHINDUCTOR_CACHE_DIR=cache)
