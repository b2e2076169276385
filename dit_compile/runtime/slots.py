"""The state of one region in one branch: a ring of snapshots, the last probe, counters."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.probe import probe
from ..kernels.weighted_sum import weighted_sum
from .budget import Share
from .finite import Check, FiniteChecks
from .host_read import HostRead
from .side_inputs import SideInputs
from .snapshot import Snapshot, Stored

JUMP = 4.0  # ordinary generations stay below it; see benchmarks/jumps.py


class Output(NamedTuple):
    """How one real output of the region lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Unseen(NamedTuple):
    """The probe's two sums at a step that was computed without asking for them."""

    sums: Check
    step: int


@dataclass(eq=False)
class Slots:
    """State of one (graph, region, branch).

    Snapshots are raw, oldest first, at most as many as the forecaster weighs; a new one is written into the memory of
    the oldest. ``outputs`` describe the region's real outputs, so that a forecast can take exactly their place.
    ``share`` is what the memory budget knows of all this.
    """

    key: tuple[object, ...] | None = None
    emptied: str = "no_snapshot"  # why there is no snapshot, where there is none
    probe: Tensor | None = None
    ring: list[Snapshot] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    side: SideInputs = field(default_factory=SideInputs)
    cached: int = 0
    run: int = 0
    memory: dict[str, float] = field(default_factory=dict)  # the policy's
    change: HostRead | None = None  # of the effect, at the last computed step
    bases: Check | None = None  # whether what a forecast was added to is finite, until that is known
    unseen: Unseen | None = None
    share: Share | None = None
    diffs: deque[float] = field(default_factory=lambda: deque(maxlen=4))  # last measured
    warm_from: int = 0  # the step at which the warm-up after a jump is over
    numbers: tuple[float, ...] | None = None  # Python numbers that the model was given with the last call

    def clear(self, why: str = "no_snapshot") -> None:
        """Frees the tensors; counters stay, for they belong to the generation. ``why`` will be the reason of the next
        step, which must be computed, unless there was nothing left to free."""
        self.emptied = why if self.ring else self.emptied
        self.key, self.probe = None, None
        self.ring.clear()
        self.outputs.clear()
        self.side.clear()
        self.memory.clear()
        self.change, self.bases, self.unseen, self.share = None, None, None, None

    def is_jump(self, diff: float) -> bool:
        """Whether ``diff``, the change since the last computed step, is out of family: as much as there was (1), or
        ``JUMP`` times what this branch has seen of late, or half of both. Then something happened that no step of a
        solver does: latents were replaced, a refining pass began.
        """
        usual = max(self.diffs, default=math.inf)
        self.diffs.append(diff)  # a jump, too: what follows may change as fast
        return diff >= 1 or diff > JUMP * usual or (diff >= 0.5 and diff > JUMP / 2 * usual)

    def store(
        self,
        step: int,
        capacity: int,
        values: Sequence[Tensor],
        bases: Sequence[Tensor | None],
        dtype: str = "model",
        checks: FiniteChecks | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Takes a snapshot of ``values - bases`` (``values`` where there is no base); ``dtype`` is ``snapshot_dtype``,
        ``checks`` will know whether it is finite.

        ``again``: the newest snapshot is of the same time and gives way, for two points of one time give no slope.
        Snapshots in other dtypes than the new one, of before a change of the setting, go.
        """
        if self.ring and not self.ring[-1].fits(values, dtype):
            self.ring.clear()
        del self.ring[: max(len(self.ring) - capacity, 0)]
        if again and self.ring:
            room = self.ring.pop().values
        elif len(self.ring) == capacity:
            room = self.ring.pop(0).values
        else:
            room = [Stored.room(value, dtype) for value in values]
        for stored, value, base in zip(room, values, bases, strict=True):
            stored.write(value, base)
        check = None if checks is None else checks.add([stored.total() for stored in room])
        self.ring.append(Snapshot(step, room, check))
        self.outputs = [Output(value.shape, value.stride(), value.dtype) for value in values]
        self.emptied = "no_snapshot"

    def watch_change(self) -> None:
        """Starts to read how much the two newest snapshots differ (all streams taken together)."""
        self.change = None
        if len(self.ring) >= 2:
            both = zip(self.ring[-2].values, self.ring[-1].values, self.outputs, strict=True)
            sums = [probe(new.read(out.dtype), None, old.read(out.dtype))[1] for old, new, out in both]
            self.change = HostRead(torch.stack(sums).sum(0))

    def room(self, rows: int | None = None) -> list[Tensor]:
        """Uninitialised tensors that lie in memory as the region's real outputs do, of ``rows`` rows where given."""
        shapes = [out.shape if rows is None else (rows, *out.shape[1:]) for out in self.outputs]
        return [
            stored.data.new_empty_strided(shape, out.stride, dtype=out.dtype)
            for stored, shape, out in zip(self.ring[-1].values, shapes, self.outputs, strict=True)
        ]

    def forecast(
        self,
        weights: Sequence[float],
        bases: Sequence[Tensor | None],
        outs: Sequence[Tensor] | None = None,
        only: int | None = None,
    ) -> Sequence[Tensor]:
        """``base + sum_j weights[j] * snapshot[j]`` for each value, written into ``outs`` where they are given;
        snapshots of weight zero are not read. With ``only``, all values but that one reuse the latest snapshot."""
        used = [(weight, snap.values) for weight, snap in zip(weights, self.ring, strict=True) if weight != 0.0]
        if not used:
            used = [(0.0, self.ring[-1].values)]
        latest = [(1.0, self.ring[-1].values)]
        outs = self.room() if outs is None else outs
        for i, (base, out) in enumerate(zip(bases, outs, strict=True)):
            terms = used if only is None or i == only else latest
            stored = [values[i] for _, values in terms]
            scales = [one.scale for one in stored if one.scale is not None]
            weighted_sum(base, [one.data for one in stored], [weight for weight, _ in terms], out, scales)
        return outs

    def unchecked(self) -> list[Check]:
        """What must be known to be finite before anything here is reused; asked once.

        The snapshots must. Of what the last forecast was added to, nothing is kept: it is not waited for.
        """
        checks = [snap.check for snap in self.ring if snap.check is not None]
        for snap in self.ring:
            snap.check = None
        if self.bases is not None and self.bases.checks.ready():
            checks.append(self.bases)
            self.bases = None
        return checks

    def forget_before(self, step: int) -> None:
        """Makes ``step`` step 0: what was stored before it goes."""
        self.drop_before(step)
        self.ring = [Snapshot(snap.step - step, snap.values, snap.check) for snap in self.ring]
        self.memory.clear()

    def drop_before(self, step: int) -> None:
        """Frees the snapshots of steps before ``step``, and everything where none is left."""
        self.ring = [snap for snap in self.ring if snap.step >= step]
        if not self.ring:
            self.clear()

    def nbytes(self) -> int:
        return sum(snap.nbytes() for snap in self.ring) + self.nbytes_besides_snapshots()

    def nbytes_besides_snapshots(self) -> int:
        probe_bytes = 0 if self.probe is None else self.probe.numel() * self.probe.element_size()
        return probe_bytes + self.side.nbytes()
