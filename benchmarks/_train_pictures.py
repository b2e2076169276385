"""What the small model learns: one emoji on a plain ground, 32x32, and what all training data has in common."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import typer
from PIL import Image
from torch import Tensor

from dit_compile.demo.codec import EMOJI, CodecConfig

GROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 30),
    "gray": (170, 170, 175),
    "red": (225, 95, 90),
    "orange": (250, 180, 110),
    "yellow": (250, 226, 120),
    "green": (140, 205, 130),
    "blue": (120, 170, 240),
    "purple": (180, 150, 230),
    "pink": (250, 175, 205),
}
SOURCE_SIZE = 64
WHITE_SHARE, CATEGORY_SHARE, DROPPED_SHARE = 0.45, 0.05, 0.1

Rgba = npt.NDArray[np.float32]
"""(4, 64, 64) in [0, 1], colours multiplied by their opacity."""


@dataclass(frozen=True)
class Subject:
    """One emoji: its name in the data source, the words that ask for it, and whether it may be mirrored."""

    short_name: str
    prompt: str
    category: str
    mirror: bool


def read_subjects(path: Path) -> list[Subject]:
    """The table of subjects (tab separated, with a header)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [Subject(r["short_name"], r["prompt"], r["category"], r["mirror"] == "1") for r in rows]


class PictureData(Protocol):
    """Where a trainer's pictures come from."""

    config: CodecConfig
    subjects: Sequence[Subject]
    random: np.random.Generator
    """All that is random in batches, so that a run that was stopped can go on with new ones."""

    def batch(self, size: int) -> tuple[Tensor, list[str]]:
        """Pictures (size, 3, S, S) in [-1, 1] and the prompts that ask for them, some of them empty."""

    def examples(self) -> tuple[Tensor, list[str]]:
        """Pictures as in :meth:`batch` and prompts that show what was learnt."""

    def prompts(self) -> Mapping[str, Sequence[str]]:
        """Prompts for measurements, by part; empty where those of the bundled model serve."""


def read_pictures(emoji_dir: Path, subjects: Sequence[Subject]) -> list[Rgba]:
    """The picture of each subject. Raises typer.BadParameter where the package lacks some."""
    files = {e["short_name"]: e["image"] for e in json.loads((emoji_dir / "emoji.json").read_text("utf-8"))}
    absent = [s.short_name for s in subjects if s.short_name not in files]
    if absent:
        raise typer.BadParameter(f"{emoji_dir / 'emoji.json'} has no {', '.join(absent)}", param_hint="--emoji-dir")
    folder = emoji_dir / "img" / "google" / str(SOURCE_SIZE)
    return [_premultiplied(folder / files[subject.short_name]) for subject in subjects]


def _premultiplied(path: Path) -> Rgba:
    with Image.open(path) as picture:
        rgba = np.asarray(picture.convert("RGBA").resize((SOURCE_SIZE, SOURCE_SIZE)), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return np.ascontiguousarray(rgba.transpose(2, 0, 1))


class EmojiData:
    """Every subject in several poses, kept as premultiplied RGBA; grounds and mirroring are drawn per batch."""

    def __init__(self, emoji_dir: Path, subjects: Sequence[Subject], poses: int, seed: int) -> None:
        self.config: CodecConfig = EMOJI
        self.subjects: Sequence[Subject] = subjects
        self.random = np.random.default_rng(seed)
        bank = [[self._pose(rgba) for _ in range(poses)] for rgba in read_pictures(emoji_dir, subjects)]
        self.bank = torch.from_numpy(np.array(bank, dtype=np.float32))  # (subject, pose, RGBA, 32, 32)
        self.mirror = torch.tensor([subject.mirror for subject in subjects])

    def _pose(self, rgba: Rgba) -> npt.NDArray[np.float32]:
        """(4, 64, 64) shrunk to 54-62 pixels, set down near the middle of its frame, halved to (4, 32, 32)."""
        size = int(self.random.integers(54, 63))
        room = SOURCE_SIZE - size
        top, left = (int(np.clip(room // 2 + self.random.integers(-2, 3), 0, room)) for _ in range(2))
        frame = np.zeros_like(rgba)
        for channel, plane in zip(frame, rgba, strict=True):
            small = Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS)
            channel[top : top + size, left : left + size] = np.clip(np.asarray(small), 0, 1)
        half = self.config.picture_size
        pose: npt.NDArray[np.float32] = frame.reshape(4, half, 2, half, 2).mean(axis=(2, 4))
        return pose

    def batch(self, size: int) -> tuple[Tensor, list[str]]:
        """Pictures (size, 3, 32, 32) in [-1, 1] and the prompts that ask for them."""
        which = self.random.integers(len(self.subjects), size=size)
        rgba = self.bank[which, self.random.integers(self.bank.shape[1], size=size)]
        flip = torch.from_numpy(self.random.random(size) < 0.5) & self.mirror[which]
        rgba = torch.where(flip[:, None, None, None], rgba.flip(-1), rgba)
        grounds = [self._ground() for _ in which]
        prompts = [self._prompt(self.subjects[i], ground) for i, ground in zip(which, grounds, strict=True)]
        return on_grounds(rgba, grounds), prompts

    def examples(self) -> tuple[Tensor, list[str]]:
        """Up to 32 subjects, every second one on a coloured ground."""
        which = list(range(0, len(self.subjects), max(1, len(self.subjects) // 32)))[:32]
        colours = list(GROUNDS)[1:]
        grounds = [colours[i % len(colours)] if i % 2 else "white" for i in range(len(which))]
        prompts = [with_ground(self.subjects[i].prompt, ground) for i, ground in zip(which, grounds, strict=True)]
        return on_grounds(self.bank[which, 0], grounds), prompts

    def prompts(self) -> Mapping[str, Sequence[str]]:
        return {}

    def _ground(self) -> str:
        return "white" if self.random.random() < WHITE_SHARE else str(self.random.choice(list(GROUNDS)))

    def _prompt(self, subject: Subject, ground: str) -> str:
        if self.random.random() < DROPPED_SHARE:
            return ""
        words = f"some {subject.category}" if self.random.random() < CATEGORY_SHARE else subject.prompt
        return with_ground(words, ground)


def with_ground(words: str, ground: str) -> str:
    """The prompt for ``words`` on a ground; white is not named."""
    return words if ground == "white" else f"{words} on {ground}"


def on_grounds(rgba: Tensor, grounds: Sequence[str]) -> Tensor:
    """Premultiplied pictures (B, 4, S, S) in [0, 1] on their grounds: (B, 3, S, S) in [-1, 1]."""
    colours = on_device(torch.tensor([GROUNDS[ground] for ground in grounds]), rgba.device)[:, :, None, None] / 255
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * colours) * 2 - 1


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor of the CPU on ``device``, without waiting for what a GPU still computes."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
