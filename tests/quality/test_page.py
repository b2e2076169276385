"""What is published agrees: results, page, presets; and the presets beat what a user would do without them."""

import json

import pytest
from quality import RESULTS
from quality_grid import CHOOSING, HELD_OUT, LIMITS, PEERS, PROMPTS, SCREEN, first_round, second_round
from quality_page import PAGE, candidates, chosen, page, rivals_at_equal_cost
from quality_runs import EveryNth

from dit_compile.config import PRESETS, CacheConfig
from dit_compile.demo.pipeline import generate, known_subjects, load_pipeline, wrap_transformer

DATA = json.loads(RESULTS.read_text())
WAYS = DATA["ways"]


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(DATA), "run `python benchmarks/quality.py`"


@pytest.mark.parametrize("preset", LIMITS)
def test_presets_are_what_was_chosen(preset):
    settings = WAYS[chosen(WAYS)[preset]]["settings"]
    config = CacheConfig(**PRESETS[preset])
    assert {name: getattr(config, name) for name in settings} == settings
    assert (config.fn, config.bn, config.scope) == (1, 0, "chain")


@pytest.mark.parametrize("quality", ["psnr", "ssim"])
@pytest.mark.parametrize("scene", HELD_OUT, ids=lambda scene: scene.name)
@pytest.mark.parametrize("preset", LIMITS)
def test_presets_beat_fewer_steps_and_the_peer(preset, scene, quality):
    name = chosen(WAYS)[preset]
    ours = WAYS[name]["figures"][scene.name][quality]
    rivals = [rival for rival in rivals_at_equal_cost(WAYS, name, scene, quality) if rival is not None]
    assert rivals and ours > max(rivals)


def test_presets_are_the_best_that_cost_no_more():
    everyone = candidates(WAYS)
    for preset, name in chosen(WAYS).items():
        share, psnr = everyone[name]
        assert share <= LIMITS[preset]
        assert not [other for other, (cost, best) in everyone.items() if cost <= LIMITS[preset] and best > psnr]


def test_no_prompt_both_chose_and_reports():
    chose, reported = (set(PROMPTS[part]) for part in ("choosing", "held out"))
    assert len(chose) >= 12 and len(reported) >= 12 and not chose & reported
    assert {prompt.split(" on ")[0] for prompt in chose | reported} <= set(known_subjects())


def test_names_tell_ways_apart():
    ways = [*first_round(), *PEERS]
    assert len({way.name for way in ways}) == len(ways)


def test_whoever_is_near_the_front_goes_on():
    """On results of which one is far better, one is far worse and the others are alike."""
    ways = [*first_round(), *PEERS]
    figures = {way.name: {"cost": 14.0, "psnr": 40.0} for way in ways}
    figures["dbcache W2 C2 t0.24 foca"]["psnr"] = 50.0
    figures["interval n4 foca"]["psnr"] = 45.0
    first = {way.name: {"figures": {SCREEN.name: figures[way.name]}} for way in ways}
    scenes = {way.name: parts for way, parts in second_round(first)}
    assert scenes["dbcache W2 C2 t0.24 foca"] == (*HELD_OUT, *CHOOSING)
    assert scenes["interval n4 foca"] == scenes["14 of 28 steps"] == scenes["F8 B0 W8 t0.08 reuse"] == HELD_OUT
    assert "dbcache W4 C2 t0.24 foca" not in scenes and "interval n2 foca" not in scenes


def test_repeating_every_second_output_is_a_schedule_of_half_as_many_steps():
    pipe = load_pipeline()
    repeating = EveryNth(pipe.transformer, every=2, branches=2)
    drawn = generate(wrap_transformer(repeating), ["fox"], [3], steps=8)
    halved = generate(pipe, ["fox"], [3], steps=4)
    assert repeating.computed == 4 * 2
    assert (drawn - halved).abs().max() < 1e-4
