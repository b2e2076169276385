"""Scenes: what a prompt says is what its picture shows."""

import numpy as np
import pytest
import torch
from _train_pictures import GROUNDS, read_subjects
from _train_scenes import (
    KEPT_OUT,
    MOST,
    MOST_OVERLAP,
    PLACES,
    SCENES,
    TINTS,
    Item,
    Scene,
    SceneData,
    can_be_tinted,
    layouts,
    overlap,
)

from dit_compile.demo.codec import encode_prompts, split_words
from dit_compile.demo.pipeline import MODEL_DIR

CPU = torch.device("cpu")
RED, GREEN, BLUE = 0, 1, 2  # of the made-up square, left half and ring


@pytest.fixture
def data(emoji_dir):
    return SceneData(emoji_dir, read_subjects(emoji_dir / "subjects.tsv"), seed=0, device=CPU)


def box(picture: torch.Tensor, channel: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what has this colour alone on a black ground."""
    others = [other for other in (RED, GREEN, BLUE) if other != channel]
    rows, columns = torch.nonzero((picture[channel] > 0) & (picture[others] < 0).all(0), as_tuple=True)
    return columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1


def test_emoji_are_where_and_as_large_as_the_prompt_says(data):
    square, _, ring = data.subjects
    scene = Scene((Item(square, "top left", "small"), Item(ring, "bottom right", "large")), "black")
    assert scene.prompt == "small square shape top left and large ring shape bottom right on black"
    (picture,) = data.render([scene])
    assert picture.shape == (3, 64, 64)
    # the shapes fill three quarters of their pictures, 17 and 30 pixels on a side
    first = 64 / 6
    small = [first - 17 * 0.375, first - 17 * 0.375, first + 17 * 0.375, first + 17 * 0.375]
    large = [64 - 15 - 30 * 0.375, 64 - 15 - 30 * 0.375, 64 - 15 + 30 * 0.375, 64 - 15 + 30 * 0.375]
    assert box(picture, RED) == pytest.approx(small, abs=1.01)
    assert box(picture, BLUE) == pytest.approx(large, abs=1.01)
    torch.testing.assert_close(picture[:, 0, 63], torch.tensor(GROUNDS["black"]) / 127.5 - 1)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_the_one_that_its_words_name(data, place):
    (picture,) = data.render([Scene((Item(data.subjects[0], place, "small"),), "black")])
    left, top, right, bottom = box(picture, RED)
    words = place.split()
    column = 0 if "left" in words else 2 if "right" in words else 1
    row = 0 if "top" in words else 2 if "bottom" in words else 1
    middle = ((left + right) / 2 * 3 / 64, (top + bottom) / 2 * 3 / 64)
    assert (int(middle[0]), int(middle[1])) == (column, row)


def test_later_emoji_lie_over_earlier_ones_and_holes_show_what_is_below(data):
    square, _, ring = data.subjects
    spots = (Item(square, "center", "large"), Item(ring, "center", "large"))
    below, above = data.render([Scene(spots, "white"), Scene(spots[::-1], "white")])
    assert below[:, 32, 32].tolist() == pytest.approx([1, -1, -1], abs=1e-3), "red through the ring's hole"
    assert below[:, 32, 24].tolist() == pytest.approx([-1, -1, 1], abs=1e-3)
    assert above[:, 32, 24].tolist() == pytest.approx([1, -1, -1], abs=1e-3)


def test_a_tint_colours_without_hiding_and_names_with_a_colour_have_none(data):
    square, _, ring = data.subjects
    plain = Item(ring, "center", "large")
    untinted, tinted = data.render(
        [Scene((item,), "white") for item in (plain, Item(ring, "center", "large", "green"))]
    )
    assert (untinted[:, 32, 24] - torch.tensor([-1, -1, 1])).abs().max() < 1e-3
    assert tinted[GREEN, 32, 24] > untinted[GREEN, 32, 24] + 0.3
    assert torch.equal(tinted[:, 32, 32], torch.ones(3)), "the hole stays a hole"
    subjects = {subject.prompt: subject for subject in read_subjects(MODEL_DIR / "subjects.tsv")}
    assert not can_be_tinted(subjects["red car"]) and not can_be_tinted(subjects["purple heart"])
    assert can_be_tinted(subjects["fox"]) and can_be_tinted(square)


def test_batches_vary_stay_inside_and_drop_a_tenth(data):
    pictures, prompts = data.batch(300)
    assert pictures.shape == (300, 3, 64, 64) and pictures.min() >= -1 and pictures.max() <= 1
    assert 10 <= prompts.count("") <= 60
    counts = [prompt.count(" and ") + 1 for prompt in prompts if prompt]
    assert {*counts} == {2, 3, 4}
    words = {word for prompt in prompts for word in split_words(prompt)}
    assert {"large", "small", "center", "bottom", *TINTS, "gray"} <= words
    scene = Scene((Item(data.subjects[1], "center", "large"),), "black")
    many = data.render([scene] * 200, np.random.default_rng(0))
    middles = torch.tensor([sum(box(picture, GREEN)[::2]) / 2 for picture in many])
    mirrored = (middles > 32).float().mean()
    assert 0.35 < mirrored < 0.65, "half of those that may be are mirrored"
    heights = {box(picture, GREEN)[3] - box(picture, GREEN)[1] for picture in many}
    assert 20 <= min(heights) < max(heights) <= 25, "three quarters of 28 to 32"


def test_what_was_kept_out_is_never_trained_and_makes_up_what_is_held_out(data):
    trained = {(i.subject, i.place) for _ in range(2000) for i in data._scene(data.random, held_out=False).items}
    kept = {(subject, place) for place, subjects in data.kept_out.items() for subject in subjects}
    every = {(subject, place) for subject in data.subjects for place in PLACES}
    assert trained == every - kept, "and all else is trained"
    parts = data.parts(12)
    assert {(i.subject, i.place) for scene in parts["held out"] for i in scene.items} <= kept
    assert {(i.subject, i.place) for scene in parts["choosing"] for i in scene.items} <= trained


def test_measurements_use_the_same_prompts_in_every_run(data, emoji_dir):
    other = SceneData(emoji_dir, data.subjects, seed=7, device=CPU)
    other.batch(5)
    prompts = data.prompts()
    assert other.prompts() == prompts
    assert not {*prompts["choosing"]} & {*prompts["held out"]}
    pictures, shown = data.examples()
    assert len(pictures) == len(shown) == 16 and set(shown) <= {*prompts["choosing"], *prompts["held out"]}


def test_an_eighth_of_the_bundled_subjects_is_kept_out_of_every_place():
    count = len(read_subjects(MODEL_DIR / "subjects.tsv"))
    kept = [sum((i + row) % KEPT_OUT == 0 for i in range(count)) for row in range(len(PLACES))]
    assert all(11 <= n <= 12 for n in kept)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_layouts_overlap_little(count):
    found = [*layouts(count)]
    assert len(found) > 100 and len({*found}) == len(found)
    for spots in found:
        assert len({place for place, _ in spots}) == count
        assert max(overlap(a, b) for i, a in enumerate(spots) for b in spots[:i]) <= MOST_OVERLAP


def test_overlap_is_a_share_of_the_smaller():
    assert overlap(("center", "small"), ("center", "large")) == 1
    assert overlap(("top left", "large"), ("top right", "large")) == 0
    assert overlap(("top left", "large"), ("top", "large")) == pytest.approx(13 / 30)
    assert overlap(("top left", "small"), ("top", "large")) == pytest.approx((64 / 6 + 8.5 - 17) / 17, abs=1e-6)


def test_the_longest_prompt_has_a_token_for_every_word():
    longest = Item(read_subjects(MODEL_DIR / "subjects.tsv")[1], "bottom right", "small", "purple")
    prompt = Scene((longest,) * MOST, "purple").prompt
    assert len(split_words(prompt)) == 29
    embeds, _ = encode_prompts([prompt], SCENES)
    assert embeds[0, :29].any(dim=1).all()


def test_names_that_are_too_long_and_too_few_subjects_are_refused(emoji_dir, data):
    table = emoji_dir / "long.tsv"
    table.write_text((emoji_dir / "subjects.tsv").read_text().replace("ring shape", "one two three ring shape"))
    with pytest.raises(ValueError, match="one two three ring shape"):
        SceneData(emoji_dir, read_subjects(table), seed=0, device=CPU)
    with pytest.raises(ValueError, match="two subjects"):
        SceneData(emoji_dir, data.subjects[:1], seed=0, device=CPU)
