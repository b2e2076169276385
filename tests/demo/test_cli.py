"""What the command line accepts, refuses and writes. The demo's run itself is replaced: test_pipeline.py runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import dit_compile.demo.run as demo_run
from dit_compile.cli import app
from dit_compile.demo.picture import draw_picture

runner = CliRunner()


@pytest.fixture
def calls(monkeypatch, made_up) -> list[tuple[tuple, dict]]:
    """Calls of ``run_demo``, which returns made-up figures at once."""
    seen: list[tuple[tuple, dict]] = []

    def run_demo(*args, **kwargs):
        seen.append((args, kwargs))
        return made_up, torch.nn.Linear(1, 1)

    monkeypatch.setattr(demo_run, "run_demo", run_demo)
    return seen


def in_new_process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


def test_help_does_not_load_torch():
    code = (
        "import sys, dit_compile.cli; print(sorted({'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert in_new_process(code).stdout.strip() == "[]"
    shown = runner.invoke(app, ["demo", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert all(
        option in shown.output
        for option in [
            "--prompts",
            "--steps",
            "--preset",
            "--device",
            "--seed",
            "--out",
            "--json",
            "--guidance",
            "--inner",
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "fats"], "--preset must be one of quality, balanced, fast.*did you mean 'fast'"),
        (["--inner", "indctor"], "--inner must be one of.*did you mean 'inductor'"),
        (["--steps", "3"], "--steps must be from 4 to 1000, got 3"),
        (["--device", "gpu0"], "--device must be a device of torch.*'gpu0'"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--prompts", " , "], "--prompts has no words"),
        (["--out", "picture.txt"], "--out must end in .png"),
        (["--out", "no/such/folder/picture.png"], "--out no/such/folder/picture.png cannot be written: No such file"),
        (["--json", "."], "--json . cannot be written: Is a directory"),
    ],
)
def test_wrong_calls_end_at_once_with_one_line(calls, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not calls, "nothing was run"
    assert not list(tmp_path.iterdir()), "and no file is left behind"


def test_demo_writes_picture_figures_and_table(calls, made_up, tmp_path):
    out, figures = tmp_path / "demo.png", tmp_path / "demo.json"
    arguments = ["--prompts", "fox, crown", "-p", "panda on pink", "--preset", "fast", "--device", "cpu"]
    arguments += ["--steps", "12", "--seed", "7", "--guidance", "1.5", "--inner", "eager", "--cold"]
    result = runner.invoke(app, ["demo", *arguments, "--out", str(out), "--json", str(figures)])
    assert result.exit_code == 0, result.output
    (((prompts,), options),) = calls
    assert prompts == ["fox", "crown", "panda on pink"]
    del options["console"]
    assert options == {
        "steps": 12, "preset": "fast", "device": "cpu", "seed": 7, "guidance": 1.5, "inner": "eager", "cold": True,
    }  # fmt: skip
    with Image.open(out) as picture:
        assert picture.size == draw_picture(made_up).size
    assert json.loads(figures.read_text())["cached"]["median_psnr"] == 48.0
    assert "2.00x" in result.output and "15/28" in result.output and str(out) in result.output.replace("\n", "")


def test_demo_without_options_draws_the_default_prompts_and_leaves_settings_alone(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runner.invoke(app, ["demo"]).exit_code == 0
    (((prompts,), options),) = calls
    assert prompts == demo_run.DEFAULT_PROMPTS
    assert options["preset"] is None and options["inner"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["dit_cache_demo.png"]


def test_an_unknown_subject_is_drawn_with_a_note(calls, tmp_path):
    result = runner.invoke(app, ["demo", "-p", "hambuger on blue", "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 0 and len(calls) == 1
    assert "not trained on 'hambuger'; did you mean 'hamburger'?" in result.output


def test_an_existing_file_survives_a_refused_call(calls, tmp_path):
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"picture")
    assert runner.invoke(app, ["demo", "--out", str(precious), "--json", str(tmp_path)]).exit_code == 2
    assert precious.read_bytes() == b"picture"


RUN_APP = "from dit_compile.cli import app; app()"


def test_env_lists_every_variable_with_its_source():
    result = in_new_process(RUN_APP, "env", DIT_CACHE_PRESET="fast", DIT_CACHE_FN="2")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in result.stdout.splitlines() if " DIT_CACHE_" in line}
    from dit_compile.config import SETTINGS, env_name

    assert set(rows) == {env_name(name) for name in SETTINGS}
    assert rows["DIT_CACHE_FN"] == ["2", "environment", "1"]
    assert rows["DIT_CACHE_RESIDUAL_DIFF_THRESHOLD"] == ["0.16", "preset", "0.12"]
    assert rows["DIT_CACHE_CFG"] == ["auto", "default", "auto"]


def test_env_fits_a_narrow_terminal():
    result = in_new_process(RUN_APP, "env", COLUMNS="80")
    assert "DIT_CACHE_MAX_CONTINUOUS_CACHED_STEPS" in result.stdout and "…" not in result.stdout
    assert "what compiles the pieces" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("DIT_CACHE_PRESSET", "fast", "DIT_CACHE_PRESET"), ("DIT_CACHE_FN", "many", "many"),
     ("DIT_CACHE_POLICY", "dbcash", "dbcache")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["env", "demo"])
def test_a_wrong_variable_is_one_line_and_exit_code_2(tmp_path: Path, command, variable, value, words):
    code = f"import os; os.chdir({str(tmp_path)!r}); {RUN_APP}"
    result = in_new_process(code, command, **{variable: value})
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: environment variable {variable}") and words in result.stderr
    assert result.stderr.count("\n") == 1
