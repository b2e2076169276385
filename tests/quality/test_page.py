"""What is published agrees: results, page, presets; and the presets beat what a user would do without them."""

import json

import pytest
from quality import RESULTS
from quality_grid import HELD_OUT, LIMITS
from quality_page import PAGE, candidates, chosen, page, rivals_at_equal_cost

from dit_compile.config import PRESETS, CacheConfig

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
