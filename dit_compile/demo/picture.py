"""The demo's picture: what was drawn, with and without the cache, side by side."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dit_compile.demo.codec import to_uint8

if TYPE_CHECKING:
    from dit_compile.demo.result import DemoResult, Pictures

# Lengths are in CSS pixels; the file has SCALE times as many, to stay sharp on dense screens.
SCALE = 2
TILE = 128
GAP = 14
MARGIN = 24
LABEL_WIDTH = 256
HEADER = 32
MIN_TYPE = 9
DIFFERENCE_GAIN = 10

INK = "#1b1f24"
MUTED = "#656d76"
ACCENT = "#0a7d4f"
FRAME = "#d8dee4"


@dataclass(frozen=True)
class _Row:
    """A title, lines of figures below it, and one picture (32, 32, 3) uint8 per prompt."""

    title: str
    lines: tuple[str, ...]
    pictures: npt.NDArray[np.uint8]
    accent: bool = False


def format_psnr(value: float) -> str:
    """Decibels for people; infinity means that nothing differs."""
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def format_seconds(seconds: float) -> str:
    """Three digits, such as "0.864 s" or "2.70 s"."""
    return f"{seconds:#.3g}".rstrip(".") + " s"


def format_speedup(ratio: float) -> str:
    """A ratio of times in words, such as "1.62x faster"."""
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


def amplified_difference(reference: Pictures, pictures: Pictures) -> npt.NDArray[np.uint8]:
    """|difference| of two (N, H, W, 3) stacks in [-1, 1], ten times stronger, dark on white; uint8, same shape."""
    strength = np.clip(np.abs(pictures - reference) * DIFFERENCE_GAIN, 0, 2)
    return to_uint8((1 - strength).astype(np.float32))


def _rows(result: DemoResult) -> list[_Row]:
    uncached, cached = result.uncached, result.cached
    return [
        _Row(
            "torch.compile",
            (f"{format_seconds(uncached.median_seconds)} per image", f"all {uncached.steps} steps computed"),
            to_uint8(uncached.pictures),
        ),
        _Row(
            "with dit_cache",
            (
                f"{format_seconds(cached.median_seconds)} per image, {format_speedup(result.speedup)}",
                f"{result.reuse.reused:g} of {cached.steps} steps reused",
                f"PSNR {format_psnr(cached.median_psnr)}",
            ),
            to_uint8(cached.pictures),
            accent=True,
        ),
        _Row(
            f"difference x{DIFFERENCE_GAIN}",
            ("what the cache changed",),
            amplified_difference(uncached.pictures, cached.pictures),
        ),
        *(
            _Row(
                f"fewer steps, {name}",
                (
                    f"{format_seconds(drawing.median_seconds)} per image",
                    f"{drawing.steps} steps, no cache",
                    f"PSNR {format_psnr(drawing.median_psnr)}",
                ),
                to_uint8(drawing.pictures),
            )
            for name, drawing in result.baselines().items()
        ),
    ]


def draw_picture(result: DemoResult) -> Any:
    """The picture as a ``PIL.Image.Image``: one column per prompt; rows uncached, cached, difference, fewer steps
    (in the same time and at the same cost, or once if that is the same number)."""
    image_module: Any = importlib.import_module("PIL.Image")
    draw_module: Any = importlib.import_module("PIL.ImageDraw")
    rows, prompts = _rows(result), result.settings.prompts
    width = 2 * MARGIN + LABEL_WIDTH + len(prompts) * (TILE + GAP) - GAP
    height = 2 * MARGIN + HEADER + len(rows) * (TILE + GAP) - GAP
    canvas = image_module.new("RGB", (width * SCALE, height * SCALE), "white")
    draw = draw_module.Draw(canvas)

    left = MARGIN + LABEL_WIDTH
    for column, prompt in enumerate(prompts):
        middle = left + column * (TILE + GAP) + TILE // 2
        _text(draw, (middle, MARGIN + HEADER // 3), prompt, 13, INK, anchor="mm", width=TILE + GAP - 4)
    for index, row in enumerate(rows):
        top = MARGIN + HEADER + index * (TILE + GAP)
        _label(draw, row, top)
        for column, pixels in enumerate(row.pictures):
            _tile(canvas, draw, pixels, left + column * (TILE + GAP), top)
    return canvas


def save_picture(result: DemoResult, path: Path) -> None:
    """Write :func:`draw_picture` to ``path``; the suffix chooses the format."""
    draw_picture(result).save(path)


def _label(draw: Any, row: _Row, top: int) -> None:
    """The title and its figures, centred on the row's height."""
    line, title = 22, 26
    y = top + (TILE - title - line * len(row.lines)) // 2
    _text(draw, (MARGIN, y), row.title, 17, ACCENT if row.accent else INK, bold=True, width=LABEL_WIDTH - GAP)
    for number, text in enumerate(row.lines):
        _text(draw, (MARGIN, y + title + line * number), text, 14, MUTED, width=LABEL_WIDTH - GAP)


def _tile(canvas: Any, draw: Any, pixels: npt.NDArray[np.uint8], left: int, top: int) -> None:
    """One picture, every pixel a square, in a thin frame."""
    image_module: Any = importlib.import_module("PIL.Image")
    side = TILE * SCALE
    times = side // len(pixels)
    enlarged = pixels.repeat(times, axis=0).repeat(times, axis=1)
    canvas.paste(image_module.fromarray(enlarged), (left * SCALE, top * SCALE))
    box = [left * SCALE - 1, top * SCALE - 1, left * SCALE + side, top * SCALE + side]
    draw.rectangle(box, outline=FRAME, width=1)


def _text(
    draw: Any,
    position: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    *,
    bold: bool = False,
    anchor: str = "la",
    width: int,
) -> None:
    """Write ``text``; where it would be wider than ``width``, in smaller type, and cut off if even that is too wide."""
    font = _font(size * SCALE, bold)
    room = width * SCALE
    if draw.textlength(text, font=font) > room:
        fitting = size * SCALE * room / draw.textlength(text, font=font)
        font = _font(max(MIN_TYPE * SCALE, int(fitting)), bold)
        while draw.textlength(text, font=font) > room and len(text) > 1:
            text = text[:-2].rstrip() + "…"
    draw.text((position[0] * SCALE, position[1] * SCALE), text, fill=colour, font=font, anchor=anchor)


def _font(size: int, bold: bool) -> Any:
    """DejaVu Sans, which matplotlib brings along on every platform."""
    fonts: Any = importlib.import_module("PIL.ImageFont")
    matplotlib: Any = importlib.import_module("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return fonts.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
