"""What tells modules apart: the addresses of their weights, as long as these live."""

import gc

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compile.runtime import weights
from dit_compile.runtime.table import SideTable
from dit_compile.runtime.weights import reader


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_equal_addresses_stand_for_the_same_objects(data):
    objects = [object() for _ in range(data.draw(st.integers(1, 12)))]
    places = sorted(data.draw(st.sets(st.integers(0, len(objects) - 1))))
    read, args = reader(places), tuple(objects)
    others = tuple(data.draw(st.sampled_from([one, object()])) for one in objects)
    same = all(args[place] is others[place] for place in places)
    assert (read(args) == read(others)) == same
    assert len(read(args)) == 8 * len(places)


def test_without_cpythons_tuples_the_addresses_are_the_same(monkeypatch):
    args = tuple(object() for _ in range(6))
    fast = reader([0, 2, 3, 5])
    monkeypatch.setattr(weights, "_items_are_an_array", lambda: False)
    slow = reader([0, 2, 3, 5])
    assert fast(args) == slow(args) and fast is not slow


def test_an_address_that_is_used_again_is_another_module():
    table, read = SideTable(lambda stats: None), reader([0])

    def owner():
        mine = (torch.nn.Parameter(torch.zeros(1)),)
        epoch = table.epoch
        found = table.owner(read(mine), lambda: mine, 0)
        assert table.owner(read(mine), lambda: mine, 1) is found
        assert table.epoch is epoch
        return found, read(mine)

    seen = {}
    for _ in range(2000):
        epoch = table.epoch
        one, where = owner()
        gc.collect(0)
        assert table.epoch is not epoch  # so that what a graph remembers of its last call no longer counts
        assert not table.owners(None)
        if where in seen:
            assert seen[where] is not one
            return
        seen[where] = one
    raise AssertionError("no address came back: the test shows nothing")
