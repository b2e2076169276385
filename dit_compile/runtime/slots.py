"""What one region keeps of one branch: a ring of snapshots, the last probe, counters.

A snapshot is what the region did at one computed step, stored in the model's dtype or in fewer bits
(``snapshot_dtype``). Snapshots leave in two ways: a new one takes the place of the oldest (``Slots.store``), or
something has made them useless (``Slots.drop``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.probe import probe
from ..kernels.storage import FLOAT8, narrower
from ..kernels.store import store_flagged, store_scaled
from ..kernels.weighted_sum import weighted_sum
from .budget import Share
from .inputs import Call
from .measured import Measurements
from .side_inputs import SideInputs
from .transfer import Outbox, Ticket

JUMP = 4.0  # ordinary generations stay below it; see benchmarks/jumps.py
_DTYPES = {"bfloat16": torch.bfloat16, "float8": FLOAT8}


def stored_dtype(dtype: torch.dtype, setting: str) -> torch.dtype:
    """What a tensor of ``dtype`` is stored in: the setting's dtype where that takes fewer bits, else its own."""
    chosen = _DTYPES.get(setting, dtype)
    return chosen if narrower(chosen, dtype) else dtype


def snapshot_bytes(values: Sequence[Tensor], setting: str) -> int:
    """Bytes that a snapshot of ``values`` takes, scales included."""
    return sum(stored_bytes(value.numel(), value.dtype, setting) for value in values)


def stored_bytes(count: int, dtype: torch.dtype, setting: str) -> int:
    """The same for one tensor of ``count`` elements."""
    return count * stored_dtype(dtype, setting).itemsize + torch.float32.itemsize * _is_scaled(dtype, setting)


def probe_bytes(probe: Tensor | None) -> int:
    """Bytes of a probe, which is stored as it is."""
    return 0 if probe is None else probe.numel() * probe.element_size()


def _is_scaled(dtype: torch.dtype, setting: str) -> bool:
    return stored_dtype(dtype, setting) == FLOAT8 != dtype


@dataclass(frozen=True, eq=False)
class Stored:
    """One value of a snapshot: ``data``, to be multiplied by ``scale`` where there is one (kernels/storage.py).

    ``data`` is contiguous, ``scale`` a float32 tensor of shape () beside it, so that the host reads no number; where
    there is none, ``flag`` is one that tells whether all is finite (kernels/store.py).
    """

    data: Tensor
    scale: Tensor | None
    flag: Tensor

    @classmethod
    def room(cls, value: Tensor, setting: str) -> Stored:
        """Uninitialised memory for a tensor like ``value``."""
        data = torch.empty(value.shape, dtype=stored_dtype(value.dtype, setting), device=value.device)
        number = torch.zeros((), dtype=torch.float32, device=value.device)
        return cls(data, number if _is_scaled(value.dtype, setting) else None, number)

    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        """Stores ``value - base``. Returns a number, shape (), that is finite if all that is stored is."""
        if self.scale is None:
            return store_flagged(self.data, self.flag, value, base)
        store_scaled(self.data, self.scale, value, base)
        return self.scale

    def read(self, dtype: torch.dtype) -> Tensor:
        """The numbers in ``dtype``: a new tensor, unless they are stored so."""
        if self.scale is None:
            return self.data.to(dtype)
        return (self.data.to(torch.float32) * self.scale).to(dtype)

    def nbytes(self) -> int:
        tensors = [self.data] if self.scale is None else [self.data, self.scale]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Snapshot:
    """What the region did at one computed step: for each value that leaves it the residual, or the value itself."""

    step: int
    values: list[Stored]
    check: Ticket | None = None  # whether they are finite, until that is known
    probe: Tensor | None = None  # of that step, and how far it is from the one before (probe_distance.py)
    moved: Ticket | None = None

    def room(self) -> list[Stored]:
        """The memory of this snapshot, for the next one. Where nobody has asked whether this one is finite, its flags
        may be set."""
        if self.check is not None:
            for stored in self.values:
                stored.flag.zero_()
        return self.values

    def fits(self, values: Sequence[Tensor], setting: str) -> bool:
        """Whether ``values`` would be stored in these dtypes (their shapes are those of the ring)."""
        wanted = [stored_dtype(value.dtype, setting) for value in values]
        return [stored.data.dtype for stored in self.values] == wanted

    def nbytes(self) -> int:
        return sum(stored.nbytes() for stored in self.values) + probe_bytes(self.probe)


class Output(NamedTuple):
    """How one real output of the region lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Slots:
    """State of one (frame, region, branch, group of rows).

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
    change: Ticket | None = None  # of the effect, at the last computed step
    bases: Ticket | None = None  # whether what a forecast was added to is finite, until that is known
    measured: Measurements = field(default_factory=Measurements)
    share: Share | None = None
    diffs: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=4))  # last measured, over steps
    warm_from: int = 0  # the step at which the warm-up after a jump is over
    numbers: tuple[float, ...] | None = None  # Python numbers that the model was given with the last call

    def drop(self, why: str = "no_snapshot", before: int | None = None) -> None:
        """Frees the snapshots of steps before step ``before`` (None: all). With the last snapshot everything goes but
        the counters, which belong to the generation; the next step must then be computed, and ``why`` is its reason,
        unless there was nothing to free."""
        if before is not None:
            kept = [snapshot for snapshot in self.ring if snapshot.step >= before]
            if kept:
                self.ring = kept
                self.measured.drop(before)
                return
        self.emptied = why if self.ring else self.emptied
        self.key, self.probe = None, None
        self.ring = []
        self.outputs = []
        if self.side.known is not None:
            self.side.clear()
        self.memory.clear()
        self.measured.drop()
        self.change, self.bases, self.share = None, None, None

    def restart(self, start: int) -> None:
        """Step ``start`` turns out to be step 0 of a generation."""
        self.drop(before=start)
        for snapshot in self.ring:
            snapshot.step -= start
        self.measured.restart(start)
        self.memory.clear()
        self.cached, self.run = 0, 0
        self.warm_from = max(self.warm_from - start, 0)

    def end_history(self, step: int, warmup: int) -> None:
        """At a jump: the snapshots of before ``step`` would spoil every forecast after it. The next ``warmup`` steps
        are computed, as when a generation begins."""
        self.drop(before=step)
        self.warm_from = step + warmup

    def is_jump(self, diff: float, since: int = 1) -> bool:
        """Whether ``diff``, the change since the last computed step, ``since`` steps ago, is out of family: as much as
        there was (1), or ``JUMP`` times what this branch has seen of late, or half of both. Then something happened
        that no step of a solver does: latents were replaced, a refining pass began. Over more steps than before, more
        may have changed.
        """
        usual, longest = math.inf, since
        if self.diffs:
            usual, longest = max([known for known, _ in self.diffs]), max([steps for _, steps in self.diffs])
        usual *= max(since / longest, 1.0)
        self.diffs.append((diff, since))  # a jump, too: what follows may change as fast
        return diff >= 1 or diff > JUMP * usual or (diff >= 0.5 and diff > JUMP / 2 * usual)

    def store(
        self,
        step: int,
        capacity: int,
        values: Sequence[Tensor],
        bases: Sequence[Tensor | None],
        dtype: str = "model",
        outbox: Outbox | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Takes a snapshot of ``values - bases`` (``values`` where there is no base); ``dtype`` is ``snapshot_dtype``,
        ``outbox`` takes the question whether it is finite.

        ``again``: the newest snapshot is of the same time and gives way, for two points of one time give no slope.
        Snapshots in other dtypes than the new one, of before a change of the setting, go.
        """
        if self.ring and not self.ring[-1].fits(values, dtype):
            self.ring.clear()
        del self.ring[: max(len(self.ring) - capacity, 0)]
        if (again and self.ring) or len(self.ring) == capacity:
            room = self.ring.pop(-1 if again else 0).room()
        else:
            room = [Stored.room(value, dtype) for value in values]
        numbers = [stored.write(value, base) for stored, value, base in zip(room, values, bases, strict=True)]
        self.ring.append(Snapshot(step, room, None if outbox is None else outbox.put(numbers)))
        self.outputs = [Output(value.shape, value.stride(), value.dtype) for value in values]
        self.emptied = "no_snapshot"

    def watch_change(self, outbox: Outbox) -> None:
        """Puts into ``outbox`` how much the two newest snapshots differ (all streams taken together)."""
        self.change = None
        if len(self.ring) >= 2:
            both = zip(self.ring[-2].values, self.ring[-1].values, self.outputs, strict=True)
            sums = [probe(new.read(out.dtype), None, old.read(out.dtype))[1] for old, new, out in both]
            self.change = outbox.put([torch.stack(sums).sum(0)])

    def room(self, rows: int | None = None) -> list[Tensor]:
        """Uninitialised tensors that lie in memory as the region's real outputs do, of ``rows`` rows where given."""
        shapes = [out.shape if rows is None else (rows, *out.shape[1:]) for out in self.outputs]
        return [
            stored.data.new_empty_strided(shape, out.stride, dtype=out.dtype)
            for stored, shape, out in zip(self.ring[-1].values, shapes, self.outputs, strict=True)
        ]

    def forecast(
        self,
        weights: Sequence[Sequence[float]],
        bases: Sequence[Tensor | None],
        outs: Sequence[Tensor] | None = None,
    ) -> Sequence[Tensor]:
        """``base + sum_j weights[i][j] * snapshot[j]`` for each value i, written into ``outs`` where they are given;
        snapshots of weight zero are not read."""
        outs = self.room() if outs is None else outs
        for i, (base, out, mine) in enumerate(zip(bases, outs, weights, strict=True)):
            terms = [(weight, snap.values[i]) for weight, snap in zip(mine, self.ring, strict=True) if weight != 0.0]
            terms = terms or [(0.0, self.ring[-1].values[i])]
            scales = [one.scale for _, one in terms if one.scale is not None]
            weighted_sum(base, [one.data for _, one in terms], [weight for weight, _ in terms], out, scales)
        return outs

    def is_finite(self, *, wait: bool = True) -> tuple[bool, bool]:
        """Whether everything here may be reused, as far as that is known (``wait``: all of it), and whether the host
        waited for that; looked at once.

        Of what the last forecast was added to, nothing is kept: it is not waited for.
        """
        finite, waited = True, False
        for snapshot in self.ring:
            check = snapshot.check
            if check is not None and (wait or check.ready()):
                snapshot.check = None
                waited = waited or not check.ready()
                finite = finite and check.finite()
        if self.bases is not None and self.bases.ready():
            check, self.bases = self.bases, None
            finite = finite and check.finite()
        return finite, waited

    def unknown(self, call: Call) -> str | None:
        """Why what is on the host does not suffice for reuse, where it does not: a reason code."""
        if self.side.has_changed(call):
            return "input_changed"  # by how much?
        checks = [snapshot.check for snapshot in self.ring if snapshot.check is not None]
        arrived = self.change is None and all([check.ready() for check in checks])  # noqa: C419 - no generator
        return None if arrived else "not_arrived"

    def nbytes(self) -> int:
        return sum(snap.nbytes() for snap in self.ring) + self.nbytes_besides_snapshots()

    def nbytes_besides_snapshots(self) -> int:
        shared = bool(self.ring) and self.ring[-1].probe is self.probe
        return probe_bytes(None if shared else self.probe) + self.side.nbytes
