"""Other models than the bundled one go through the same measurements."""

import json

import pytest
import torch
import typer
from _train_model import Size, new_transformer
from _train_scenes import SCENES
from diffusers import FlowMatchEulerDiscreteScheduler
from quality import RESULTS, Results
from quality_grid import FEWER, HELD_OUT, OURS, PROMPTS, SCREEN, Scene, Way, third_round
from quality_model import Model
from quality_page import page, presets_of, shipped
from quality_plot import save_plot
from quality_runs import Studio

from dit_compile.config import PRESETS
from dit_compile.demo.pipeline import MODEL_DIR

DATA = json.loads(RESULTS.read_text())
ASKED = {
    "choosing": ["small cat left and large fox right", "large key top left and small bee right"],
    "held out": ["small owl top and small pig left"],
}


@pytest.fixture
def folder(tmp_path):
    """A small model of scenes with random weights."""
    torch.manual_seed(0)
    transformer = new_transformer(Size(heads=1, layers=2, single_layers=2), SCENES)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    transformer.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler.from_pretrained(MODEL_DIR / "scheduler").save_pretrained(tmp_path / "scheduler")
    config = {"picture_size": 64, "text_tokens": 32, "text_channels": 128, "reach": 5}
    (tmp_path / "codec.json").write_text(json.dumps(config))
    (tmp_path / "prompts.json").write_text(json.dumps(ASKED))
    return tmp_path


def test_prompts_and_codec_are_those_of_the_folder(folder):
    model = Model(folder)
    assert not model.bundled and model.prompts == ASKED and model.codec == SCENES
    assert Scene("held out", 4, 1.0).of(model.prompts) == ASKED["held out"]
    assert SCREEN.of(PROMPTS) == PROMPTS["choosing"][:4]
    assert Model().bundled and Model().prompts is PROMPTS and Model().facts() == {}


def test_a_file_keeps_the_figures_of_one_model(folder, tmp_path):
    path = tmp_path / "figures.json"
    Results(path, Model(folder)).save()
    assert Results(path, Model(folder)).data["prompts"] == ASKED
    with pytest.raises(typer.BadParameter, match="another model"):
        Results(path, Model())
    with pytest.raises(typer.BadParameter, match="another model"):
        Results(RESULTS, Model(folder))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(typer.BadParameter, match="other weights"):
        Results(path, Model(folder))


@pytest.mark.slow
def test_a_larger_picture_is_drawn_and_compared(folder):
    studio = Studio(model=Model(folder))
    scene = Scene("choosing", 6, 2.0)
    assert studio.reference(scene).shape == (2, 64, 64, 3) and studio.blocks == 4
    fewer = studio.measure(Way(FEWER, "3 of 6 steps", {"steps": 3}), scene)
    assert fewer["cost"] == 3 and 5 < fewer["psnr"] < 100
    every = {"policy": "interval", "interval": 2, "warmup_steps": 1, "forecast": "reuse"}
    cached = studio.measure(Way(OURS, "every second", every), scene)
    assert 3 < cached["cost"] < 6 and 5 < cached["psnr"] < 100
    assert len(studio.table("magcache")) == 27, "measured on a scene of 28 steps"


def test_presets_are_taken_as_they_are():
    assert {*shipped()} == {"quality", "balanced", "fast", "ultra"} <= {*PRESETS}
    assert presets_of(DATA) == shipped(), "they were chosen on the bundled model"
    assert presets_of({**DATA, "model": "scenes", "ways": {}}) == shipped()
    going = {way.name for way, _ in third_round(DATA["ways"], shipped().values())}
    assert {*shipped().values()} <= going


def test_the_page_of_another_model_says_what_it_is_about(tmp_path):
    other = {**DATA, "model": "scenes", "prompts": {"choosing": ["a"] * 7, "held out": ["b"] * 5}}
    text = page(other, results="quality_scenes.json", plot="quality_scenes.png")
    assert text.startswith("# Quality on scenes\n") and "bundled model, and" not in text
    assert "(quality_scenes.json)" in text and "(quality_scenes.png)" in text
    assert "7 prompts" in text and "5 others" in text
    assert "Without a forecast" in page(DATA) and "Without a forecast" not in text
    assert "this model would have" in text and "## Decisions without waiting" not in text
    save_plot(other, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_page_after_the_first_round_has_no_rows_for_what_is_missing(tmp_path):
    ways = {
        name: {**way, "figures": {scene: of for scene, of in way["figures"].items() if scene == SCREEN.name}}
        for name, way in DATA["ways"].items()
    }
    early = {**DATA, "model": "scenes", "ways": ways}
    text = page(early)
    assert "nothing that was drawn" in text and "| `quality` | 28 / 1 |" not in text
    assert "| `quality` | 28 / 1 |" in page(DATA) and HELD_OUT[0].name.startswith("held out, 28 steps, guidance 1")
    save_plot(early, tmp_path / "plot.png")
