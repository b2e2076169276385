"""How far a step has come on the way of the probe, for forecasters that follow it (``Forecaster.follows_probe``).

Each snapshot keeps the probe of its step and the sum of its distance from the probe before, which was sent when the
step was computed. A step that measures the probe anyway also measures its distance from the older of the latest two
probes: two more numbers of the transfer that it waits for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..kernels.probe import probe as distance
from .slots import Slots, Snapshot
from .transfer import Outbox, Ticket


class Way(NamedTuple):
    """The sums of the probe between ``older``, the second latest snapshot, and the step that asks."""

    older: Snapshot
    sums: Ticket


def keep_probe(slots: Slots, probe: Tensor | None, outbox: Outbox) -> None:
    """``probe`` is that of the newest snapshot (None: its step has measured none)."""
    newest = slots.ring[-1]
    newest.probe, newest.moved = probe, None
    before = slots.ring[-2].probe if len(slots.ring) > 1 else None
    if probe is not None and before is not None and before.shape == probe.shape:
        newest.moved = outbox.put([distance(probe, None, before)[1]])


def measure_way(slots: Slots, probe: Tensor, outbox: Outbox) -> Way | None:
    """Puts the distance of ``probe``, that of this step, into ``outbox``; None where there is nothing to compare it
    with."""
    if len(slots.ring) < 2 or slots.ring[-1].moved is None:
        return None
    older = slots.ring[-2]
    if older.probe is None or older.probe.shape != probe.shape:
        return None
    return Way(older, outbox.put([distance(probe, None, older.probe)[1]]))


def moment(slots: Slots, way: Way, steps: Sequence[int], now: int) -> float:
    """``now`` as the probe has moved (the formula of ``Forecaster``); ``now`` itself, the number of the step, where the
    snapshots have changed since or nothing has moved. ``steps`` are those of the snapshots."""
    if len(slots.ring) < 2 or slots.ring[-2] is not way.older or slots.ring[-1].moved is None:
        return now
    far, whole = way.sums.values()[0], slots.ring[-1].moved.values()[0]
    share = far / whole if whole else math.inf
    return steps[-2] + (steps[-1] - steps[-2]) * share if math.isfinite(share) else now
