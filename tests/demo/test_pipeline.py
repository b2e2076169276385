"""The bundled model draws what it is asked for, with and without the cache."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_compile.config import CacheConfig
from dit_compile.demo import codec, pipeline
from dit_compile.demo.result import DemoResult, psnr
from dit_compile.demo.run import ROUNDS, count_reuse, run_demo
from dit_compile.runtime.stats import GenerationStats, StepStats

PROMPTS = ["fox", "earth on black", "panda on pink"]
REFERENCE = Path(__file__).parent / "reference.png"  # PROMPTS side by side, seed 5, 28 steps


@pytest.fixture(scope="module")
def pipe():
    return pipeline.load_pipeline()


@pytest.fixture(scope="module")
def tokens(pipe):
    return pipeline.generate(pipe, PROMPTS, seeds=[5, 5, 5], steps=8)


@pytest.fixture(scope="module")
def demo_result() -> DemoResult:
    result, transformer = run_demo(["fox", "crown"], steps=8, preset="fast", inner="eager", seed=3)
    assert isinstance(transformer, torch.nn.Module)
    return result


def test_draws_the_right_pictures(tokens):
    with Image.open(REFERENCE) as sheet:
        reference = np.stack(np.split(np.asarray(sheet, np.float32) / 127.5 - 1, len(PROMPTS), axis=1))
    drawn = codec.decode_float(tokens)
    assert min(psnr(reference, drawn)) > 24
    for shift in (1, 2):
        assert max(psnr(np.roll(reference, shift, axis=0), drawn)) < 14, "and no picture looks like another one"


def test_a_picture_is_the_same_alone_and_in_a_batch(pipe, tokens):
    alone = pipeline.generate(pipe, PROMPTS[1:2], seeds=[5], steps=8)
    torch.testing.assert_close(alone, tokens[1:2], rtol=0, atol=2e-3)


def test_every_step_is_reported_and_the_seed_counts(pipe, tokens):
    seen: list[int] = []
    other = pipeline.generate(pipe, PROMPTS[:1], seeds=[6], steps=8, on_step=seen.append)
    assert seen == list(range(8))
    assert (other - tokens[:1]).abs().max() > 0.1


def test_diffusers_shows_no_progress_bar_of_its_own(pipe, capsys):
    pipeline.generate(pipe, PROMPTS[:1], seeds=[0], steps=1)
    assert capsys.readouterr() == ("", "")


def test_one_seed_per_prompt(pipe):
    with pytest.raises(ValueError, match="2 prompts need as many seeds, but 1"):
        pipeline.generate(pipe, PROMPTS[:2], seeds=[1], steps=1)


def test_subjects_and_prompts_agree():
    with (pipeline.MODEL_DIR / "subjects.tsv").open(encoding="utf-8", newline="") as file:
        subjects = list(csv.DictReader(file, delimiter="\t"))
    assert [subject["prompt"] for subject in subjects] == pipeline.known_subjects()
    assert len(subjects) == 89


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(pipeline.REQUIRED, "no_such_module", "no-such-package")
    with pytest.raises(pipeline.MissingDemoDependency, match=r'no-such-package.*pip install "dit-compile\[demo\]"'):
        pipeline.load_pipeline()


def test_demo_reuses_steps_and_stays_close(demo_result):
    reuse, cached = demo_result.reuse, demo_result.cached
    # "fast" may reuse steps after a warm-up of two
    assert 1 <= reuse.reused <= 6
    assert reuse.cost == pytest.approx(8 - reuse.reused * 11 / 12)
    assert reuse.bytes_held > 0
    assert min(cached.psnr) > 20 and max(cached.psnr) < 90
    assert len(demo_result.uncached.seconds) == len(cached.seconds) == ROUNDS


def test_demo_compares_with_fewer_steps_of_equal_cost(demo_result):
    share = demo_result.cached.median_seconds / demo_result.uncached.median_seconds
    assert demo_result.same_time.steps == min(8, max(1, round(8 * share)))
    assert demo_result.same_cost.steps == round(demo_result.reuse.cost) < 8
    assert max(demo_result.same_cost.psnr) < 60


def test_demo_result_is_json(demo_result):
    data = json.loads(json.dumps(demo_result.as_data(), allow_nan=False))
    assert data["settings"]["prompts"] == ["fox", "crown"]
    assert data["settings"]["preset"] == "fast" and data["settings"]["inner"] == "eager"
    assert data["cached"]["steps_reused"] == demo_result.reuse.reused


@pytest.mark.slow
def test_demo_with_the_cache_off_changes_nothing():
    result, _ = run_demo(["fox"], steps=4, preset="off", inner="eager")
    assert result.reuse.reused == 0 and result.reuse.cost == 4 and result.reuse.bytes_held == 0
    assert result.cached.median_psnr > 80
    assert result.same_cost.steps == 4 and result.same_cost.median_psnr == math.inf
    assert result.same_cost.as_data()["psnr"] == [None]


@pytest.mark.parametrize(
    ("skipped", "rows", "expected"),
    [
        ([11], 1, (2.0, 4 - 2 * 11 / 12)),
        ([4], 1, (2.0, 4 - 2 * 4 / 12)),
        ([3, 7], 1, (2.0, 4 - 2 * (3 + 7) / 12)),
        ([3, 0], 1, (2.0, 4 - 2 * 3 / 12)),
        ([1] * 11, 3, (2.0, 4 - 2 * 11 / 12)),
    ],
)
def test_cost_counts_the_blocks_that_ran(skipped, rows, expected):
    steps = [
        StepStats(index, branch, "reuse" if index in (1, 3) else "compute", "", region=region, rows=row)
        for index in range(4)
        for branch in (0, 1)
        for region in range(len(skipped))
        for row in range(rows)
    ]
    generation = GenerationStats("flux", "default", CacheConfig(), steps=steps)
    assert count_reuse(generation, skipped, 12) == pytest.approx(expected)
