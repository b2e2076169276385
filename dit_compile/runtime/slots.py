"""The state of one region in one branch: a ring of snapshots, the last probe, counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.probe import probe
from ..kernels.store import store_residual
from ..kernels.weighted_sum import weighted_sum
from .finite import Check, FiniteChecks
from .host_read import HostRead
from .side_inputs import SideInputs


@dataclass
class Snapshot:
    """What the region did at one computed step: for each value that leaves it the residual, or the value itself."""

    step: int
    tensors: list[Tensor]
    check: Check | None = None  # whether they are finite, until that is known


@dataclass
class Slots:
    """State of one (graph, region, branch).

    Snapshots are raw and in the model's dtype, oldest first, at most as many as the forecaster weighs; a new one is
    written into the memory of the oldest. ``layouts`` are size and stride of the region's real outputs, so that a
    forecast can take exactly their place.
    """

    key: tuple[object, ...] | None = None
    emptied: str = "no_snapshot"  # why there is no snapshot, where there is none
    probe: Tensor | None = None
    ring: list[Snapshot] = field(default_factory=list)
    layouts: list[tuple[torch.Size, tuple[int, ...]]] = field(default_factory=list)
    side: SideInputs = field(default_factory=SideInputs)
    cached: int = 0
    run: int = 0
    memory: dict[str, float] = field(default_factory=dict)  # the policy's
    change: HostRead | None = None  # of the effect, at the last computed step
    bases: Check | None = None  # whether what a forecast was added to is finite, until that is known

    def clear(self, why: str = "no_snapshot") -> None:
        """Frees the tensors; counters stay, for they belong to the generation. ``why`` will be the reason of the next
        step, which must be computed."""
        self.key, self.probe, self.emptied = None, None, why
        self.ring.clear()
        self.layouts.clear()
        self.side.clear()
        self.memory.clear()
        self.change, self.bases = None, None

    def store(
        self,
        step: int,
        capacity: int,
        values: Sequence[Tensor],
        bases: Sequence[Tensor | None],
        checks: FiniteChecks,
    ) -> None:
        """Takes a snapshot of ``values - bases`` (``values`` where there is no base) and has it checked."""
        del self.ring[: max(len(self.ring) - capacity, 0)]
        if len(self.ring) == capacity:
            tensors = self.ring.pop(0).tensors
        else:
            tensors = [torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in values]
        for slot, value, base in zip(tensors, values, bases, strict=True):
            store_residual(slot, value, base)
        self.ring.append(Snapshot(step, tensors, checks.add(tensors)))
        self.layouts = [(value.shape, value.stride()) for value in values]
        self.emptied = "no_snapshot"

    def watch_change(self) -> None:
        """Starts to read how much the two newest snapshots differ (all streams taken together)."""
        self.change = None
        if len(self.ring) >= 2:
            pairs = zip(self.ring[-1].tensors, self.ring[-2].tensors, strict=True)
            self.change = HostRead(torch.stack([probe(new, None, old)[1] for new, old in pairs]).sum(0))

    def room(self, rows: int | None = None) -> list[Tensor]:
        """Uninitialised tensors that lie in memory as the region's real outputs do, of ``rows`` rows where given."""
        return [
            tensor.new_empty_strided(shape if rows is None else (rows, *shape[1:]), stride)
            for tensor, (shape, stride) in zip(self.ring[-1].tensors, self.layouts, strict=True)
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
        used = [(weight, snap.tensors) for weight, snap in zip(weights, self.ring, strict=True) if weight != 0.0]
        if not used:
            used = [(0.0, self.ring[-1].tensors)]
        latest = [(1.0, self.ring[-1].tensors)]
        outs = self.room() if outs is None else outs
        for i, (base, out) in enumerate(zip(bases, outs, strict=True)):
            terms = used if only is None or i == only else latest
            weighted_sum(base, [tensors[i] for _, tensors in terms], [weight for weight, _ in terms], out=out)
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
        self.ring = [Snapshot(snap.step - step, snap.tensors, snap.check) for snap in self.ring if snap.step >= step]
        self.memory.clear()
        if not self.ring:
            self.clear()

    def nbytes(self) -> int:
        tensors = [tensor for snap in self.ring for tensor in snap.tensors]
        if self.probe is not None:
            tensors.append(self.probe)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + self.side.nbytes()
