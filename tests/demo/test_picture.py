"""The demo's picture and table, from made-up figures."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dit_compile.demo import picture
from dit_compile.demo.result import psnr
from dit_compile.demo.table import demo_table


def tile(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    """The pixels of one tile, each picture pixel once."""
    left = (picture.MARGIN + picture.LABEL_WIDTH + column * (picture.TILE + picture.GAP)) * picture.SCALE
    top = (picture.MARGIN + picture.HEADER + row * (picture.TILE + picture.GAP)) * picture.SCALE
    side = picture.TILE * picture.SCALE
    step = side // 32
    return np.asarray(sheet)[top : top + side, left : left + side][::step, ::step]


def test_tiles_hold_the_pictures(made_up, tmp_path):
    picture.save_picture(made_up, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.size == (2 * (2 * 24 + 256 + 2 * 142 - 14), 2 * (2 * 24 + 32 + 5 * 142 - 14))
        for row, drawing in (
            (0, made_up.uncached),
            (1, made_up.cached),
            (3, made_up.same_time),
            (4, made_up.same_cost),
        ):
            for column in (0, 1):
                expected = np.rint((drawing.pictures[column] + 1) * 127.5)
                assert np.array_equal(tile(sheet, row, column), expected), (row, column)


def test_difference_is_amplified_dark_on_white(made_up):
    changed = made_up.uncached.pictures.copy()
    changed[0, 3, 4] += 0.05
    changed[1, 0, 0] -= 0.9
    shown = picture.amplified_difference(made_up.uncached.pictures, changed)
    assert shown.dtype == np.uint8
    assert shown[0, 3, 4].tolist() == [191, 191, 191]
    assert shown[1, 0, 0].tolist() == [0, 0, 0]
    shown[0, 3, 4] = shown[1, 0, 0] = 255
    assert (shown == 255).all()


def test_labels_are_drawn_and_long_prompts_fit(made_up):
    long_name = replace(made_up.settings, prompts=("fox", "a very long prompt about an alarm clock on green"))
    sheet = np.asarray(picture.draw_picture(replace(made_up, settings=long_name)))
    scale = picture.SCALE
    labels = sheet[:, : (picture.MARGIN + picture.LABEL_WIDTH - 8) * scale]
    for row in range(5):
        top = (picture.MARGIN + picture.HEADER + row * (picture.TILE + picture.GAP)) * scale
        ink = (labels[top : top + picture.TILE * scale] < 160).any(axis=2).mean()
        assert 0.005 < ink < 0.2, f"row {row} has {ink:.1%} ink"
    assert (sheet[: picture.MARGIN * scale // 2] == 255).all(), "the margin is clean"
    assert (sheet[:, -picture.MARGIN * scale // 2 :] == 255).all(), "the long prompt was shrunk to fit"


def test_psnr_of_identical_and_different_pictures(made_up):
    a = made_up.uncached.pictures
    b = a.copy()
    b[1] += np.float32(0.02)
    assert psnr(a, b) == (math.inf, pytest.approx(40.0, abs=0.01))
    assert picture.format_psnr(math.inf) == "identical"
    assert picture.format_psnr(40.04) == "40.0 dB"


def test_times_and_speed_in_words():
    assert [picture.format_seconds(s) for s in (0.8641, 2.7, 123.4)] == ["0.864 s", "2.70 s", "123 s"]
    assert picture.format_speedup(1.618) == "1.62x faster"
    assert picture.format_speedup(0.8) == "1.25x slower"


def test_table_fits_eighty_columns_and_shows_the_figures(made_up):
    output = io.StringIO()
    Console(width=80, file=output).print(demo_table(made_up))
    text = output.getvalue()
    assert "…" not in text
    cached = next(line for line in text.splitlines() if "dit_cache" in line and "/28" in line)
    assert cached.split() == ["28", "steps,", "dit_cache", "15/28", "14.2", "30.0s*", "0.500", "2.00x", "48.0", "dB"]
    assert "14 steps, same time" in text and "13 steps, same cost" in text and "--cold" in text


def test_one_baseline_where_time_and_cost_give_the_same_number_of_steps(made_up):
    same = replace(made_up.same_time, psnr=(math.inf, math.inf))
    agreeing = replace(made_up, same_time=same, same_cost=same)
    saved = (picture.TILE + picture.GAP) * picture.SCALE
    assert picture.draw_picture(agreeing).height == picture.draw_picture(made_up).height - saved
    output = io.StringIO()
    Console(width=80, file=output).print(demo_table(agreeing))
    assert "14 steps, same time & cost" in output.getvalue() and "…" not in output.getvalue()
