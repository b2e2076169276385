"""One generation under a plan: whether it goes as planned, and the weights of its forecasts.

What a plan depends on and what can be known before the first call is checked when the generation begins. Times, small
inputs and the solver's updates come to the host by and by; for those of the first steps the host waits, at steps 1 and
2. A generation that is not as planned goes on with the guard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plans import Conditions, Part
from ..policy.plan import GuardedSteps, PlannedSteps
from .inputs import Call
from .stats import GenerationStats
from .transfer import Outbox, Ticket
from .update_check import TOLERANCE, Matching, UpdateCheck, matching

SAME_TIME = 1e-4  # of the largest time
SAME_NUMBER = 1e-3  # relative; scalars may be float16


class Found(NamedTuple):
    """What is known of a generation at its first call; compared with ``Conditions``."""

    structure: str
    weights: str
    dtype: str
    torch: str
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[float, ...]


def release(version: str) -> str:
    """``2.13.0+cpu`` -> ``2.13``."""
    return ".".join(version.split("+")[0].split(".")[:2])


def found_in(call: Call, structure: str, weights: str, numbers: tuple[float, ...]) -> Found:
    """What ``call``, the first of a generation, tells."""
    dtype = str(call.moving[0].dtype).removeprefix("torch.") if call.moving else ""
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in call.moving)  # without the batch
    return Found(structure, weights, dtype, release(torch.__version__), shapes, numbers)


def scalars_of(call: Call) -> list[Tensor]:
    """Small floating point inputs that are known when a generation begins, such as an embedded guidance: their means,
    each of shape ()."""
    small = [one for one in call.conditioning if one.ndim <= 1 and one.is_floating_point() and one.numel()]
    return [one.detach().float().mean() for one in small]


def mismatch(conditions: Conditions, found: Found) -> str | None:
    """Why a run of which ``found`` is known is not one that the plan was made for."""
    if found.structure != conditions.structure:
        return "the model's graph is another one"
    if found.torch != conditions.torch:
        return f"it was made with torch {conditions.torch}, and this is {found.torch}"
    if found.dtype != conditions.dtype:
        return f"the latents are {found.dtype}, the plan's are {conditions.dtype}"
    if found.weights != conditions.weights:
        return "the weights are others (another checkpoint, an adapter, quantisation)"
    if found.shapes != conditions.shapes:
        return f"the latents have the shape {found.shapes}, the plan's have {conditions.shapes} (without the batch)"
    if not _same(found.numbers, conditions.numbers):
        return f"numbers among the inputs are {found.numbers}, the plan's are {conditions.numbers}"
    return None


def _same(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and all(
        math.isclose(one, other, rel_tol=SAME_NUMBER, abs_tol=1e-6) for one, other in zip(found, wanted, strict=True)
    )


class PlannedRun:
    """``part`` is the plan of the module, ``name`` what messages call it, ``guarded`` whether differences are measured.
    ``ended`` says why the plan is not in force any more; ``stats`` of the generation say so, too. ``say(key, message)``
    logs a message once."""

    def __init__(
        self, part: Part, name: str, stats: GenerationStats, *, guarded: bool, say: Callable[[object, str], None],
        ended: str | None = None,
    ) -> None:  # fmt: skip
        self.part = part
        self.ended: str | None = None
        self._name, self._stats, self._guarded, self._say = name, stats, guarded, say
        steps = part.conditions.steps
        stats.plan = f"{name} in force: {len(part.computed)} of {steps} steps computed"
        forecasts = part.forecasts
        self.policy = GuardedSteps(forecasts, part.differences) if guarded else PlannedSteps(forecasts)
        self._largest = max((abs(time) for time in part.conditions.times if time is not None), default=0.0)
        self._step = -1
        self._branches: set[int] = set()  # of this step
        self._timed = 0  # steps whose times have been compared
        self._scalars: Ticket | None = None
        self._place: Matching | None = None
        self._confirmed = 0  # the step up to which everything has been compared
        conditions = part.conditions
        self._updates = UpdateCheck(conditions.rules, conditions.batch_branches)
        if ended is not None:
            self.end_with(ended)

    def is_last(self, step: int) -> bool:
        """Whether ``step`` is the last one of the plan."""
        return step == self.part.conditions.steps - 1

    def begin_call(self, step: int, branch: int, times: Sequence[float | None], call: Call, outbox: Outbox) -> None:
        """A call of ``step`` begins; ``times`` are those of all steps so far, None where they have not arrived."""
        conditions = self.part.conditions
        if step != self._step:
            self._begin_step(step, call, outbox)
        self._branches.add(branch)
        if self.ended is None and step < conditions.steps and len(self._branches) > conditions.branches[step]:
            self.end_with(f"step {step} has more calls than planned ({conditions.branches[step]})")
        self._compare(times, wait=False)

    def _begin_step(self, step: int, call: Call, outbox: Outbox) -> None:
        conditions = self.part.conditions
        if step != self._step + 1:
            self.end_with(f"step {step} follows step {self._step}")
        elif 0 < step <= conditions.steps and len(self._branches) != conditions.branches[step - 1]:
            self.end_with(
                f"step {step - 1} had {len(self._branches)} calls (branches of guidance), the plan has "
                f"{conditions.branches[step - 1]}"
            )
        elif step == conditions.steps:
            self.end_with(f"the generation has more than {conditions.steps} steps")
        self._step, self._branches = step, set()
        if self.ended is not None:
            return
        if step == 0:
            self._scalars = outbox.put(scalars_of(call))
        self._updates.begin(step, call.moving, self._place, outbox)

    def _compare(self, times: Sequence[float | None], *, wait: bool) -> None:
        """With the plan, what has arrived."""
        conditions = self.part.conditions
        while self.ended is None and self._timed < min(len(times), conditions.steps):
            found, wanted = times[self._timed], conditions.times[self._timed]
            if found is None and wanted is not None:
                break
            if (found is None) != (wanted is None) or (
                found is not None and wanted is not None and abs(found - wanted) > SAME_TIME * self._largest
            ):
                self.end_with(
                    f"the time of step {self._timed} is {found}, the plan has {wanted} (other steps or another shift)"
                )
            self._timed += 1
        if self.ended is None and self._scalars is not None and (wait or self._scalars.ready()):
            found_scalars, self._scalars = tuple(self._scalars.values()), None
            if not _same(found_scalars, conditions.scalars):
                self.end_with(f"small inputs (guidance) are {found_scalars}, the plan has {conditions.scalars}")
        if self.ended is None:
            deviation = self._updates.deviation(wait=wait)
            if deviation is not None and not deviation <= TOLERANCE:
                self.end_with(
                    "guidance, solver or step sizes are others: the first updates of the latents deviate by "
                    f"{deviation:.1%}"
                )

    def wants_to_know(self, step: int) -> bool:
        """Whether the host is to wait for what has been sent so far: before the first weights are used, and until all
        updates that are compared have been."""
        return self.ended is None and self._confirmed < step <= max(len(self.part.conditions.rules), 1)

    def knows(self) -> bool:
        """Whether that has arrived."""
        return self._updates.arrived() and (self._scalars is None or self._scalars.ready())

    def compare_all(self, times: Sequence[float | None]) -> None:
        """With the plan, everything that has been sent; ``times`` are those of all steps so far."""
        self._confirmed = self._step
        self._compare(times, wait=True)

    def end_call(self, moving: Sequence[Tensor], results: Any) -> None:
        """A call has returned ``results``."""
        if self.ended is not None or self._step >= len(self.part.conditions.rules):
            return
        if self._place is None:
            self._place = matching(moving, results)
        if self._place is not None:
            self._updates.end(self._step, self._place.of(results))

    def weights(self, step: int, branch: int, region: int, sources: Sequence[int]) -> Sequence[Sequence[float]] | None:
        """For each value that leaves ``region`` one weight for each snapshot of the steps ``sources``; None where they
        are not the planned ones. Those of a computed step correct it; None where there is nothing to correct."""
        forecast = self.part.forecasts.get(step) or self.part.corrections.get(step)
        if self.ended is not None or forecast is None:
            return None
        missing = len(sources) - len(forecast.sources)
        if missing < 0 or tuple(sources[missing:]) != forecast.sources or branch >= len(forecast.weights):
            return None
        older = (0.0,) * missing
        return [(*older, *stream) for stream in forecast.weights[branch][region]]

    def computed(self, step: int, reason: str) -> None:
        """A region was computed at ``step``: where it should have been forecast, later forecasts lack their sources."""
        if step in self.part.forecasts:
            self.end_with(f"step {step} was computed ({reason})")

    def restarted(self, stats: GenerationStats) -> PlannedRun:
        """The run of the next generation, whose first calls were taken for calls of this one."""
        why = "that a generation had begun was noticed late"
        return PlannedRun(self.part, self._name, stats, guarded=self._guarded, say=self._say, ended=why)

    def end(self) -> None:
        """The generation is over."""
        if self.ended is None and self._step + 1 < self.part.conditions.steps and self._step >= 0:
            self.ended = f"the generation ended after {self._step + 1} of {self.part.conditions.steps} steps"
            self._stats.plan = f"{self._name} was not carried out: {self.ended}"

    def end_with(self, why: str) -> None:
        """The plan is not in force any more, because of ``why``."""
        if self.ended is None:
            self.ended = why
            self._stats.plan = f"{self._name} not applied: {why}"
            self._say((self._name, why), f"dit_cache: {self._name} is not applied, the guard decides: {why}")
