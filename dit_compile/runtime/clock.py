"""The step clock: which generation, step and branch is this call?

Nothing is required of the pipeline. Host-side facts come first, because they are free: object identity of the latents
and the conditioning tells the calls of one step apart (a further call with the same latents but another prompt is a
further branch of classifier-free guidance), and so does the name that a pipeline of diffusers gives to its call
("cond", "uncond"), also where every call brings new tensors. The timestep's value tells generations apart: it runs one
way within a generation and jumps back when the next begins.

Batch size, shapes and the graph that serves a call say nothing of the generation: the calls of one time form a step.
A step may consist of calls of other batch (skip layer guidance), a prompt may change its length, and Dynamo may compile
a function twice. All graphs of one function of the model are one ``frame``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .identity import Fingerprint, TensorId, fingerprint, matches

MAX_BRANCHES = 4  # calls of one step that are recognised without being announced by ``cfg``


@dataclass(frozen=True)
class Call:
    """The inputs of one call that the clock looks at. ``time`` is None while its value is on a device, ``context`` is
    the pipeline's name for the call, if it has one. ``frame`` is the function of the model that is called, ``graph``
    the one of its graphs that serves the call."""

    frame: int
    moving: list[Tensor]
    timestep: Tensor | None
    conditioning: list[Tensor]
    time: float | None
    context: str | None = None
    graph: int = 0


@dataclass(frozen=True)
class Position:
    """Where a call stands.

    ``certain`` is False when only the timestep, not yet read, can exclude a new generation. ``shapes`` are those of the
    conditioning: a branch whose prompt changes its length cannot go on with its snapshots. ``left`` is known when a
    step begins, for only then is the one before it complete. Snapshots from before ``settled`` are another prompt's.
    """

    step: int
    branch: int
    new_generation: bool
    certain: bool
    shapes: tuple[object, ...] = ()
    new_prompt: bool = False  # another prompt has taken over a branch that had a lasting one
    left: tuple[tuple[int, int], ...] = ()  # (frame, branch) of the step before last that the last step did without
    settled: int | None = None  # at this step another prompt took over, as is known only now


@dataclass
class _Branch:
    conditioning: Fingerprint = ()
    stable: bool = False  # seen with the same conditioning at two steps
    context: str | None = None  # None also for the very first call: the name was said before anybody listened
    since: int = 0  # the step at which this conditioning was first seen
    took_over: bool = False  # from another, and has not come back yet: its tensors may be new ones at every step

    def has_prompt_of(self, call: Call) -> bool:
        named_alike = self.context == call.context or self.context is None or call.context is None
        return named_alike and matches(self.conditioning, call.conditioning)


@dataclass
class _Times:
    """The timesteps of one generation."""

    first: float | None = None
    last: float | None = None
    moves: int = 0


@dataclass
class Clock:
    """Counts the steps of one module in one session."""

    step: int = -1
    points: list[int] = field(default_factory=list)  # of each step: how many other times came before it
    direction: int = 0  # -1 when timesteps fall, +1 when they rise; learnt once, kept over generations
    _times: _Times = field(default_factory=_Times)
    _branches: dict[int, _Branch] = field(default_factory=dict)
    _seen: dict[int, dict[int, int]] = field(default_factory=dict)  # branches of this step -> frame -> its graph
    _seen_before: dict[int, dict[int, int]] = field(default_factory=dict)  # of the last step
    _moving: Fingerprint = ()
    _timestep: TensorId | None = None
    _shape: tuple[tuple[torch.Size, torch.dtype], ...] = ()
    _calls: int = 0
    _trust_latents: bool = True
    _lasting: set[tuple[int, int]] = field(default_factory=set)  # (frame, branch); kept over generations

    @property
    def repeats_times(self) -> bool:
        """Whether steps of this generation have had one time, as those of a solver that evaluates twice have."""
        return bool(self.points) and self.points[-1] < len(self.points) - 1

    def tick(self, call: Call, *, cfg: str | int, num_steps: int | None) -> Position:
        """Places ``call`` and remembers it."""
        reshaped = self._is_reshaped(call)
        known = self._known_branch(call)
        same_step = self.step >= 0 and self._is_same_step(call, known, cfg)
        new_generation, certain = False, True
        left: tuple[tuple[int, int], ...] = ()
        if not same_step:
            new_generation, certain = self._is_new_generation(call, known, reshaped, num_steps)
            if new_generation:
                self.end()
            self.step += 1
            left = self._turn_page()
            known = self._known_branch(call)
            again = self.step > 0 and call.time is not None and call.time == self._times.last
            self.points.append(self.points[-1] + (not again) if self.points else 0)
            if call.time is not None:
                self._observe(call.time)
        branch = self._branch(call, known, cfg)
        holder = self._branches.get(branch)
        changed = holder is not None and bool(call.conditioning) and not holder.has_prompt_of(call)
        lasts = (call.frame, branch) in self._lasting
        new_prompt = changed and (holder.stable or lasts or holder.context != call.context)  # type: ignore[union-attr]
        settled = self._remember(call, branch)
        shapes = tuple(tensor.shape for tensor in call.conditioning)
        return Position(self.step, branch, new_generation, certain, shapes, new_prompt, left, settled)

    def needs_time(self, call: Call, *, cfg: str | int) -> bool:
        """Whether nothing but the time, not yet known, can place ``call``: its shapes or its graph are others than
        those of the call before, and neither its prompt nor its name is one that this step has yet to see."""
        if cfg != "auto" or self.step < 0 or call.time is not None or call.timestep is None:
            return False
        known = self._known_branch(call)
        if known is not None:
            return self._is_served(known, call) and self._seen[known][call.frame] != call.graph
        return self._is_reshaped(call)

    def late_time(self, step: int, branch_call: bool, time: float) -> bool:
        """Takes in a timestep that arrived after its call was placed; True: ``step`` began a new generation.

        ``branch_call`` says that the call was placed as a further branch of a step because it had the same latents.
        """
        if branch_call:
            if self._times.last is not None and time != self._times.last:
                self._trust_latents = False  # the caller repeats one latents object over several steps
            return False
        jumped = step > 0 and self._jumped(time)
        if jumped:
            self._times = _Times()
            self.step -= step
            self.points = [point - self.points[step] for point in self.points[step:]]
            for facts in self._branches.values():
                facts.since -= step
        elif step > 0 and time == self._times.last:
            self.points[step:] = [point - 1 for point in self.points[step:]]
        self._observe(time)
        return jumped

    def _known_branch(self, call: Call) -> int | None:
        """The branch that ``call`` belongs to: it has the same prompt, else the same name."""
        alike = [branch for branch, facts in self._branches.items() if facts.has_prompt_of(call)]
        if alike:  # one prompt may have two branches: guidance by a perturbed model
            return next((branch for branch in alike if not self._is_served(branch, call)), alike[0])
        if call.context is None:
            return None
        free = [b for b in self._branches if not self._is_served(b, call)]
        named = [b for b in free if self._branches[b].context == call.context]
        nameless = [b for b in free if self._branches[b].context is None]
        return next(iter(named + nameless), None)

    def _is_served(self, branch: int, call: Call) -> bool:
        """Whether this step has had a call of ``branch`` already."""
        return call.frame in self._seen.get(branch, ())

    def _is_reshaped(self, call: Call) -> bool:
        return self._shape != _shape(call)

    def _is_of_same_size(self, call: Call) -> bool:
        """Whether the latents have the shape of those before, apart from the batch."""
        return [shape[1:] for shape, _ in self._shape] == [shape[1:] for shape, _ in _shape(call)]

    def _is_same_step(self, call: Call, known: int | None, cfg: str | int) -> bool:
        if cfg == "none":
            return False
        if isinstance(cfg, int):
            return self._calls < cfg
        same_time = None if call.time is None else call.time == self._times.last
        if same_time is False:
            return False
        if known is not None and self._is_served(known, call):
            # the same prompt again is the next step, unless another graph computes it at the same time: layers skipped
            return bool(same_time) and self._seen[known][call.frame] != call.graph and self._is_of_same_size(call)
        if len(self._seen) >= MAX_BRANCHES:
            if matches(self._moving, call.moving):
                self._trust_latents = False  # what was taken for the latents does not change from step to step
            return False
        if self._trust_latents and self._moving and matches(self._moving, call.moving):
            return True
        if self._timestep is not None and call.timestep is not None and self._timestep.is_same(call.timestep):
            return True
        names = {self._branches[branch].context for branch in self._seen}
        if call.context is not None and call.context in names and not self._is_of_same_size(call):
            return False  # a name said again for other latents: stages of a pyramid may meet at one time
        if call.context is not None and call.context not in names and names != {None}:
            if None in names:
                return False  # that was this name, said before anybody listened
            return call.time is not None or known is None or known >= max(self._seen)
        if known is not None:
            # the prompt of a branch that this step has not had yet; branches are called in the order of their numbers
            return call.time is not None or known >= max(self._seen)
        return bool(same_time and call.conditioning)

    def _is_new_generation(
        self, call: Call, known: int | None, reshaped: bool, num_steps: int | None
    ) -> tuple[bool, bool]:
        if self.step < 0:
            return True, True
        if num_steps is not None and self.step + 1 >= num_steps:
            return True, True
        if call.time is not None:
            return self._jumped(call.time), True
        prompt_changed = any(facts.stable for facts in self._branches.values()) and not any(
            facts.has_prompt_of(call) for facts in self._branches.values()
        )
        if call.timestep is None:
            return prompt_changed or (reshaped and known is None), True
        return False, known is not None and bool(call.conditioning)

    def _jumped(self, time: float) -> bool:
        """Whether ``time`` cannot follow the timesteps so far: back at the start, or against their direction."""
        first, last = self._times.first, self._times.last
        if first is None or last is None:
            return False
        if time == first:
            return True
        return self.direction != 0 and (time - last) * self.direction < 0

    def _observe(self, time: float) -> None:
        times = self._times
        if times.last is not None and time != times.last:
            times.moves += 1
            if times.moves == 1 and self.direction == 0:
                self.direction = 1 if time > times.last else -1
        times.first = time if times.first is None else times.first
        times.last = time

    def end(self) -> None:
        """The generation is over: the next call begins another, whatever its time."""
        if self._times.moves < 2:
            self.direction = 0  # one move proves nothing: it may have been two runs of one step each
        self.step = -1
        self.points = []
        self._times = _Times()
        self._branches.clear()
        self._seen, self._seen_before = {}, {}

    def _turn_page(self) -> tuple[tuple[int, int], ...]:
        """Begins a step: which graphs and branches has the last one done without, that the one before it had?"""
        last, before = self._seen, self._seen_before
        self._seen_before, self._seen, self._calls = last, {}, 0
        return tuple((frame, branch) for branch in before for frame in before[branch].keys() - last.get(branch, {}))

    def _branch(self, call: Call, known: int | None, cfg: str | int) -> int:
        if isinstance(cfg, int):
            return self._calls
        if cfg == "none":
            return 0
        if known is not None and not self._is_served(known, call):
            return known
        free = (b for b in range(len(self._seen | self._branches) + 1) if b not in self._seen)
        return next(b for b in free if b not in self._branches or self._branches[b].context == call.context)

    def _remember(self, call: Call, branch: int) -> int | None:
        """Returns what ``Position`` calls ``settled``."""
        settled = None
        holder = self._branches.get(branch)
        if holder is not None and holder.has_prompt_of(call):
            holder.stable = bool(call.conditioning)
            if holder.stable and holder.since < self.step:
                settled = holder.since if holder.took_over else None
                holder.took_over = False
                self._lasting.add((call.frame, branch))
        else:
            if holder is not None and holder.took_over:
                self._lasting.discard((call.frame, branch))  # twice in a row: new tensors at every step
            prompt = fingerprint(call.conditioning)
            self._branches[branch] = _Branch(prompt, False, call.context, self.step, holder is not None)
        self._seen.setdefault(branch, {})[call.frame] = call.graph
        self._moving = fingerprint(call.moving)
        self._timestep = TensorId(call.timestep) if call.timestep is not None else None
        self._shape = _shape(call)
        self._calls += 1
        return settled


def _shape(call: Call) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    """Of the latents."""
    return tuple((tensor.shape, tensor.dtype) for tensor in call.moving)
