"""``dit-compile tune --demo``: its plan gives the printed figures in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit_compile import Plan

TUNE = "from dit_compile.cli import app; app()"
DRAW_AGAIN = """
import json, sys
import numpy as np
from skimage.metrics import peak_signal_noise_ratio
import dit_compile
from dit_compile.demo.codec import decode_float
from dit_compile.demo.pipeline import generate, load_pipeline

path, inner = sys.argv[1:]
plan = dit_compile.Plan.load(path)
pipe = load_pipeline()
dit_compile.compile(pipe, plan=path, inner=inner)
found = []
for prompt, seed in plan.figures["held_out"]:
    with dit_compile.session("every step computed", enabled=False):
        true = decode_float(generate(pipe, [prompt], [seed]))
    mine = decode_float(generate(pipe, [prompt], [seed]))
    found.append(peak_signal_noise_ratio(true, mine, data_range=2.0))
stats = dit_compile.stats(pipe.transformer)[-1]
print(json.dumps({"psnr": found, "plan": stats.plan, "reused": stats.reused}))
"""


def run(folder: Path, code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with the plan of the demo, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder, TUNE, "tune", "--demo", "--cost", "0.36", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_the_plan_gives_its_figures_in_another_process(tuned, inner):
    """Tuned without a compiler and run with either: kernels round differently, the pictures are as good."""
    folder, shown = tuned
    plan = Plan.load(folder / "demo.plan.json")
    figures = plan.figures["plan"]
    assert plan.cost <= 0.36 * 28 and f" {figures['psnr']:.1f} " in shown
    again = json.loads(run(folder, DRAW_AGAIN, "demo.plan.json", inner))
    assert "in force" in again["plan"] and again["reused"] == 2 * (28 - len(plan.parts[0].computed))
    assert again["psnr"] == pytest.approx(figures["psnr_of_each"], abs=0.01)


@pytest.mark.slow
def test_the_plan_is_better_than_its_rivals_by_far(tuned):
    """At the cost of the cheapest preset."""
    folder, shown = tuned
    figures = Plan.load(folder / "demo.plan.json").figures
    assert figures["recommended"] and "\nrecommended: " in shown
    assert figures["plan"]["psnr"] > max(one["psnr"] for one in figures["others"]) + 5
    assert figures["plan"]["worst_psnr"] > max(one["worst_psnr"] for one in figures["others"])
