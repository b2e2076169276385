"""Flags beside stored values, as the Triton kernel sets them: one that was set is not read for a later snapshot."""

import math

import pytest
import torch

from dit_compile.runtime import slots as module
from dit_compile.runtime.slots import Slots
from dit_compile.runtime.transfer import Outbox


@pytest.fixture
def flagged(monkeypatch):
    def store(slot, flag, value, base):
        slot.copy_(value if base is None else value - base)
        if not slot.isfinite().all():
            flag.fill_(math.nan)
        return flag

    monkeypatch.setattr(module, "store_flagged", store)


def store(slots, step, value):
    outbox = Outbox()
    slots.store(step, 1, [value], [None], outbox=outbox)
    outbox.send()


def test_a_flag_that_nobody_read_is_taken_back_with_its_memory(flagged):
    slots, poisoned = Slots(), torch.full((3,), math.inf)
    store(slots, 0, torch.ones(3))
    memory = slots.ring[0].values[0]
    store(slots, 1, poisoned)
    assert slots.ring[0].values[0] is memory and memory.flag.isnan()
    store(slots, 2, torch.ones(3))
    assert slots.ring[0].values[0] is memory
    assert slots.is_finite() == (True, False)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_a_flag_tells_of_the_snapshot_that_it_is_beside(flagged, value):
    slots = Slots()
    for step in range(2):
        store(slots, step, torch.full((3,), 1.0 if step == 0 else value))
        assert slots.is_finite()[0] == (step == 0 or math.isfinite(value))
