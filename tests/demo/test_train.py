"""The training script on a handful of made-up emoji."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_emoji.py"
SHAPES = ("square", "left", "ring")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_emoji", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def emoji_dir(tmp_path_factory) -> Path:
    """A folder laid out like emoji-datasource-google, with three shapes on a transparent ground."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "img" / "google" / "64"
    folder.mkdir(parents=True)
    rgba = np.zeros((3, 64, 64, 4), np.uint8)
    rgba[0, 8:56, 8:56] = (255, 0, 0, 255)
    rgba[1, 8:56, 8:32] = (0, 255, 0, 255)
    rgba[2, 8:56, 8:56] = (0, 0, 255, 255)
    rgba[2, 24:40, 24:40] = 0
    for name, pixels in zip(SHAPES, rgba, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    index = [{"short_name": name, "image": f"{name}.png"} for name in SHAPES]
    (root / "emoji.json").write_text(json.dumps(index))
    rows = ["short_name\tprompt\tcategory\tmirror", *(f"{n}\t{n} shape\tform\t{int(n == 'left')}" for n in SHAPES)]
    (root / "subjects.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def data(train, emoji_dir):
    return train.EmojiData(emoji_dir, train.read_subjects(emoji_dir / "subjects.tsv"), poses=4, seed=0)


def test_batches_match_their_prompts(train, data):
    pictures, prompts = data.batch(400)
    assert pictures.shape == (400, 3, 32, 32) and pictures.min() >= -1 and pictures.max() <= 1
    dropped = prompts.count("")
    assert 15 <= dropped <= 75, "about a tenth is dropped"
    colour_of = {"square": (1.0, -1.0, -1.0), "left": (-1.0, 1.0, -1.0), "ring": (-1.0, -1.0, 1.0)}
    checked = 0
    for picture, prompt in zip(pictures, prompts, strict=True):
        name, *ground = prompt.replace(" shape", "").split(" on ")
        if name not in colour_of:
            continue
        shape = torch.tensor(colour_of[name])[:, None, None]
        assert (picture - shape).abs().sum(0).min() < 0.1, prompt
        colour = torch.tensor(train.GROUNDS[ground[0] if ground else "white"]) / 127.5 - 1
        torch.testing.assert_close(picture[:, 0, 0], colour, rtol=0, atol=1e-5)
        checked += 1
    assert checked > 250


def test_only_subjects_that_may_be_mirrored_are(data):
    data.subjects = [data.subjects[1]] * 3
    data.bank = data.bank[[1, 1, 1]]
    data.mirror = torch.tensor([True, True, False])
    pictures, _ = data.batch(200)
    green_left = (pictures[:, 1] > pictures[:, 0] + 1).float()
    mirrored = (green_left[..., 16:].sum((1, 2)) > green_left[..., :16].sum((1, 2))).float().mean()
    assert 0.2 < mirrored < 0.47, "half of two thirds"


def test_orthogonalised_matrices_have_singular_values_near_one(train):
    stack = torch.randn(3, 96, 24, generator=torch.Generator().manual_seed(0))
    for tested in (stack, stack.mT):
        values = torch.linalg.svdvals(train.orthogonalised(tested))
        assert values.min() > 0.6 and values.max() < 1.25


def test_a_fresh_model_predicts_nothing_and_its_blocks_do_nothing(train):
    model = train.new_transformer()
    assert sum(weight.numel() for weight in model.parameters()) == 2_537_776
    assert not model.proj_out.weight.any()
    assert not model.transformer_blocks[0].norm1.linear.weight.any()
    assert not model.single_transformer_blocks[0].norm.linear.weight.any()
    assert model.single_transformer_blocks[0].proj_out.weight.any()


def test_learns(train, data):
    def error() -> float:
        """On the same 16 pictures, noise and noise levels every time."""
        data.random = np.random.default_rng(1)
        torch.manual_seed(1)
        with torch.no_grad():
            return train.flow_loss(trainer.model, data, 16).item()

    torch.manual_seed(0)
    trainer = train.Trainer(data, batch=4, muon_rate=0.02, adam_rate=1.5e-3)
    trainer.step = train.RAMP_STEPS  # the learning rate starts at its peak
    before = error()
    for _ in range(10):
        trainer.advance(progress=0.0)
    assert error() < 0.9 * before
    assert all(torch.isfinite(weight).all() for weight in trainer.average.parameters())


def test_the_command_saves_a_model_that_the_pipeline_loads(train, emoji_dir, tmp_path):
    app = typer.Typer()
    app.command()(train.main)
    subjects = str(emoji_dir / "subjects.tsv")
    arguments = ["--emoji-dir", str(emoji_dir), "--subjects", subjects, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--steps", "2", "--batch", "2", "--poses", "1"])
    assert result.exit_code == 0, result.output
    assert "3 emoji, 2,537,776 parameters" in result.output and "step 2" in result.output
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer", low_cpu_mem_usage=False)
    assert model.proj_out.weight.any(), "it has moved from its zero start"
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler").config.use_dynamic_shifting
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (8 * 64, 64)


def test_a_folder_without_the_subjects_is_refused(train, emoji_dir, tmp_path):
    app = typer.Typer()
    app.command()(train.main)
    result = CliRunner().invoke(app, ["--emoji-dir", str(emoji_dir), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "grinning" in result.output
