"""``dit-compile tune`` and ``dit-compile plan``: what they accept, refuse, write and show."""

import json
import re
import sys

import pytest
from made_up_plan import made_up_plan
from PIL import Image
from typer.testing import CliRunner

import dit_compile.tuning.api as tuning_api
from dit_compile import Plan
from dit_compile.cli import app
from dit_compile.cli.prompts import read_prompts

runner = CliRunner()
WIDE = {"COLUMNS": "160"}

SCRIPT = """
import hashlib

import torch
from toys import Prompted, build, latents

model = build(Prompted)
draws = 0
interrupted = 0  # the number of a draw that Ctrl-C interrupts


def draw(prompt, seed, steps=8):
    global draws
    draws += 1
    if draws == interrupted:
        raise KeyboardInterrupt
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
    words = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(number))
    x = latents(1, 5, seed)
    with torch.no_grad():
        for step in range(steps):
            x = x - model(x, torch.tensor([1000.0 * (1 - step / steps)]), words) / steps
    return x


def make():
    return draw, model


def swapped():
    return model, draw


def too_short():
    return (lambda prompt: None), model


def no_model():
    return draw, 7


def nothing():
    pass
"""
PROMPTS = "# what to draw\na cat\n3\ttwo dogs\n\na tree\na red house\na ship\nnothing much\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a script and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a script adds its folder
    (tmp_path / "toy.py").write_text(SCRIPT)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path


def call(*arguments: str):
    return runner.invoke(app, list(arguments), env=WIDE)


TOY = ("tune", "toy.py:make", "--prompts", "prompts.txt", "--inner", "eager")


def test_help():
    shown = call("tune", "--help")
    assert shown.exit_code == 0
    options = (
        "--prompts", "--cost", "--seconds", "--psnr", "--out", "--steps", "--held-out", "--front", "--picture",
        "--json", "--inner", "--demo", "--guidance", "--device",
    )  # fmt: skip
    assert all(option in shown.output for option in options)
    assert call("--version").output.startswith("dit-compile 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy.py"], "give one of --cost, --seconds and --psnr; got none"),
        (["toy.py", "--cost", "0.5", "--psnr", "40"], "got --cost and --psnr"),
        (["toy.py", "--cost", "1.5"], "--cost must be a share from 0 to 1, got 1.5"),
        (["toy.py", "--seconds", "-1"], "--seconds must be positive, got -1"),
        (["--cost", "0.5"], "give a script, SCRIPT.py:make, or --demo"),
        (["toy.py", "--demo"], "--demo tunes the bundled model, and toy.py another"),
        (["toy.py", "--cost", "0.5"], "give --prompts FILE"),
        (["toy.py", "--cost", "0.5", "--guidance", "2", "--prompts", "prompts.txt"], "--guidance goes with --demo"),
        (["no.py", "--cost", "0.5", "--prompts", "prompts.txt"], "there is no script no.py"),
        (["toy.py:", "--cost", "0.5", "--prompts", "prompts.txt"], "expected SCRIPT.py:FUNCTION, got toy.py:"),
        (["toy.py:mak", "--cost", "0.5", "--prompts", "prompts.txt"], "has no function mak; did you mean 'make'?"),
        (["toy.py:nothing", "--cost", "0.5", "--prompts", "prompts.txt"], r"nothing\(\) must return .*, got NoneType"),
        (["toy.py:swapped", "--cost", "0.5", "--prompts", "prompts.txt"], "in this order; the first is Prompted"),
        (
            ["toy.py:no_model", "--cost", "0.5", "--prompts", "prompts.txt"],
            "no_model.. returns: expected a torch.nn.Mod",
        ),
        (["toy.py:too_short", "--cost", "0.5", "--prompts", "prompts.txt"], r"must take \(prompt, seed\)"),
        (["toy.py", "--cost", "0.5", "--prompts", "none.txt"], "--prompts none.txt cannot be read: No such file"),
        (["toy.py", "--cost", "0.5", "--prompts", "few.txt"], "2 prompts, . of them held out: at least 3"),
        (["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--held-out", "6"], "6 of them held out"),
        (
            ["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--out", "no/x.json"],
            "--out no/x.json cannot be wri",
        ),
        (["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--json", "."], "--json . cannot be written"),
        (["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--picture", "x.txt"], "--picture must end in .png"),
        (["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--inner", "eagre"], "did you mean 'eager'"),
        (["toy.py", "--cost", "0.5", "--prompts", "prompts.txt", "--steps", "2"], "--steps must be from 4"),
    ],
)
def test_wrong_calls_end_before_the_long_work(folder, monkeypatch, arguments, message):
    monkeypatch.setattr(tuning_api, "tune", lambda *_, **__: pytest.fail("tuning has begun"))
    (folder / "few.txt").write_text("a cat\na dog\n")
    before = sorted(folder.iterdir())
    result = call("tune", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before, "no file is left behind"


def test_a_picture_without_matplotlib_ends_before_the_long_work(folder, monkeypatch):
    monkeypatch.setattr("dit_compile.cli.tune.find_spec", lambda name: None)
    monkeypatch.setattr(tuning_api, "tune", lambda *_, **__: pytest.fail("tuning has begun"))
    result = call(*TOY, "--cost", "0.5", "--picture", "x.png")
    assert result.exit_code == 2 and 'pip install "dit-compile[demo]"' in result.stderr


def test_an_error_of_the_script_itself_is_not_hidden(folder):
    (folder / "toy.py").write_text("def make():\n    raise KeyError('checkpoint')\n")
    result = call(*TOY, "--cost", "0.5")
    assert result.exit_code == 1 and isinstance(result.exception, KeyError)


def test_tune_writes_the_plan_and_shows_what_plan_shows(folder):
    result = call(*TOY, "--cost", "0.7", "--picture", "toy.png", "--json", "toy.json", "--held-out", "2")
    assert result.exit_code == 0, result.output
    plan = Plan.load(folder / "toy.plan.json")
    assert plan.parts[0].conditions.steps == 8 and plan.request == {"cost": 0.7}
    # every prompt has its place as its seed, or the one that the file gives
    everything = [tuple(one) for one in (*plan.made["prompts"], *plan.figures["held_out"])]
    assert sorted(everything, key=lambda one: one[1]) == [
        ("a cat", 0), ("a tree", 2), ("two dogs", 3), ("a red house", 3), ("a ship", 4), ("nothing much", 5),
    ]  # fmt: skip
    assert len(plan.figures["held_out"]) == 2
    for phase in ("draw, every step computed", "fit weights", "judge"):
        assert phase in result.output
    shown = call("plan", "toy.plan.json", "--picture", "again.png")
    assert shown.exit_code == 0
    summary = shown.output.partition("picture")[0]
    assert plan.digest()[:12] in summary and summary in result.output
    figures = json.loads((folder / "toy.json").read_text())
    assert (figures["digest"], figures["figures"]) == (plan.digest(), plan.figures)
    assert {one["name"] for one in plan.figures["others"]} >= {"the same steps, reuse", "fewer steps"}
    with Image.open("toy.png") as one, Image.open("again.png") as other:
        assert one.size == other.size


def test_steps_reach_the_draws(folder):
    result = call(*TOY, "--cost", "0.8", "--steps", "6", "--out", "six.json")
    assert result.exit_code == 0, result.output
    assert Plan.load("six.json").parts[0].conditions.steps == 6


def test_a_budget_that_no_plan_meets_is_exit_code_2(folder):
    result = call(*TOY, "--cost", "0.05")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no plan costs 0.4 of 8 steps or less: the cheapest costs ")
    assert not (folder / "toy.plan.json").exists()


def test_ctrl_c_while_prompts_are_drawn_keeps_those_that_were(folder, caplog):
    (folder / "toy.py").write_text(SCRIPT.replace("interrupted = 0 ", "interrupted = 4 "))
    result = call(*TOY, "--cost", "0.7", "--held-out", "1")
    assert result.exit_code == 0, result.output
    plan = Plan.load("toy.plan.json")
    assert [text for text, _ in plan.made["prompts"]] == ["a cat", "two dogs", "a tree"]
    assert "the plan is made of the 3 prompts" in caplog.text


@pytest.mark.parametrize("draw", [1, 2])
def test_ctrl_c_before_two_prompts_ends_without_a_file(folder, draw):
    (folder / "toy.py").write_text(SCRIPT.replace("interrupted = 0 ", f"interrupted = {draw} "))
    result = call(*TOY, "--cost", "0.7")
    assert result.exit_code not in (0, 2)
    assert not (folder / "toy.plan.json").exists()


@pytest.mark.parametrize("recommended", [True, False])
def test_a_plan_that_does_not_beat_the_presets_is_written_and_not_recommended(folder, monkeypatch, recommended):
    monkeypatch.setattr(tuning_api, "tune", lambda *_, **__: made_up_plan(recommended))
    result = call(*TOY, "--cost", "0.7")
    assert result.exit_code == 0
    assert Plan.load("toy.plan.json").digest() == made_up_plan(recommended).digest()
    words = " ".join(result.output.split())
    assert ("not recommended: presets (fast) has 50.0 dB" in words) is not recommended
    assert ("a preset is the better choice here" in words) is not recommended
    assert ('dit_compile.compile(pipe, plan="toy.plan.json")' in words) is recommended


def test_the_demo_has_defaults(folder, monkeypatch):
    seen = []

    def tune(draw, prompts, **options):
        seen.append((draw("rocket", 0, steps=2), list(prompts), options))
        return made_up_plan()

    monkeypatch.setattr(tuning_api, "tune", tune)
    assert call("tune", "--demo", "--device", "cpu").exit_code == 0
    assert call("tune", "--demo", "--device", "cpu", "--psnr", "40", "--inner", "inductor", "--prompts",
                "prompts.txt").exit_code == 0  # fmt: skip
    (picture, prompts, options), (_, given, others) = seen
    assert picture.shape == (1, 32, 32, 3) and len(prompts) == 16
    assert type(options["model"]).__name__ == "FluxTransformer2DModel"
    assert (options["cost"], options["inner"]) == (0.36, "eager")
    assert (others["psnr"], others["inner"], len(given)) == (40, "inductor", 6) and "cost" not in others
    assert (folder / "demo.plan.json").is_file()


def test_a_changed_plan_file_is_exit_code_2(folder):
    path = made_up_plan().save("some.plan.json")
    path.write_text(path.read_text().replace("0.36", "0.37").replace("-1.0", "-1.5"))
    for arguments, message in (
        (["plan", "some.plan.json"], "some.plan.json was changed after it was written"),
        (["plan", "none.json"], "none.json cannot be read: No such file"),
        (["plan", "prompts.txt"], "prompts.txt is not a plan file"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1


def test_prompts_of_a_json_file(folder, capsys):
    path = folder / "prompts.json"
    path.write_text(json.dumps(["# a hash", ["a cat", 7], "a\ttab"]))
    assert read_prompts(path) == ["# a hash", ("a cat", 7), "a\ttab"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n# only this\n", "has no prompts in it"),
        ("a.txt", "a cat\nseven\ta dog\n", "line 2: 'seven' before the tab is no seed"),
        ("a.json", "[1]", r"entry 0: expected a text or \[text, seed\], got 1"),
        ("a.json", '[["a cat", "7"]]', r'entry 0: .* got \["a cat", "7"\]'),
        ("a.json", "{}", "must be a list of prompts, it is a dict"),
        ("a.json", "[", "is not JSON"),
    ],
)
def test_prompts_that_cannot_be_read(folder, name, text, message):
    (folder / name).write_text(text)
    result = call("tune", "toy.py", "--cost", "0.5", "--prompts", name)
    assert result.exit_code == 2 and re.search(message, result.stderr), result.stderr
