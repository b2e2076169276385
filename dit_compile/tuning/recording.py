"""What a draw with every step computed leaves behind: samples of latents and outputs, and calls to be repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..plans import Cut
from ..runtime.code import CutCode
from ..runtime.observer import ObservedCall
from ..runtime.planned import Found, found_in, scalars_of
from ..runtime.side_inputs import thinned
from ..runtime.update_check import Matching, matching, parts_of
from .errors import TuneError

ELEMENTS = 1 << 14  # of the latents and of each output, at every step: 64 KiB per step and branch


@dataclass
class ModuleFacts:
    """One module of the model: what a plan for it depends on, and its regions (``streams`` of each)."""

    found: Found
    skipped: tuple[int, ...]
    blocks: int
    scalars: tuple[float, ...]
    streams: tuple[int, ...] = ()
    times: list[float | None] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)


@dataclass
class Call:
    """One call of a model: ``run(step, args)`` repeats it. ``latents`` is the place of what the solver updates among
    ``args``, which are not kept (their ``dtype`` is); ``place`` finds what it updates them with."""

    run: Callable[[object, Sequence[Any]], Any]
    args: list[Any]
    branch: int
    latents: int
    dtype: torch.dtype
    place: Matching


@dataclass
class Step:
    """One step of a draw: the ``index``-th of ``module`` (the digest of its weights).

    ``latents`` and ``outputs`` are float32 samples on the host, shape (n,), of the same elements; one of ``outputs``
    for each branch, and for each part of a batch that is a branch. ``residuals`` are samples of what the regions add to
    the main stream, of all regions of the first branch, then of the next.
    """

    module: str
    index: int
    latents: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)


@dataclass
class Recording:
    """A draw. ``start`` are its first latents, ``parts`` counts the branches in one batch."""

    modules: dict[str, ModuleFacts] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    start: Tensor | None = None
    parts: int = 1
    inference: bool = False

    @property
    def solver_is_seen(self) -> bool:
        """Whether latents and outputs of one shape were found at every call."""
        return all(
            step.latents is not None and len(step.outputs) == len(step.calls) * self.parts for step in self.steps
        )


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
    """Observes one draw and keeps it in ``recording``."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.recording = Recording(inference=torch.is_inference_mode_enabled())
        self._keys: dict[object, str] = {}  # by owner

    def call(self, observed: ObservedCall) -> Any:
        check_cut(observed.code, self.cut)
        facts, recording = observed.facts, self.recording
        key = self._keys.get(observed.owner) or self._keys.setdefault(observed.owner, observed.weights())
        index = facts.state.clock.step
        module = recording.modules.get(key)
        if module is None:
            found = found_in(facts.call, observed.structure, key, facts.numbers)
            scalars = tuple(float(scalar) for scalar in scalars_of(facts.call))
            module = ModuleFacts(found, observed.code.skipped, observed.code.blocks, scalars)
            recording.modules[key] = module
            recording.inference = torch.is_inference_mode_enabled()
            if len(recording.modules) == 1:
                recording.parts = _branches_in_batch(facts.call.moving)
        elif index < len(module.branches) - 1:
            raise TuneError(
                "draw() has run the model for more than one generation. Let it make one picture, or one batch of "
                "pictures, per call"
            )
        computing = ComputingStep(facts.graph.mains)
        results = observed.run(computing, observed.args)
        module.streams = tuple(computing.streams)
        if index == len(module.branches):
            facts.call.read_time(facts.outbox)
            module.times.append(facts.call.time)
            module.branches.append(0)
            recording.steps.append(Step(key, index))
        self._note(observed, results, computing.residuals)
        module.branches[index] += 1
        return results

    def _note(self, observed: ObservedCall, results: Any, residuals: Sequence[Tensor]) -> None:
        recording, facts = self.recording, observed.facts
        step = recording.steps[-1]
        step.residuals += residuals
        place = matching(facts.call.moving, results)
        if place is None:
            return
        latents, output = facts.call.moving[place.latents], place.of(results)
        if recording.start is not None and latents.shape[0] != recording.start.shape[0] * recording.parts:
            raise TuneError(
                "the batch of the latents changes within a draw, as where guidance ends on the way: a plan is for one "
                "batch. Draw with guidance to the end, or with a call for each branch"
            )
        if recording.start is None:
            recording.start = latents.chunk(recording.parts)[0].clone()
        if step.latents is None:
            step.latents = parts_of(latents, recording.parts, ELEMENTS)[0].cpu()
        step.outputs += [part.cpu() for part in parts_of(output, recording.parts, ELEMENTS)]
        args, at = list(observed.args), observed.moving[place.latents]
        args[at] = None  # of a long video they would take gigabytes over all steps and prompts
        step.calls.append(Call(observed.run, args, facts.branch, at, latents.dtype, place))


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
