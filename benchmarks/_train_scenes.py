"""What the larger model learns: two to four emoji on a plain ground, 64x64, each where and as the prompt says.

    large fox left and small purple panda top right on blue

Every emoji has a size, one of nine places and sometimes a tint. Later ones lie over earlier ones. An eighth of all
pairs of an emoji and a place is never trained; the prompts held out are made of those alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from _train_pictures import (
    DROPPED_SHARE,
    GROUNDS,
    WHITE_SHARE,
    Subject,
    on_device,
    on_grounds,
    read_pictures,
    with_ground,
)
from torch import Tensor

from dit_compile.demo.codec import CodecConfig, split_words

SCENES = CodecConfig(picture_size=64, text_tokens=32, text_channels=128, reach=5)
"""Four emoji in 29 words at most; the last word of each reaches back over its place, name and tint to its size."""

PLACES = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
CENTRES = np.array([(64 * (column + 0.5) / 3, 64 * (row + 0.5) / 3) for row in range(3) for column in range(3)])
"""Of the places: across and down, in pixels."""
SIZES = {"large": 30.0, "small": 17.0}  # pixels on a side
TINTS = {
    "red": (230, 60, 55), "yellow": (245, 205, 45), "green": (75, 175, 70), "blue": (65, 120, 235),
    "purple": (150, 85, 205), "pink": (245, 120, 175),
}  # fmt: skip
FEWEST, MOST = 2, 4
TINTED_SHARE, TINT_STRENGTH, TINT_LIGHT = 0.25, 0.75, 0.35
MOST_OVERLAP = 0.2  # of the smaller of two emoji
SIZE_JITTER, PLACE_JITTER = 2.0, 1.5  # pixels, in both directions
KEPT_OUT = 8  # one in so many pairs of an emoji and a place is never trained
SOURCE = 32  # pixels on a side of the pictures that are placed

T = TypeVar("T")
Numbers = npt.NDArray[np.float64]
Spot = tuple[str, str]
"""A place and a size."""


@dataclass(frozen=True)
class Item:
    """One emoji of a scene."""

    subject: Subject
    place: str
    size: str
    tint: str = ""

    @property
    def words(self) -> str:
        return " ".join(filter(None, (self.size, self.tint, self.subject.prompt, self.place)))


@dataclass(frozen=True)
class Scene:
    """A picture in words: its emoji from back to front."""

    items: tuple[Item, ...]
    ground: str

    @property
    def prompt(self) -> str:
        return with_ground(" and ".join(item.words for item in self.items), self.ground)


def can_be_tinted(subject: Subject) -> bool:
    """Whether a tint makes sense: an emoji whose name has a colour keeps it."""
    return not {*split_words(subject.prompt)} & {*GROUNDS, *TINTS}


def inside(middles: Numbers, sides: Numbers) -> Numbers:
    """Middles (N, 2) of emoji with ``sides`` (N) in pixels, moved as little as keeps them inside of the picture."""
    half = sides[:, None] / 2
    return np.clip(middles, half, 64 - half)


def overlap(one: Spot, other: Spot) -> float:
    """The common area of two emoji as a share of the smaller one."""
    sides = np.array([SIZES[size] for _, size in (one, other)])
    first, second = inside(CENTRES[[PLACES.index(place) for place, _ in (one, other)]], sides)
    common = np.clip(sides.mean() - np.abs(first - second), 0, sides.min())
    return float(common.prod() / sides.min() ** 2)


def layouts(count: int) -> Iterator[tuple[Spot, ...]]:
    """Every set of ``count`` spots that overlap little."""
    spots = [*itertools.product(PLACES, SIZES)]
    apart = {pair for pair in itertools.combinations(spots, 2) if overlap(*pair) <= MOST_OVERLAP}
    for chosen in itertools.combinations(spots, count):
        if apart.issuperset(itertools.combinations(chosen, 2)):
            yield chosen


class SceneData:
    """Scenes without end, put together on ``device``."""

    config = SCENES

    def __init__(self, emoji_dir: Path, subjects: Sequence[Subject], seed: int, device: torch.device) -> None:
        longest = max((Item(s, "top left", "small", "red").words for s in subjects), key=lambda w: len(split_words(w)))
        if len(split_words(" and ".join([longest] * MOST) + " on red")) > self.config.text_tokens:
            raise ValueError(f"{MOST} times {longest!r} have more words than {self.config.text_tokens} text tokens")
        if len(subjects) < 2:
            raise ValueError("scenes need two subjects, since each place is trained without some of them")
        self.subjects, self.device = subjects, device
        divisor = min(KEPT_OUT, len(subjects))
        self.kept_out = {
            place: [subject for i, subject in enumerate(subjects) if (i + row) % divisor == 0]
            for row, place in enumerate(PLACES)
        }
        self.trained = {place: [s for s in subjects if s not in self.kept_out[place]] for place in PLACES}
        self.random = np.random.default_rng(seed)
        self.layouts = [[*layouts(count)] for count in range(FEWEST, MOST + 1)]
        pictures = torch.from_numpy(np.array(read_pictures(emoji_dir, subjects)))
        shrunk = [_shrunk(pictures, round(side + SIZE_JITTER)) for side in SIZES.values()]
        self.bank = torch.stack(shrunk).to(device)  # (size, subject, RGBA, SOURCE, SOURCE)
        self.tints = torch.tensor([(0, 0, 0), *TINTS.values()], device=device)[:, :, None, None] / 255
        self.numbers = [
            {word: number for number, word in enumerate(words)} for words in (SIZES, subjects, ["", *TINTS], PLACES)
        ]

    def batch(self, size: int) -> tuple[Tensor, list[str]]:
        """Pictures (size, 3, 64, 64) in [-1, 1] on the device and the prompts that ask for them, some of them empty."""
        scenes = [self._scene(self.random, held_out=False) for _ in range(size)]
        dropped = self.random.random(size) < DROPPED_SHARE
        prompts = ["" if drop else scene.prompt for scene, drop in zip(scenes, dropped, strict=True)]
        return self.render(scenes, self.random), prompts

    def examples(self) -> tuple[Tensor, list[str]]:
        """Eight scenes of what was trained and eight of what was kept out."""
        scenes = [scene for part in self.parts(8).values() for scene in part]
        return self.render(scenes), [scene.prompt for scene in scenes]

    def prompts(self) -> Mapping[str, Sequence[str]]:
        return {part: [scene.prompt for scene in scenes] for part, scenes in self.parts(12).items()}

    def parts(self, count: int) -> dict[str, list[Scene]]:
        """``count`` scenes to choose settings by, as they are trained, and as many to report, made of what was kept
        out; always the same ones."""
        random = np.random.default_rng(0)
        chosen = [(self._scene(random, held_out=False), self._scene(random, held_out=True)) for _ in range(count)]
        return {"choosing": [a for a, _ in chosen], "held out": [b for _, b in chosen]}

    def _scene(self, random: np.random.Generator, held_out: bool) -> Scene:
        spots = _one_of(_one_of(self.layouts, random), random)
        items = []
        for i in random.permutation(len(spots)):
            place, size = spots[i]
            subject = _one_of((self.kept_out if held_out else self.trained)[place], random)
            tinted = random.random() < TINTED_SHARE and can_be_tinted(subject)
            items.append(Item(subject, place, size, _one_of([*TINTS], random) if tinted else ""))
        white = random.random() < WHITE_SHARE
        return Scene(tuple(items), "white" if white else _one_of([*GROUNDS], random))

    def render(self, scenes: Sequence[Scene], random: np.random.Generator | None = None) -> Tensor:
        """The pictures (B, 3, 64, 64) in [-1, 1] of scenes; with ``random`` emoji are moved and scaled a little and,
        where allowed, mirrored."""
        picture = torch.zeros(len(scenes), 4, 64, 64, device=self.device)
        for layer in range(max(len(scene.items) for scene in scenes)):
            rows = [row for row, scene in enumerate(scenes) if layer < len(scene.items)]
            emoji = self._layer([scenes[row].items[layer] for row in rows], random)
            index = on_device(torch.tensor(rows), self.device)
            picture[index] = emoji + (1 - emoji[:, 3:]) * picture[index]
        return on_grounds(picture, [scene.ground for scene in scenes])

    def _layer(self, items: Sequence[Item], random: np.random.Generator | None) -> Tensor:
        """One emoji for each picture: (B, 4, 64, 64), premultiplied."""
        words = [(item.size, item.subject, item.tint, item.place) for item in items]
        kinds = np.array([[numbers[word] for numbers, word in zip(self.numbers, row, strict=True)] for row in words])
        jitter = np.zeros((len(items), 4)) if random is None else random.uniform(-1, 1, (len(items), 4))
        sides = np.array([*SIZES.values()])[kinds[:, 0]] + SIZE_JITTER * jitter[:, 0]
        middles = inside(inside(CENTRES[kinds[:, 3]], sides) + PLACE_JITTER * jitter[:, 1:3], sides)
        # affine_grid asks where in the emoji, from -1 to 1, a position in the picture, from -1 to 1, is read
        where = np.zeros((len(items), 2, 3), np.float32)
        where[:, 0, 0] = where[:, 1, 1] = 64 / sides
        where[:, :, 2] = (32 - middles) * 2 / sides[:, None]
        mirrored = np.array([item.subject.mirror for item in items]) & (jitter[:, 3] < 0)
        where[mirrored, 0] *= -1
        theta, index = on_device(torch.from_numpy(where), self.device), on_device(torch.from_numpy(kinds), self.device)
        grid = F.affine_grid(theta, [len(items), 4, 64, 64], align_corners=False)
        return self._tinted(F.grid_sample(self.bank[index[:, 0], index[:, 1]], grid, align_corners=False), index[:, 2])

    def _tinted(self, emoji: Tensor, index: Tensor) -> Tensor:
        """Most of the colour replaced by the tint of that number, lit as the emoji is; 0 is none."""
        light = 0.299 * emoji[:, 0:1] + 0.587 * emoji[:, 1:2] + 0.114 * emoji[:, 2:3]
        tinted = self.tints[index] * torch.lerp(light, emoji[:, 3:], TINT_LIGHT)
        strength = (index > 0)[:, None, None, None] * TINT_STRENGTH
        return torch.cat([torch.lerp(emoji[:, :3], tinted, strength), emoji[:, 3:]], dim=1)


def _shrunk(pictures: Tensor, side: int) -> Tensor:
    """Pictures (N, 4, 64, 64) with the detail of ``side`` pixels on a side, as (N, 4, SOURCE, SOURCE)."""
    small = F.interpolate(pictures, side, mode="bicubic", antialias=True)
    colour, opacity = F.interpolate(small, SOURCE, mode="bilinear").clamp(0, 1).split((3, 1), dim=1)
    return torch.cat([colour.minimum(opacity), opacity], dim=1)  # cubics overshoot, each channel by itself


def _one_of(choices: Sequence[T], random: np.random.Generator) -> T:
    """One of ``choices``; several times as fast as the generator's own method."""
    return choices[int(random.random() * len(choices))]
