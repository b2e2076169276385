"""The knobs of one cached generation and the trace that every implementation must return for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

Forecast = Literal["reuse", "taylorseer", "newton"]
Scope = Literal["chain", "container"]
StreakRule = Literal["1.5.3", "1.0.14"]
Place = tuple[int, int]  # (branch, region)
EXCERPT_STRIDE = (
    61  # of a transformer output, every 61st number is stored: of all channels, for 61 divides no size here
)
FOCA_SCHEDULE = "cccrrrcrrrcrrr"  # computed and reused steps


@dataclass(frozen=True)
class Knobs:
    """One cache configuration; the fields are the keys of ``torch.compile(options=...)``, with cache-dit's defaults."""

    fn: int = 8
    bn: int = 0
    warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    residual_diff_threshold: float = 0.08
    forecast: Forecast = "reuse"
    taylor_order: int = 1
    scope: Scope = "chain"

    @property
    def structure(self) -> tuple[int, int, Scope]:
        """What needs a compilation of its own."""
        return self.fn, self.bn, self.scope

    def runtime(self) -> dict[str, Any]:
        """What can change without a compilation."""
        return {name: value for name, value in asdict(self).items() if name not in ("fn", "bn", "scope")}

    def options(self) -> dict[str, Any]:
        return {"inner": "eager", "preset": "cache-dit", **asdict(self)}


@dataclass
class Trace:
    """What one generation did. Steps are counted per branch; ``diffs`` has only the steps at which one was measured.

    A trace that was stored has no ``outputs``, only ``excerpts`` of them.
    """

    cached: dict[Place, list[int]] = field(default_factory=dict)
    diffs: dict[Place, dict[int, float]] = field(default_factory=dict)
    outputs: list[torch.Tensor] = field(default_factory=list)  # of each transformer call, in order
    latents: torch.Tensor | None = None
    excerpts: torch.Tensor | None = None

    def stored_excerpts(self) -> torch.Tensor:
        """(calls, numbers): what is stored of the outputs."""
        if self.excerpts is not None:
            return self.excerpts
        return torch.stack([output.flatten()[::EXCERPT_STRIDE] for output in self.outputs])

    def max_error(self, other: Trace) -> float:
        """Largest difference of any transformer output, or of its excerpt if one trace was stored, or of the final
        latents."""
        if self.excerpts is None and other.excerpts is None:
            pairs = list(zip(self.outputs, other.outputs, strict=True))
        else:
            pairs = [(self.stored_excerpts(), other.stored_excerpts())]
            assert pairs[0][0].shape == pairs[0][1].shape
        if self.latents is not None and other.latents is not None:
            pairs.append((self.latents, other.latents))
        return max(float((a - b).abs().max()) for a, b in pairs)
