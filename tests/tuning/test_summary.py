"""What a plan says of itself: lines, table, verdict and picture."""

import io
import sys
from dataclasses import replace

import pytest
from made_up_plan import made_up_part, made_up_plan
from PIL import Image
from rich.console import Console

from dit_compile import Plan, PlanError
from dit_compile.plans.picture import weights_by_age
from dit_compile.plans.summary import step_lines
from dit_compile.tuning.contest import Result, verdict


def test_the_summary_names_request_steps_cost_and_figures(tmp_path):
    text = Plan.load(made_up_plan().save(tmp_path / "some.plan.json")).describe()
    words = " ".join(text.split())
    for expected in (
        f"plan some.plan.json {made_up_plan().digest()[:12]}",
        "request cost 0.7: at most 70% of the blocks",
        "made 2026-01-02 03:04:05, dit_compile 0.1.0, torch 2.13.0, fitted on 3 prompts, judged on 2 others",
        "runs 6 steps, 2 calls each; latents 5 x 16, float32",
        "steps ●●·◉·●",
        "cost 4.0 of 6 steps (67% of the blocks): 4 computed, 2 without 6 of 6 blocks",
        "weights of up to 3 snapshots; 1 of 4 computed steps are corrected",
        "every step computed 6.0 - - 2.00 1.00x -",
        "plan 4.0 50.0 49.0 1.25 1.60x 1",
        "presets (fast) 4.2 42.0 41.0 1.50 1.33x 1",
        "fewer steps 4.0 34.0 33.0 1.00 2.00x 1",
        "recommended: 8.0 dB better than presets (fast) on average",
    ):
        assert expected in words, text
    assert "\x1b" not in text and all(len(line) <= 100 for line in text.splitlines())


def test_a_plan_that_is_worse_than_a_preset_says_so():
    text = made_up_plan(recommended=False).describe()
    assert "not recommended: presets (fast) has 50.0 dB on average" in text


def test_a_plan_without_figures_or_in_a_file_that_cannot_be_used_has_a_summary(tmp_path):
    assert "steps    ●●·◉·●" in Plan((made_up_part(),)).describe()
    unusable = Plan.read(tmp_path / "none.json")
    assert "No such file" in unusable.describe()
    with pytest.raises(PlanError, match="No such file"):
        unusable.save_picture(tmp_path / "x.png")


def test_a_terminal_without_unicode_gets_other_marks():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    made_up_plan().summary(Console(file=stream, width=100))
    stream.flush()
    assert b"##.@.#" in stream.buffer.getvalue()


def test_long_generations_take_several_lines():
    part = made_up_part()
    count = 120
    conditions = replace(part.conditions, times=(1.0,) * count, branches=(2,) * count)
    lines = step_lines(replace(part, conditions=conditions))
    assert [line.split()[0] for line in lines] == ["0", "50", "100"]
    assert lines[0] == "  0 ●●·◉·●●●●● ●●●●●●●●●● ●●●●●●●●●● ●●●●●●●●●● ●●●●●●●●●●"
    assert sum(line.count(mark) for line in lines for mark in "●◉·") == count


def result(name, cost, *psnr, **more):
    return Result(name, cost, psnr, 1.0, **more)


@pytest.mark.parametrize(
    ("plan", "rivals", "recommended", "words"),
    [
        (result("plan", 4, 50, 52), [result("presets", 4, 45, 47)], True,
         "5.0 dB better on average than presets, 5.0 dB in the worst picture"),
        (result("plan", 4, 50, 52), [result("presets (ultra)", 4.4, 45, 47)], True,
         "5.0 dB better on average than presets (ultra) at 4.4 steps, 5.0 dB"),
        (result("plan", 4, 45, 47), [result("presets", 4.2, 50, 52)], False,
         "presets has 51.0 dB on average, the plan 46.0 dB"),
        (result("plan", 4, 45, 67), [result("presets", 4, 50, 52)], False,
         "presets has 50.0 dB in the worst picture, the plan 45.0 dB"),
        (result("plan", 4, 50, 52), [result("presets", 4, 45, 47), result("fewer steps", 4, 60, 60)], False,
         "fewer steps has 60.0 dB on average"),
        (result("plan", 4, 50, 52, problem="the time is another"), [result("presets", 4, 45, 47)], False,
         "was not in force in runs of its own (the time is another)"),
    ],
)  # fmt: skip
def test_verdict(plan, rivals, recommended, words):
    found, note = verdict(plan, rivals)
    assert found is recommended and words in note


def test_weights_by_age_are_ranges_over_branches_and_streams():
    assert weights_by_age(made_up_part().forecasts[2]) == [
        (1.5, pytest.approx(1.7), 2.0), (-1.0, pytest.approx(-0.7), -0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_grows_with_parts_and_prompts(tmp_path, count):
    plan = made_up_plan()
    plan = replace(plan, parts=plan.parts * count)
    path = plan.save_picture(tmp_path / "plan.png")
    bare = replace(plan, figures={}).save_picture(tmp_path / "bare.png")
    with Image.open(path) as picture, Image.open(bare) as without:
        assert picture.width == without.width == 1320
        assert picture.height > without.height + 100 and without.height > 300 * count
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (10, 125, 79) in colours and (194, 65, 12) in colours, "marks of the plan and of the presets"


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="dit-compile\\[demo\\]"):
        made_up_plan().save_picture(tmp_path / "plan.png")
