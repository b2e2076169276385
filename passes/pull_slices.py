"""Takes slices that follow a region into it, so that only what is read has to be stored and forecast.

before:  region -> [text, image] | image = slice([text, image]) -> head        (both parts leave the region)
after:   region -> [text, image] -> image | head                              (the image part leaves)
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from .facts import fake, is_item_of_tuple, is_tensor, numel_hint
from .operators import SLICES


def pull_slices(
    leaving: Iterable[Node], streams: set[Node], place: dict[Node, int], stop: int
) -> tuple[list[Node], frozenset[Node]]:
    """Replaces those of the ``streams`` in ``leaving`` that are only sliced behind ``stop`` by their slices.

    Returns what leaves the region then, in the order of the graph, and the nodes that were taken into it.
    """
    result: list[Node] = []
    pulled: set[Node] = set()
    for node in leaving:
        slices, ends = _slices_of(node, place, stop) if node in streams else (set[Node](), [])
        if ends and sum(map(numel_hint, ends)) <= numel_hint(node):
            pulled |= slices
            result += ends
        else:
            result.append(node)
    return sorted(result, key=place.__getitem__), frozenset(pulled)


def _slices_of(node: Node, place: dict[Node, int], stop: int) -> tuple[set[Node], list[Node]]:
    """(slices, those of them that others read) if everybody behind ``stop`` only slices ``node``, else nothing."""
    slices: set[Node] = set()
    ends: list[Node] = []
    users = [user for user in node.users if place[user] >= stop]
    while users:
        user = users.pop()
        if user in slices:
            continue
        ready = all(source is node or source in slices or place[source] < stop for source in user.all_input_nodes)
        if user.target not in SLICES or not ready:
            return set(), []
        slices.add(user)
        if is_tensor(user):
            if fake(user).ndim != fake(node).ndim:
                return set(), []
            ends.append(user)
        elif all(is_item_of_tuple(item) for item in user.users):
            users += list(user.users)
        else:
            return set(), []
    return slices, [end for end in ends if end.users]
