"""What the demo measured, as data: nothing here runs a model."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.float32]


def psnr(reference: Pictures, pictures: Pictures) -> tuple[float, ...]:
    """Peak signal-to-noise ratio in dB of each of (N, H, W, 3) pictures in [-1, 1]; infinite where identical."""
    metrics: Any = importlib.import_module("skimage.metrics")  # an optional, untyped dependency
    return tuple(
        math.inf if np.array_equal(true, test) else float(metrics.peak_signal_noise_ratio(true, test, data_range=2.0))
        for true, test in zip(reference, pictures, strict=True)
    )


@dataclass(frozen=True)
class Drawing:
    """All prompts, drawn as one batch in one way.

    ``pictures`` is (N, 32, 32, 3) in [-1, 1], ``seconds`` the time per picture in each round, ``psnr`` the distance of
    each picture in dB to the same one drawn with every step computed (empty for that reference itself).
    """

    steps: int
    seconds: tuple[float, ...]
    pictures: Pictures
    psnr: tuple[float, ...] = ()

    @property
    def median_seconds(self) -> float:
        """Seconds per picture, median over the rounds."""
        return median(self.seconds)

    @property
    def median_psnr(self) -> float:
        """Decibels, median over the prompts; infinite when at least half of the pictures are identical."""
        return median(self.psnr) if self.psnr else math.inf

    def as_data(self) -> dict[str, Any]:
        """JSON-able form without the pictures; an identical picture has a PSNR of null."""
        return {
            "steps": self.steps,
            "seconds": list(self.seconds),
            "median_seconds": self.median_seconds,
            "psnr": [_finite(value) for value in self.psnr],
            "median_psnr": _finite(self.median_psnr),
        }


@dataclass(frozen=True)
class Reuse:
    """What the cache did in one generation, counted in denoising steps (guidance branches averaged).

    ``reused`` steps were not computed in full. ``cost`` counts the blocks that ran in units of one full step: a reused
    step still costs its front and back blocks.
    """

    reused: float
    cost: float
    bytes_held: int
    host_reads: int

    def as_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "steps_reused": self.reused,
            "cost_in_full_steps": self.cost,
            "bytes_held": self.bytes_held,
            "host_reads": self.host_reads,
        }


@dataclass(frozen=True)
class Compile:
    """The first call of a compiled transformer. ``from_disk``: Inductor found compiled code in its disk cache."""

    seconds: float
    from_disk: bool

    def as_data(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"seconds": self.seconds, "from_disk": self.from_disk}


@dataclass(frozen=True)
class Settings:
    """What was run, and on what."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float
    inner: str
    preset: str
    config: str
    device: str
    torch: str
    diffusers: str


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo's table, picture and JSON file are made of.

    ``same_time`` draws without the cache, in as many steps as the cached run had time for; ``same_cost`` in as many
    as the blocks it ran amount to. They are what a user would do without this package, so what the cache must beat.
    """

    settings: Settings
    compile_plain: Compile
    compile_cached: Compile
    uncached: Drawing
    cached: Drawing
    reuse: Reuse
    same_time: Drawing
    same_cost: Drawing

    @property
    def speedup(self) -> float:
        """Seconds per picture without the cache over seconds per picture with it."""
        return self.uncached.median_seconds / self.cached.median_seconds

    def baselines(self) -> dict[str, Drawing]:
        """The runs with fewer steps, by what they have in common with the cached one."""
        if self.same_time.steps == self.same_cost.steps:
            return {"same time & cost": self.same_time}
        return {"same time": self.same_time, "same cost": self.same_cost}

    def as_data(self) -> dict[str, Any]:
        """JSON-able form of all but the pictures."""
        return {
            "settings": {**vars(self.settings), "prompts": list(self.settings.prompts)},
            "compile": {"plain": self.compile_plain.as_data(), "cached": self.compile_cached.as_data()},
            "uncached": self.uncached.as_data(),
            "cached": {**self.cached.as_data(), **self.reuse.as_data(), "speedup": self.speedup},
            "fewer_steps_same_time": self.same_time.as_data(),
            "fewer_steps_same_cost": self.same_cost.as_data(),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
