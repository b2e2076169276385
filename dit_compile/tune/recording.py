"""What one generation with every step computed leaves behind: samples of latents and outputs, and its conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..plans import Cut
from ..runtime.code import CutCode
from ..runtime.observer import ObservedCall
from ..runtime.planned import Found, found_in, release, scalars_of
from ..runtime.side_inputs import thinned
from ..runtime.update_check import matching, parts_of
from ..runtime.weights import Owner
from .errors import TuneError

ELEMENTS = 1 << 14  # of the latents and of each output, at every step: 64 KiB per step and branch


@dataclass
class Recording:
    """Of one module in one generation.

    ``latents[step]`` and ``outputs[step][source]`` are float32 samples on the host, shape (n,), of the same elements;
    sources are the branches of a step, and the parts of a batch that are branches. Both are empty where no output has
    the shape of the latents. ``residuals[step]`` are samples of what each region adds to the main stream, of all
    regions of the first branch, then of the next.
    """

    found: Found
    skipped: tuple[int, ...]
    blocks: int
    streams: tuple[int, ...] = ()  # of each region
    scalars: tuple[float, ...] = ()
    batch_branches: int = 1
    times: list[float | None] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    residuals: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.branches)


class ComputingStep:
    """The ``step`` of a call in which every region runs; counts the values that leave each, and samples what it adds
    to the main stream, whose number is in ``mains``."""

    def __init__(self, mains: Sequence[int | None]) -> None:
        self._mains = mains
        self.streams: list[int] = []
        self.residuals: list[Tensor] = []

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> ComputingStep:
        return self

    def run(
        self, region: Callable[..., Sequence[Tensor]], operands: Sequence[Any], bases: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        main = self._mains[len(self.streams)] or 0
        self.streams.append(len(bases))
        values = region(*operands)
        value, base = values[main], bases[main]
        own = thinned(value, ELEMENTS).float()
        self.residuals.append((own if base is None else own - thinned(base, ELEMENTS).float()).cpu())
        return values


class Recorder:
    """Observes one draw. ``recordings`` has one entry for each module that was called, in the order of first calls."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.recordings: dict[Owner, Recording] = {}

    def call(self, observed: ObservedCall) -> Any:
        check_cut(observed.code, self.cut)
        facts, code = observed.facts, observed.code
        step, call = facts.state.clock.step, facts.call
        one = self.recordings.get(observed.owner)
        if one is None or step == 0 < one.steps - 1:
            if one is not None:
                raise TuneError(
                    "draw() has run the model for more than one generation. Let it make one picture or one batch of "
                    "pictures per call"
                )
            found = found_in(call, observed.structure, observed.weights(), release(torch.__version__), facts.numbers)
            one = self.recordings[observed.owner] = Recording(found, code.skipped, code.blocks)
            one.scalars = tuple(float(scalar) for scalar in scalars_of(call))
            one.batch_branches = _branches_in_batch(call.moving)
        computing = ComputingStep(facts.graph.mains)
        results = observed.forward(computing)
        one.streams = tuple(computing.streams)
        place = matching(call.moving, results)
        if step == one.steps:
            call.read_time(facts.outbox)
            one.times.append(call.time)
            one.branches.append(0)
            one.residuals.append([])
            if place is not None:
                one.latents.append(parts_of(call.moving[place[0]], one.batch_branches, ELEMENTS)[0].cpu())
                one.outputs.append([])
        one.branches[step] += 1
        one.residuals[step] += computing.residuals
        if place is not None:
            outputs = results if isinstance(results, (tuple, list)) else [results]
            one.outputs[step] += [part.cpu() for part in parts_of(outputs[place[1]], one.batch_branches, ELEMENTS)]
        return results


def check_cut(code: CutCode, cut: Cut) -> None:
    """Raises TuneError where the graph was not cut as a plan needs it."""
    if code.cut != cut:
        raise TuneError(
            f"the graph of the model cannot be cut for a plan (front={cut.front}, back={cut.back}, {cut.scope}): "
            "dit_compile.graphs()[-1].notes says why; front=1 may be possible"
        )


def _branches_in_batch(moving: Sequence[Tensor]) -> int:
    """2 where both halves of the batch are the same latents: guidance in one call."""
    for latents in moving:
        if latents.ndim and latents.shape[0] and latents.shape[0] % 2 == 0:
            first, second = latents.chunk(2)
            return 2 if bool(torch.equal(first, second)) else 1
    return 1
