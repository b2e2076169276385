"""The training script on a handful of made-up emoji."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch
import train_emoji
import typer
from _train_model import RAMP_STEPS, Recipe, Size, Trainer, flow_loss, new_transformer
from _train_muon import orthogonalised
from _train_pictures import GROUNDS, EmojiData, read_subjects
from _train_scenes import SCENES, SceneData
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from typer.testing import CliRunner

from dit_compile.demo import codec
from dit_compile.demo.pipeline import generate, load_pipeline, read_codec

CPU = torch.device("cpu")
TINY = Size(heads=1, layers=1, single_layers=1)
FEW = Recipe(batch=4, muon_rate=0.02, adam_rate=1.5e-3, decay=0.998)


@pytest.fixture
def data(emoji_dir):
    return EmojiData(emoji_dir, read_subjects(emoji_dir / "subjects.tsv"), poses=4, seed=0)


@pytest.fixture
def scenes(emoji_dir):
    return SceneData(emoji_dir, read_subjects(emoji_dir / "subjects.tsv"), seed=0, device=CPU)


@pytest.fixture
def command(emoji_dir, tmp_path):
    """Runs the script on the made-up emoji, into ``tmp_path``."""
    app = typer.Typer()
    app.command()(train_emoji.main)
    folders = ["--emoji-dir", str(emoji_dir), "--subjects", str(emoji_dir / "subjects.tsv"), "--out", str(tmp_path)]
    return lambda *arguments: CliRunner().invoke(app, [*folders, "--device", "cpu", "--batch", "2", *arguments])


SMALL_SCENES = ("--scenes", "--heads", "1", "--layers", "1", "--single-layers", "1")


def test_batches_match_their_prompts(data):
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
        colour = torch.tensor(GROUNDS[ground[0] if ground else "white"]) / 127.5 - 1
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


def test_orthogonalised_matrices_have_singular_values_near_one():
    stack = torch.randn(3, 96, 24, generator=torch.Generator().manual_seed(0))
    for tested in (stack, stack.mT):
        values = torch.linalg.svdvals(orthogonalised(tested))
        assert values.min() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize(
    ("run", "config", "parameters"),
    [(train_emoji.SMALL, codec.EMOJI, 2_537_776), (train_emoji.LARGE, SCENES, 14_925_360)],
    ids=["small", "large"],
)
def test_a_fresh_model_predicts_nothing_and_its_blocks_do_nothing(run, config, parameters):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in new_transformer(run.size, config).parameters()) == parameters
    assert 2 * parameters <= train_emoji.MOST_BYTES
    model = new_transformer(TINY, config)
    assert not model.proj_out.weight.any()
    assert not model.transformer_blocks[0].norm1.linear.weight.any()
    assert not model.single_transformer_blocks[0].norm.linear.weight.any()
    assert model.single_transformer_blocks[0].proj_out.weight.any()


def error(trainer: Trainer, count: int = 16) -> float:
    """The loss on the same pictures, noise and noise levels every time."""
    trainer.data.random = np.random.default_rng(1)
    torch.manual_seed(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=trainer.recipe.half):
        return flow_loss(trainer.model, trainer.data, count, CPU).item()


def test_learns(data):
    torch.manual_seed(0)
    trainer = Trainer(data, train_emoji.SMALL.size, FEW, CPU)
    trainer.step = RAMP_STEPS  # the learning rate starts at its peak
    before = error(trainer)
    for _ in range(10):
        trainer.advance(progress=0.0)
    assert error(trainer) < 0.9 * before
    assert all(torch.isfinite(weight).all() for weight in trainer.average.parameters())


def test_learns_scenes_in_half_precision(scenes):
    torch.manual_seed(0)
    trainer = Trainer(scenes, Size(2, 1, 2), Recipe(4, 0.02, 3e-3, 0.998, half=True), CPU)
    trainer.step = RAMP_STEPS
    before = error(trainer)
    for _ in range(15):
        trainer.advance(progress=0.0)
    after = error(trainer)
    assert after < 0.9 * before
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters())
    trainer.recipe = FEW
    assert error(trainer) == pytest.approx(after, rel=0.02) and error(trainer) != after, "half precision is used"


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(scenes):
    losses = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        scenes.random = np.random.default_rng(0)
        trainer = Trainer(scenes, TINY, Recipe(4, 0.02, 1.5e-3, 0.998, backend=backend), CPU)
        trainer.step = RAMP_STEPS
        for _ in range(3):
            trainer.advance(0.0)
        losses.append(error(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(emoji_dir, scenes):
    def fresh() -> Trainer:
        torch.manual_seed(0)
        scenes.random = np.random.default_rng(0)
        return Trainer(scenes, TINY, FEW, CPU)

    whole = fresh()
    for _ in range(4):
        whole.advance(0.0)
    first = fresh()
    for _ in range(2):
        first.advance(0.0)
    state = first.state()
    second = fresh()
    scenes.batch(3)  # other draws
    second.restore(state)
    for _ in range(2):
        second.advance(0.0)
    assert second.step == 4 and second.loss == whole.loss
    for name in ("model", "average"):
        pairs = zip(getattr(second, name).parameters(), getattr(whole, name).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_the_command_saves_a_model_that_the_pipeline_loads(command, tmp_path):
    result = command("--steps", "2", "--poses", "1")
    assert result.exit_code == 0, result.output
    assert "3 emoji, 2,537,776 parameters" in result.output and "step 2" in result.output
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer", low_cpu_mem_usage=False)
    assert model.proj_out.weight.any(), "it has moved from its zero start"
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler").config.use_dynamic_shifting
    assert read_codec(tmp_path) == codec.EMOJI and not (tmp_path / "prompts.json").exists()
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (8 * 64, 2 * 64), "trained pictures above, drawn ones below"


def test_scenes_are_trained_saved_and_drawn_by_the_same_pipeline(command, tmp_path):
    result = command(*SMALL_SCENES, "--minutes", "0.02")
    assert result.exit_code == 0, result.output
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert {part: len(of_part) for part, of_part in prompts.items()} == {"choosing": 12, "held out": 12}
    pipe, config = load_pipeline(folder=tmp_path), read_codec(tmp_path)
    assert config == SCENES and pipe.transformer.config.num_single_layers == 1
    tokens = generate(pipe, prompts["held out"][:2], [0, 1], 2, config=config)
    assert codec.decode_float(tokens).shape == (2, 64, 64, 3)
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (8 * 128, 4 * 128)
    assert "Noto Emoji" in (tmp_path / "NOTICE").read_text()
    assert not (tmp_path / "state.pt").exists(), "there is nothing to go on with"


def test_what_was_trained_before_ctrl_c_is_kept_and_gone_on_with(command, tmp_path, monkeypatch):
    advance = Trainer.advance

    def interrupted(trainer: Trainer, progress: float) -> None:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        advance(trainer, progress)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "advance", interrupted)
    result = command(*SMALL_SCENES, "--steps", "6")
    assert result.exit_code == 130 and "stopped at step 3" in result.output, "the third step was finished"
    assert signal.getsignal(signal.SIGINT) is before
    assert load_pipeline(folder=tmp_path) is not None
    monkeypatch.undo()

    again = command(*SMALL_SCENES, "--steps", "6")
    assert again.exit_code == 2 and "--resume" in again.output
    other = command("--scenes", "--heads", "2", "--layers", "1", "--single-layers", "1", "--steps", "6", "--resume")
    assert other.exit_code == 2 and "another size" in other.output
    result = command(*SMALL_SCENES, "--steps", "6", "--resume")
    assert result.exit_code == 0 and "step 6" in result.output, result.output
    assert not (tmp_path / "state.pt").exists()
    nothing = command(*SMALL_SCENES, "--steps", "6", "--resume")
    assert nothing.exit_code == 2 and "stateptdoesnotexist" in re.sub(r"\W", "", nothing.output), "wherever lines end"


def test_weights_that_would_be_too_large_are_refused(command):
    result = command("--scenes", "--heads", "8", "--steps", "1")
    assert result.exit_code == 2 and "40 MB" in result.output


def test_a_folder_without_the_subjects_is_refused(emoji_dir, tmp_path):
    app = typer.Typer()
    app.command()(train_emoji.main)
    result = CliRunner().invoke(app, ["--emoji-dir", str(emoji_dir), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "grinning" in result.output
