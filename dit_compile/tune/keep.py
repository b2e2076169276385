"""Recordings on disk, so that an interrupted calibration goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from ..runtime.planned import Found
from .drawing import Prompt
from .pictures import Pixels
from .recording import Recording


class Keeper:
    """Keeps what each prompt has left in a file of its own in ``folder``; nothing where that is None."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def save(self, prompt: Prompt, recordings: Sequence[Recording], pixels: Pixels) -> None:
        path = self._path(prompt)
        if path is None:
            return
        content = {
            "recordings": [{**asdict(one), "found": list(one.found)} for one in recordings],
            "pixels": torch.from_numpy(pixels),
        }
        part = path.with_suffix(".part")
        torch.save(content, part)
        part.replace(path)

    def load(self, prompt: Prompt) -> tuple[list[Recording], Pixels] | None:
        """What ``save`` has kept of ``prompt``; None where there is nothing that can be read."""
        path = self._path(prompt)
        if path is None or not path.exists():
            return None
        try:
            content = torch.load(path, weights_only=True)
            names = {one.name for one in fields(Recording)}
            recordings = [
                Recording(**{**{name: one[name] for name in names}, "found": Found(*one["found"])})
                for one in content["recordings"]
            ]
        except Exception:  # written by another release, or damaged: the prompt is drawn again
            return None
        pixels: Pixels = content["pixels"].numpy()
        return recordings, pixels

    def clear(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            for path in self._folder.glob("*.recording"):
                path.unlink()
            if not any(self._folder.iterdir()):
                self._folder.rmdir()

    def _path(self, prompt: Prompt) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(repr(prompt).encode()).hexdigest()[:24]
        return self._folder / f"{name}.recording"
