"""Walks cached runs of all prompts step by step beside the uncached ones, and fits the weights of each step on the way.

The runs repeat the recorded calls of the model, with latents that the solver's rules give. The model's outputs are
linearised in the weights by finite differences: front, forecast and tail run once more for each free weight, which is
cheap beside the region.

Memory: the snapshots of all prompts are on the device at the same time, which is (snapshots x branches x prompts) times
the streams that leave the regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import CacheConfig
from ..kernels.probe import probe, residual_of
from ..plans import UpdateRule
from ..runtime.side_inputs import relative_change
from ..runtime.slots import Slots
from ..runtime.update_check import parts_of
from .errors import TuneError
from .fitting import Fit, StepFit
from .recording import ELEMENTS, Call, Recording, Step
from .solver import MOST_LAG, next_latents

PROBE = 0.5  # by which a weight is moved to see what it does; large beside the rounding of half precision
SAME = 0.05  # relative: a repeated call gives what the recorded one gave, up to the rounding of latents

StreamWeights = Sequence[Sequence[Sequence[float]]]  # [region][stream][source]


class _Region(NamedTuple):
    step: ReplayedStep
    number: int

    def run(self, code: Callable[..., Any], operands: Sequence[Any], bases: Any) -> Sequence[Tensor]:
        return self.step.run(self.number, code, operands, bases)


class ReplayedStep:
    """The ``step`` of a call in which every region is forecast with ``weights``, or runs and leaves a snapshot (None).

    ``slots`` gives the state of a region. ``measured`` collects what the guards would have measured.
    """

    def __init__(
        self, slots: Callable[[int], Slots], weights: StreamWeights | None, index: int, capacity: int,
        config: CacheConfig, measured: list[float] | None,
    ) -> None:  # fmt: skip
        self._slots, self._weights, self._index, self._capacity = slots, weights, index, capacity
        self._config, self._measured = config, measured

    def guard(self, region: int, entry: Tensor | None, value: Tensor) -> _Region:
        slots = self._slots(region)
        if self._weights is None:
            slots.probe = residual_of(value, entry)
        elif self._measured is not None and slots.probe is not None:
            self._measured.append(relative_change(*probe(value, entry, slots.probe)[1].tolist()))
        return _Region(self, region)

    def run(self, region: int, code: Callable[..., Any], operands: Sequence[Any], bases: Any) -> Sequence[Tensor]:
        slots = self._slots(region)
        if self._weights is not None:
            older = [0.0] * (len(slots.ring) - len(self._weights[region][0]))  # of before another branch began
            return slots.forecast([[*older, *stream] for stream in self._weights[region]], bases)
        values: Sequence[Tensor] = code(*operands)
        slots.store(self._index, self._capacity, values, bases, self._config.snapshot_dtype)
        return values


class _Run:
    """The cached run of one prompt: latents and outputs of the last steps, and its snapshots."""

    def __init__(self, recording: Recording) -> None:
        assert recording.start is not None
        self.recording = recording
        self.latents: list[Tensor] = [recording.start]
        self.outputs: list[list[Tensor]] = []
        self._slots: dict[tuple[str, int, int], Slots] = {}

    def call(
        self, step: Step, call: Call, weights: StreamWeights | None, fit: Fit, config: CacheConfig,
        measured: list[float] | None = None,
    ) -> Tensor:  # fmt: skip
        """What ``call`` returns with the latents of this run."""

        def slots(region: int) -> Slots:
            return self._slots.setdefault((step.module, region, call.branch), Slots())

        args = list(call.args)
        args[call.latents] = torch.cat([self.latents[-1]] * self.recording.parts).to(call.dtype)
        replayed = ReplayedStep(slots, weights, step.index, fit.snapshots, config, measured)
        return call.place.of(call.run(replayed, args))

    def sources(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Branches of the calls' ``outputs``, those in one batch apart."""
        return [part for output in outputs for part in output.chunk(self.recording.parts)]

    def advance(self, outputs: Sequence[Tensor], rule: UpdateRule | None) -> None:
        """Takes the step."""
        self.outputs = [*self.outputs[-MOST_LAG:], self.sources(outputs)]
        if rule is not None:
            latents = next_latents(rule, self.latents, self.outputs).to(self.latents[-1].dtype)
            self.latents = [*self.latents[-MOST_LAG:], latents]


class Walked(NamedTuple):
    """``differences``: by module, the largest that guards would have measured at each forecast step. ``errors``: for
    each prompt the relative error of the latents at the last step."""

    differences: dict[str, dict[int, float]]
    errors: list[float]

    @property
    def score(self) -> float:
        """In dB, the higher the better: the mean over the prompts, and half of the worst."""
        decibels = [-20 * math.log10(max(error, 1e-6)) if math.isfinite(error) else -math.inf for error in self.errors]
        return sum(decibels) / len(decibels) + min(decibels) / 2


def walk(
    recordings: Sequence[Recording],
    fits: Mapping[str, Fit],
    rules: Sequence[UpdateRule | None],
    config: CacheConfig,
    advance: Callable[[], None],
) -> Walked:
    """Fits ``fits`` (by module) on ``recordings``; ``advance`` is called after each step of each prompt.

    Returns what the walk has seen.

    Raises:
        TuneError: a repeated call gives something else than the recorded one.
    """
    runs = [_Run(recording) for recording in recordings]
    differences: dict[str, dict[int, float]] = {key: {} for key in fits}
    with torch.inference_mode(recordings[0].inference), torch.no_grad():
        for number, step in enumerate(recordings[0].steps):
            fit, rule = fits[step.module], rules[number] if number < len(rules) else None
            mine = fit.steps.get(step.index)
            measured: list[float] = []
            outputs = _walk_step(runs, number, fit, mine, rule, config, measured)
            for run, made in zip(runs, outputs, strict=True):
                run.advance(made, rule)
                advance()
            if measured:
                differences[step.module][step.index] = max(measured)
            if number == 0:
                _check(runs)
    errors = []
    for run in runs:
        wanted = run.recording.steps[-1].latents
        assert wanted is not None
        reached = parts_of(run.latents[-1], 1, ELEMENTS)[0].cpu()
        errors.append(((reached - wanted).norm() / wanted.norm()).item())
    return Walked(differences, errors)


def _walk_step(
    runs: Sequence[_Run], number: int, fit: Fit, mine: StepFit | None, rule: UpdateRule | None, config: CacheConfig,
    measured: list[float],
) -> list[list[Tensor]]:  # fmt: skip
    """One step of all runs: what their calls return."""
    start = None if mine is None or mine.corrects else mine.weights()  # nothing is fitted yet
    made = []
    for run in runs:
        step = run.recording.steps[number]
        made.append(
            [
                run.call(step, call, None if start is None else start[call.branch], fit, config, measured)
                for call in step.calls
            ]
        )
    if mine is None or rule is None or not mine.places:
        return made
    mine.solve(
        [_equations(run, number, fit, mine, rule, config, outputs) for run, outputs in zip(runs, made, strict=True)]
    )
    weights = mine.weights()
    return [
        [run.call(step, call, weights[call.branch], fit, config) for call in step.calls]
        for run, step in ((run, run.recording.steps[number]) for run in runs)
    ]


def _equations(
    run: _Run, number: int, fit: Fit, mine: StepFit, rule: UpdateRule, config: CacheConfig, outputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """J'J and J'y of one prompt: J says how the free weights move the next latents, y where these are to go."""
    step, parts = run.recording.steps[number], run.recording.parts
    reached = next_latents(rule, run.latents, [*run.outputs, run.sources(outputs)])
    wanted = run.recording.steps[number + 1].latents
    assert wanted is not None
    missing = wanted.double() - parts_of(reached, 1, ELEMENTS)[0].cpu().double()
    known = [parts_of(one, parts, ELEMENTS) for one in outputs]
    columns = []
    for place, free in enumerate(mine.places):
        moved = torch.zeros(len(mine.places), dtype=torch.float64)
        moved[place] = PROBE
        weights = mine.weights(moved)[free.branch]
        change = torch.zeros_like(missing)
        for at, call in enumerate(step.calls):
            if call.branch == free.branch:
                there = run.call(step, call, weights, fit, config)
                for part, (new, old) in enumerate(zip(parts_of(there, parts, ELEMENTS), known[at], strict=True)):
                    change += rule.of(at * parts + part) * (new - old).cpu().double()
        columns.append(change / PROBE)
    jacobian = torch.stack(columns, dim=1)
    return jacobian.T @ jacobian, jacobian.T @ missing


def _check(runs: Sequence[_Run]) -> None:
    """The first step has the recorded latents, so its outputs must be the recorded ones."""
    for run in runs:
        for output, known in zip(run.outputs[-1], run.recording.steps[0].outputs, strict=True):
            now = parts_of(output, 1, ELEMENTS)[0].cpu()
            if not bool((now - known).norm() <= SAME * known.norm()):
                raise TuneError(
                    "a call of the model that is repeated gives another result. draw() may write into tensors that it "
                    "has passed to the model, or move the model off its device when it is done; let it do neither"
                )
