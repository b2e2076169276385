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

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .inputs import NOTHING, Call, Identity, mean_time
from .times import LateTime, Times
from .transfer import Outbox

MAX_BRANCHES = 4  # calls of one step that are recognised without being announced by ``cfg``


class Position(NamedTuple):
    """Where a call stands.

    ``certain`` is False when only the timestep, not yet read, can exclude a new generation. ``left`` is known when a
    step begins, for only then is the one before it complete. Snapshots from before ``settled`` are another prompt's.
    """

    step: int
    branch: int
    new_generation: bool
    certain: bool
    changed: bool = False  # the branch had other prompt tensors at its last call
    new_prompt: bool = False  # and they were lasting ones: it is another prompt
    left: tuple[tuple[int, int], ...] = ()  # (frame, branch) of the step before last that the last step did without
    settled: int | None = None  # at this step another prompt took over, as is known only now
    restarts: tuple[int, ...] = ()  # steps that began a generation, as their times tell only now, one after the other
    waited: bool = False  # for the time


@dataclass
class _Branch:
    prompt: Identity = NOTHING
    stable: bool = False  # seen with the same conditioning at two steps
    context: str | None = None  # None also for the very first call: the name was said before anybody listened
    since: int = 0  # the step at which this conditioning was first seen
    took_over: bool = False  # from another, and has not come back yet: its tensors may be new ones at every step

    def has_prompt_of(self, call: Call) -> bool:
        named_alike = self.context == call.context or self.context is None or call.context is None
        return named_alike and self.prompt.key == call.prompt_id.key


@dataclass
class Clock:
    """Counts the steps of one module in one session."""

    step: int = -1
    times: Times = field(default_factory=Times)
    told: Callable[[], object] | None = None  # gives something while a pipeline is under way that says when it ends
    pending: deque[LateTime] = field(default_factory=deque)
    _branches: dict[int, _Branch] = field(default_factory=dict)
    _seen: dict[int, dict[int, int]] = field(default_factory=dict)  # branches of this step -> frame -> its graph
    _seen_before: dict[int, dict[int, int]] = field(default_factory=dict)  # of the last step
    moving: Identity = NOTHING  # the latents of the last call
    _timestep: Identity | None = None
    _shape: tuple[tuple[torch.Size, torch.dtype], ...] = ()
    _calls: int = 0
    _trust_latents: bool = True
    _lasting: set[tuple[int, int]] = field(default_factory=set)  # (frame, branch); kept over generations

    def place(
        self, call: Call, outbox: Outbox, *, cfg: str | int, num_steps: int | None, blind: bool = False
    ) -> Position:
        """Places ``call`` and remembers it. A time that is on a device travels in ``outbox``; where nothing else can
        place the call, the host waits for it, more often where reuse is ``blind`` (see tracks.state_of)."""
        restarts = self.settle(wait=False) if self.pending else []
        waited = call.time is None and self.needs_time(call, cfg=cfg, blind=blind)
        if waited:
            restarts += self.settle(wait=True)
            call.read_time(outbox)
        before = self.step
        position = self.tick(call, cfg=cfg, num_steps=num_steps)
        if call.time is None and call.timestep is not None:
            ticket = outbox.put([mean_time(call.timestep)])
            branch_call = position.step == before and not position.new_generation
            self.pending.append(LateTime(position.step, branch_call, position.certain, ticket))
        return position._replace(restarts=tuple(restarts), waited=waited) if restarts or waited else position

    def has_served(self, branch: int) -> bool:
        return branch in self._seen

    def is_first_time_again(self, call: Call) -> bool:
        """Whether ``call`` brings other latents for a prompt that the first step of this generation has had already, at
        the time of that step, or at a time that is not known yet."""
        if self.step != 0 or self.moving.key == call.moving_id.key or call.timestep is None is call.time:
            return False
        known = self._known_branch(call)
        if known is None or not self._is_served(known, call):
            return False
        return call.time is None or call.time == self.times.last

    def is_certain(self) -> bool:
        """Whether no time that is on its way can tell that a generation has begun."""
        return all(late.certain for late in self.pending)

    def settle(self, *, wait: bool) -> list[int]:
        """Takes in the times that have arrived (with ``wait``: all of them) and returns the steps that began a
        generation, each counted as those before it have left it: that step is step 0 now."""
        restarts = []
        while self.pending and (wait or self.pending[0].ticket.ready()):
            late = self.pending.popleft()
            if self.late_time(late.step, late.branch_call, late.ticket.values()[0]):
                restarts.append(late.step)
                for other in self.pending:
                    other.step -= late.step
        return restarts

    def tick(self, call: Call, *, cfg: str | int, num_steps: int | None) -> Position:
        """``place`` for a call whose time is known, or will be told by ``late_time``."""
        reshaped = self._is_reshaped(call)
        known = self._known_branch(call)
        same_step = self.step >= 0 and self._is_same_step(call, known, cfg)
        new_generation, certain = False, True
        left: tuple[tuple[int, int], ...] = ()
        if not same_step:
            new_generation, certain = self._is_new_generation(call, known, reshaped, num_steps)
            new_generation = self.times.begin_step(call.time, begins=new_generation)
            if new_generation:
                self._forget()
            self.step += 1
            left = self._turn_page()
            known = self._known_branch(call)
        branch = self._branch(call, known, cfg)
        holder = self._branches.get(branch)
        changed = holder is not None and bool(call.conditioning) and not holder.has_prompt_of(call)
        lasts = (call.frame, branch) in self._lasting
        new_prompt = changed and (holder.stable or lasts or holder.context != call.context)  # type: ignore[union-attr]
        settled = self._remember(call, branch)
        return Position(self.step, branch, new_generation, certain, changed, new_prompt, left, settled)

    def needs_time(self, call: Call, *, cfg: str | int, blind: bool = False) -> bool:
        """Whether nothing but the time, not yet known, can place ``call``: its shapes or its graph are others than
        those of the call before, and neither its prompt nor its name is one that this step has yet to see. Or its
        prompt is not known at all, and prompts are not made anew at every step, or it matters more (``blind``)."""
        if cfg != "auto" or self.step < 0 or call.time is not None or call.timestep is None:
            return False
        known = self._known_branch(call)
        if known is not None:
            return self._is_served(known, call) and self._seen[known][call.frame] != call.graph
        if self._is_reshaped(call):
            return True
        if not call.conditioning or self.moving.key == call.moving_id.key or call.context is not None:
            return False
        return blind or not any(facts.took_over for facts in self._branches.values())

    def late_time(self, step: int, branch_call: bool, time: float) -> bool:
        """Takes in a timestep that arrived after its call was placed; True: ``step`` began a new generation.

        ``branch_call`` says that the call was placed as a further branch of a step because it had the same latents.
        """
        if branch_call:
            if self.times.last is not None and time != self.times.last:
                self._trust_latents = False  # the caller repeats one latents object over several steps
            return False
        jumped = self.times.late(step, time)
        if jumped:
            self.step -= step
            for facts in self._branches.values():
                facts.since -= step
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
        return self._shape != call.shape

    def _is_of_same_size(self, call: Call) -> bool:
        """Whether the latents have the shape of those before, apart from the batch."""
        return [shape[1:] for shape, _ in self._shape] == [shape[1:] for shape, _ in call.shape]

    def _is_same_step(self, call: Call, known: int | None, cfg: str | int) -> bool:
        if cfg == "none":
            return False
        if isinstance(cfg, int):
            return self._calls < cfg
        same_time = None if call.time is None else call.time == self.times.last
        if same_time is False:
            return False
        if known is not None and self._is_served(known, call):
            # the same prompt again is the next step, unless another graph computes it at the same time: layers skipped
            return bool(same_time) and self._seen[known][call.frame] != call.graph and self._is_of_same_size(call)
        if len(self._seen) >= MAX_BRANCHES:
            if self.moving.key == call.moving_id.key:
                self._trust_latents = False  # what was taken for the latents does not change from step to step
            return False
        if self._trust_latents and call.moving and self.moving.key == call.moving_id.key:
            return True
        if call.timestep_id is not None and self._timestep is not None and call.timestep_id.key == self._timestep.key:
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
        """What is known without the time, and whether that is certain."""
        if self.step < 0:
            return True, True
        if num_steps is not None and self.step + 1 >= num_steps:
            return True, True
        if call.time is not None:
            return False, True
        prompt_changed = any(facts.stable for facts in self._branches.values()) and not any(
            facts.has_prompt_of(call) for facts in self._branches.values()
        )
        if call.timestep is None:
            return prompt_changed or (reshaped and known is None), True
        ends_elsewhere = num_steps is not None or (self.told is not None and self.told() is not None)
        return False, ends_elsewhere and known is not None and bool(call.conditioning)

    def end(self) -> None:
        """The generation is over: the next call begins another, whatever its time."""
        self.times.end()
        self._forget()

    def _forget(self) -> None:
        self.step = -1
        self.pending.clear()
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
            self._branches[branch] = _Branch(call.prompt_id, False, call.context, self.step, holder is not None)
        self._seen.setdefault(branch, {})[call.frame] = call.graph
        self.moving, self._timestep, self._shape = call.moving_id, call.timestep_id, call.shape
        self._calls += 1
        return settled
