"""What is drawn, and the two ways to draw that are not the pipeline's or the cache's own."""

from quality_grid import CHOOSING, HELD_OUT, PEERS, PROMPTS, SCREEN, first_round, second_round, third_round
from quality_runs import EveryNth

from dit_compile.demo.pipeline import generate, known_subjects, load_pipeline, wrap_transformer
from dit_compile.demo.tuning import PROMPTS as TUNED


def test_no_prompt_both_chose_and_reports():
    chose, reported = (set(PROMPTS[part]) for part in ("choosing", "held out"))
    assert len(chose) >= 12 and len(reported) >= 12 and not chose & reported
    assert {prompt.split(" on ")[0] for prompt in chose | reported} <= set(known_subjects())


def test_the_demo_tunes_on_subjects_that_nothing_is_reported_for():
    subjects = {prompt.split(" on ")[0] for prompt in TUNED}
    assert len(TUNED) == len(subjects) == 16 and subjects <= set(known_subjects())
    assert not subjects & {prompt.split(" on ")[0] for prompt in PROMPTS["held out"]}


def test_names_tell_ways_apart():
    ways = [*first_round(), *PEERS]
    assert len({way.name for way in ways}) == len(ways)


def test_who_goes_on_to_the_next_round():
    """On results of which one is far better, one is cheaper, and the others are alike."""
    ways = [*first_round(), *PEERS]
    figures = {way.name: {"cost": 14.0, "psnr": 40.0} for way in ways}
    figures["dbcache W2 C2 t0.24 foca"]["psnr"] = 50.0
    figures["dbcache W2 C4 t0.3 foca"] = {"cost": 9.0, "psnr": 39.0}
    figures["interval n4 foca"]["psnr"] = 60.0
    figures[PEERS[3].name]["psnr"] = 41.0
    first = {way.name: {"figures": {SCREEN.name: figures[way.name]}} for way in ways}
    assert [(way.name, scene) for way, scene in second_round(first)] == [
        (name, scene) for name in ("dbcache W2 C2 t0.24 foca", "dbcache W2 C4 t0.3 foca") for scene in CHOOSING
    ]
    third = list(third_round(first, ["dbcache W2 C4 t0.3 foca"]))
    for family in (True, False):
        assert {scene for way, scene in third if (way in PEERS) is family} == set(HELD_OUT)
    plain = {"14 of 28 steps", "26 of 50 steps", "output of every 2. step"}
    peers = {way.name for way in PEERS}
    names = {way.name for way, _ in third}
    assert plain < names and names & peers == {PEERS[0].name, PEERS[3].name}
    assert [name for name in names - peers if "of" not in name.split()] == ["dbcache W2 C4 t0.3 foca"]


def test_repeating_every_second_output_is_a_schedule_of_half_as_many_steps():
    pipe = load_pipeline()
    repeating = EveryNth(pipe.transformer, every=2, branches=2)
    drawn = generate(wrap_transformer(repeating), ["fox"], [3], steps=8)
    halved = generate(pipe, ["fox"], [3], steps=4)
    assert repeating.computed == 4 * 2
    assert (drawn - halved).abs().max() < 1e-4
