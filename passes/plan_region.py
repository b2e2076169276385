"""Decides what can be skipped: where the region starts and stops, and what happens to every value that leaves it.

Input:   block 0 | block 1 ... block N-1 | head          (F = 1, B = 0)
Output:  front   | region                | tail          with, for every value that leaves the region,
         a forecast (it depends on a stream) or a place in front (it does not: a slice of the time embedding, say)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torch.fx import Graph, GraphModule, Node

from .clock_inputs import find_clock_inputs
from .entry_base import EntryBase
from .facts import (
    external_inputs,
    external_outputs,
    is_float_tensor,
    is_static_input,
    is_tensor,
    numel_hint,
    positions,
    same_shape,
)
from .find_blocks import MIN_BLOCKS, main_output
from .plan import Block, Exit, Refusal, Region, RegionPlan
from .pull_slices import pull_slices
from .taps import with_tap
from .trace_stream import leaves
from .wiring import twin_by_wiring


def plan_region(
    gm: GraphModule, chain: tuple[Block, ...], *, front: int, back: int, scope: str, tap: str = "residual"
) -> RegionPlan:
    """Plans one region for the whole chain (``scope="chain"``), one for each list of blocks (``"container"``), two
    (``"halves"``), or one for each block between the first ``front`` and the last ``back`` (``"block"``). ``tap`` is
    what the guard measures (see ``taps``).

    ``front`` and ``back`` are the numbers of first and last blocks that always run; they are lowered, with a note,
    where a list is too short to leave a block to skip.

    Raises:
        Refusal: skipping would change what a later step or the caller sees.
    """
    notes: list[str] = []
    groups = _groups(chain, front, back, scope, notes)
    mains = _main_stream_at_exits(gm.graph, groups)
    flow = set[Node]().union(*(_streams_of(gm.graph, run[0]) for run in _by_run(chain)))
    regions = []
    for number, (group, main) in enumerate(zip(groups, mains, strict=True)):
        f, b = (0, 0) if scope == "block" else _clamp(front, back, group, notes)
        following = groups[number + 1] if number + 1 < len(groups) else ()
        pull = not following or (f > 0 and not _reads_from(gm.graph, following[0], group))
        regions.append(_plan_one(gm.graph, f"region_{number}", group, f, b, main, flow, pull))
    bases = [exit.base for region in regions for exit in region.exits if exit.base is not None]
    place = positions(gm.graph)
    first = place[chain[0].nodes[0]]
    begin = [leaf for base in bases for leaf in leaves(base, lambda node: place[node] < first)]
    entry = regions[0].probe_entry
    if entry is None:  # the first blocks rearrange the stream, or there are none
        reached = leaves(regions[0].probe_value, lambda node: place[node] < first)
        entry = max((node for node in reached if not is_static_input(node)), key=numel_hint, default=None)
    clock = find_clock_inputs(gm.graph, entry, begin)
    regions = [with_tap(region, tap, gm.graph, clock) for region in regions]
    return RegionPlan(chain, tuple(regions), clock, tuple(notes))


def _groups(
    chain: tuple[Block, ...], front: int, back: int, scope: str, notes: list[str]
) -> Sequence[tuple[Block, ...]]:
    """The blocks of each region, with those that always run where a region has such of its own.

    A list that runs several times in one call of the model is a chain of its own each time.
    """
    runs = _by_run(chain)
    if len(runs) > 1:
        return [group for run in runs for group in _groups(run, front, back, scope, notes)]
    if scope == "container":
        return _by_container(chain, notes)
    if scope == "halves":
        return _halves(chain)
    if scope == "block":
        f, b = _clamp(front, back, chain, notes)
        return [(block,) for block in chain[f : len(chain) - b]]
    return [chain]


def _by_run(chain: tuple[Block, ...]) -> list[tuple[Block, ...]]:
    """The blocks of each run of the lists; one chain where a run is too short to be one."""
    runs = [tuple(blocks) for _, blocks in itertools.groupby(chain, key=lambda block: block.turn)]
    return runs if all(len(run) >= MIN_BLOCKS for run in runs) else [chain]


def _halves(chain: tuple[Block, ...]) -> list[tuple[Block, ...]]:
    middle = len(chain) // 2
    return [chain[:middle], chain[middle:]] if middle >= 2 else [chain]


def _by_container(chain: tuple[Block, ...], notes: list[str]) -> list[tuple[Block, ...]]:
    groups = [tuple(blocks) for _, blocks in itertools.groupby(chain, key=lambda block: (block.path, block.container))]
    if all(len(group) >= 2 for group in groups):
        return groups
    notes.append("the lists of blocks alternate or hold a single block: scope=container is planned as scope=chain")
    return [chain]


def _clamp(front: int, back: int, group: tuple[Block, ...], notes: list[str]) -> tuple[int, int]:
    f = min(front, max(len(group) - 1 - back, 1))
    b = min(back, len(group) - 1 - f)
    if (f, b) != (front, back):
        notes.append(
            f"F{front} B{back} leaves nothing to skip among the {len(group)} blocks from {group[0].name} to "
            f"{group[-1].name}: using F{f} B{b}. Set fn and bn (DIT_CACHE_FN, DIT_CACHE_BN) to a sum below {len(group)}"
        )
    return f, b


def _main_stream_at_exits(graph: Graph, groups: Sequence[tuple[Block, ...]]) -> list[Node]:
    """The main stream (the one that becomes the model's output) where it leaves each group of blocks."""
    place = positions(graph)
    mains: list[Node] = []
    value = main_output(groups[-1][-1].nodes)
    for group in reversed(groups):
        inside = set(itertools.chain.from_iterable(block.nodes for block in group))
        if value not in inside:
            reached = leaves(value, inside.__contains__) if value is not None else []
            value = max(reached, key=numel_hint, default=main_output(group[-1].nodes))
        if value is None:
            raise Refusal(f"{group[-1].name} returns no floating point tensor that the rest of the graph reads")
        mains.append(value)
        start = place[group[0].nodes[0]]
        reached = [node for node in leaves(value, lambda n, s=start: place[n] < s) if not is_static_input(node)]  # type: ignore[misc]
        value = max(reached, key=numel_hint, default=None)
    return mains[::-1]


def _plan_one(
    graph: Graph,
    name: str,
    group: tuple[Block, ...],
    front: int,
    back: int,
    main: Node,
    flow: set[Node],
    pull: bool,
) -> Region:
    """``pull``: slices behind the region may be taken into it. Where another region follows, its guard reads the whole
    stream."""
    place = positions(graph)
    order = list(graph.nodes)
    first, start = place[group[0].nodes[0]], place[group[front].nodes[0]]
    stop = place[group[len(group) - back].nodes[0]] if back else place[group[-1].nodes[-1]] + 1
    inside = [node for node in order[start:stop] if node.op not in ("placeholder", "get_attr")]
    leaving = [node for node in inside if any(place[user] >= stop for user in node.users)]

    carried = [node for node in order[first:start] if any(start <= place[user] for user in node.users)]
    roots = _stream_roots(order, group[0], [main, *carried, *leaving], place, first)
    if not roots and not carried:  # no residual path leads into the first block: it begins with a projection
        roots = {node for node in external_inputs(group[0].nodes) if node in flow and is_float_tensor(node)}
    streams = _depends_on(order, roots or carried)
    pulled = frozenset[Node]()
    if pull:
        leaving, pulled = pull_slices(leaving, streams, place, stop)
    main_exit = _main_exit(main, leaving, place, start)

    entry = {node for node in order[:start] if node in streams and is_float_tensor(node)}
    bases = EntryBase(graph, entry, place, order[start])
    exits, hoisted = [], set[Node]()
    for node in leaving:
        if node not in streams:
            hoisted |= _computation_of(node, place, start)
        elif not is_float_tensor(node):
            raise Refusal(
                f"{node.name}, which {group[0].name} to {group[-1].name} compute and the rest of the graph reads, is "
                "no floating point tensor and depends on the residual stream: it cannot be forecast"
            )
        else:
            inputs = order[first:start] if front else roots
            entering = [n for n in inputs if n in streams and any(place[u] >= start for u in n.users)]
            base = _twin(node, entering, group, place, start) or bases.of(node)
            exits.append(Exit(node, base, joined=base in bases.made))
    if not exits:
        raise Refusal(f"nothing that {group[front].name} to {group[-1].name} compute is read after them")

    probe_value = next((exit.base for exit in exits if exit.node is main_exit and exit.base in entry), None)
    if probe_value is None:
        reached = leaves(main_exit, lambda node: place[node] < start) if main_exit is not None else []
        candidates = [node for node in reached if node in entry] or [n for n in carried or roots if n in entry]
        if not candidates:
            raise Refusal(f"no residual stream enters {group[front].name}: there is nothing for the guard to compare")
        probe_value = max(candidates, key=lambda node: (numel_hint(node), place[node]))
    before = [node for node in order[:first] if is_tensor(node) and not is_static_input(node)]
    before = [node for node in before if node in roots] or before  # not a control sample that is added behind block 0
    return Region(
        name=name,
        front=front,
        back=back,
        blocks=group,
        start=start + len(bases.made),
        stop=stop + len(bases.made),
        exits=tuple(exits),
        hoisted=frozenset(hoisted),
        pulled=pulled,
        probe_entry=_twin(probe_value, before, group, place, first) if front else None,
        probe_value=probe_value,
        main=next((i for i, exit in enumerate(exits) if exit.node is main_exit), None),
    )


def _main_exit(main: Node, leaving: list[Node], place: dict[Node, int], start: int) -> Node | None:
    if main in leaving:
        return main
    candidates = set(leaving)
    sliced = [node for node in leaving if main in node.all_input_nodes]
    reached = leaves(main, lambda node: node in candidates or place[node] < start)
    return max(sliced, key=numel_hint, default=next((node for node in reached if node in candidates), None))


def _stream_roots(
    order: list[Node], first_block: Block, values: Iterable[Node], place: dict[Node, int], first: int
) -> set[Node]:
    """The streams where the first block takes them: what the residual paths of ``values`` start from."""
    reads = {source for node in first_block.nodes for source in node.all_input_nodes}
    found: set[Node] = set()
    for value in values:
        found |= {n for n in leaves(value, lambda node: place[node] < first) if not is_static_input(n)}
    return {node for node in found if node in reads} or found


def _streams_of(graph: Graph, block: Block) -> set[Node]:
    """Everything that is computed from the streams that enter ``block``, the first of a chain.

    Where no residual path leads through the block (post-norm), from what leaves it.
    """
    place, order = positions(graph), list(graph.nodes)
    roots = _stream_roots(order, block, external_outputs(block.nodes), place, place[block.nodes[0]])
    main = main_output(block.nodes)
    return _depends_on(order, roots or ({main} if main is not None else ()))


def _reads_from(graph: Graph, block: Block, group: tuple[Block, ...]) -> bool:
    """Whether ``block`` reads what the blocks of ``group`` compute, directly or not."""
    made = _depends_on(list(graph.nodes), itertools.chain.from_iterable(each.nodes for each in group))
    return any(node in made for node in external_inputs(block.nodes))


def _depends_on(order: list[Node], roots: Iterable[Node]) -> set[Node]:
    """``roots`` and everything computed from them."""
    tainted = set(roots)
    for node in order:
        if any(source in tainted for source in node.all_input_nodes):
            tainted.add(node)
    return tainted


def _computation_of(node: Node, place: dict[Node, int], start: int) -> set[Node]:
    """``node`` and everything inside the region that it is computed from."""
    found: set[Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        if current in found or place[current] < start or current.op in ("placeholder", "get_attr"):
            continue
        found.add(current)
        todo.extend(current.all_input_nodes)
    return found


def _twin(
    value: Node, candidates: list[Node], group: tuple[Block, ...], place: dict[Node, int], start: int
) -> Node | None:
    """The same stream before position ``start``: by its residual path, else by the wiring of equal blocks."""
    allowed = {node for node in candidates if same_shape(node, value)}
    reached = [node for node in leaves(value, lambda node: place[node] < start) if node in allowed]
    if len(reached) == 1:
        return reached[0]
    wired = twin_by_wiring(value, group, place, start)
    if wired is not None and wired in allowed:
        return wired
    return None
