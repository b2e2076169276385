"""What is published about plans agrees with the results, and plans beat what a user would do without them."""

import json

import pytest
from _tune_page import PAGE, PRESETS, advantage, section
from quality_grid import FEWER, HELD_OUT, PEER
from tune import RESULTS

DATA = json.loads(RESULTS.read_text())


def test_the_section_is_current():
    assert section(DATA) in PAGE.read_text(encoding="utf-8"), "run `python benchmarks/tune.py`"


@pytest.mark.parametrize(("rival", "least"), [(PEER, 5.0), (PRESETS, 2.0), (FEWER, 10.0)])
def test_plans_are_better_at_equal_cost(rival, least):
    """On average over the prompts, at every cost at which the rival has anything."""
    gains = advantage(DATA["scenes"], rival)
    assert gains and min(gains) >= least


def test_every_scene_is_there():
    assert {scene.name for scene in HELD_OUT} <= DATA["scenes"].keys()
