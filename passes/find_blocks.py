"""Finds the chain of repeated transformer blocks.

Input:   embed -> blocks.0 -> blocks.1 -> ... -> single_blocks.0 -> ... -> head
Output:  (Block blocks.0, Block blocks.1, ..., Block single_blocks.0, ...)

Names come from the module stack that Dynamo leaves on each node; which blocks belong together is decided by dataflow:
a chain is what one residual stream runs through. A list that runs several times in one call of the model (shared
weights, guidance inside the model) gives blocks for every run. Where there is no module stack, ``find_period`` looks
at structure alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from torch.fx import GraphModule, Node

from .facts import external_inputs, external_outputs, is_float_tensor, module_stack, numel_hint, positions
from .find_period import find_period
from .plan import Block, NoChain
from .trace_stream import leaves

MIN_BLOCKS = 3
MIN_NODES = 4  # fewer operations are a layer, not a block


def find_blocks(gm: GraphModule) -> tuple[Block, ...]:
    """Returns the blocks of the main chain of ``gm`` in execution order, and those of further runs of its lists.

    Raises:
        NoChain: no residual stream runs through at least three blocks.
    """
    runs = _runs_by_module(gm)
    chain = _with_further_runs(gm, _chains(gm, runs))
    if not _repeats(chain):
        chain = find_period(gm)
    if len(chain) < MIN_BLOCKS:
        lists = tuple(sorted({run.container for run in runs}))
        found = f"no chain of at least {MIN_BLOCKS} repeated blocks was found"
        raise NoChain(f"{found} (lists of modules seen: {', '.join(lists) or 'none'})", lists)
    return chain


def _repeats(chain: tuple[Block, ...]) -> bool:
    """Whether ``chain`` is one of repeated blocks, not of unlike layers that follow each other (an MLP in a list)."""
    count = Counter(block.kind for block in chain if len(block.nodes) >= MIN_NODES)
    return sum(number for number in count.values() if number > 1) >= MIN_BLOCKS


def _block_keys(gm: GraphModule) -> dict[Node, tuple[tuple[str, ...], int, str]]:
    """For each node inside a list of modules: (path of the list, index, class of the element), outermost list first."""
    levels: dict[Node, list[tuple[tuple[str, ...], int, str]]] = {}
    indices: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for node in gm.graph.nodes:
        found = [(path[:-1], int(path[-1]), cls) for path, cls in module_stack(node) if path and path[-1].isdigit()]
        if found and node.op in ("call_function", "call_method"):
            levels[node] = found
            for path, index, _ in found:
                indices[path].add(index)
    keys = {}
    for node, found in levels.items():
        repeated = [key for key in found if len(indices[key[0]]) > 1]
        if repeated:
            keys[node] = repeated[0]
    return keys


Key = tuple[tuple[str, ...], int, str]


def _stretches(gm: GraphModule) -> list[tuple[Key, list[Node]]]:
    """Consecutive nodes of one list element, in graph order."""
    keys = _block_keys(gm)
    stretches: list[tuple[Key, list[Node]]] = []
    between: list[Node] = []
    for node in gm.graph.nodes:
        key = keys.get(node)
        if key is None:
            between.append(node)
            continue
        if stretches and stretches[-1][0][:2] == key[:2]:
            stretches[-1][1].extend(between)  # nodes without an owner amid one block belong to it
            stretches[-1][1].append(node)
        else:
            stretches.append((key, [node]))
        between = []
    return [(key, [node for node in nodes if node.op not in ("placeholder", "get_attr")]) for key, nodes in stretches]


def _runs_by_module(gm: GraphModule) -> list[Block]:
    """One block for every run of a list element.

    The longest stretch of nodes is one, and so is every other that runs the same submodules: a part of the block that
    is called elsewhere is not the block.
    """
    stretches = _stretches(gm)
    longest: dict[tuple[tuple[str, ...], int], list[Node]] = {}
    for (path, index, _), nodes in stretches:
        if len(nodes) > len(longest.get((path, index), ())):
            longest[path, index] = nodes
    inner = {key: _submodules(nodes) for key, nodes in longest.items()}
    blocks = []
    turns: dict[tuple[str, ...], int] = defaultdict(int)
    seen: dict[tuple[str, ...], set[int]] = defaultdict(set)  # elements that the list has run in this turn
    for (path, index, kind), nodes in stretches:
        if nodes is not longest[path, index] and _submodules(nodes) != inner[path, index]:
            continue
        if index in seen[path]:
            turns[path] += 1
            seen[path].clear()
        seen[path].add(index)
        blocks.append(Block(container_name(path), index, kind, tuple(nodes), path, turns[path]))
    return blocks


def _submodules(nodes: list[Node]) -> set[tuple[str, ...]]:
    return {path for node in nodes for path, _ in module_stack(node)[-1:]}


def container_name(path: Iterable[str]) -> str:
    """``("L", "self", "net", "blocks")`` -> ``net.blocks``: without the local variable that holds the model."""
    parts = list(path)
    del parts[: 2 if parts[:1] in (["L"], ["G"]) else 0]
    while parts[:1] in (["_orig_mod"], ["__self__"]):  # the wrappers of torch.compile, and a bound method
        del parts[0]
    return ".".join(parts) or "blocks"


def _chains(gm: GraphModule, runs: list[Block]) -> list[tuple[Block, ...]]:
    """The main stream walked backwards from the last block of every run of every list, most nodes first."""
    owner = {node: run for run in runs for node in run.nodes}
    last_of_run = {(run.path, run.turn): run for run in runs}
    chains = [_walk_back(gm, end, owner) for end in last_of_run.values()]
    return sorted(chains, key=lambda chain: sum(len(block.nodes) for block in chain), reverse=True)


def _with_further_runs(gm: GraphModule, chains: list[tuple[Block, ...]]) -> tuple[Block, ...]:
    """The longest chain, and others through the same lists beside it (one for each prompt, say), in graph order.

    A chain that begins before another has ended cannot be skipped by itself and is left out.
    """
    place = positions(gm.graph)
    chosen = chains[:1]
    for chain in chains[1:]:
        lists = {block.path for block in chosen[0]}
        apart = all(
            place[chain[-1].nodes[-1]] < place[other[0].nodes[0]]
            or place[other[-1].nodes[-1]] < place[chain[0].nodes[0]]
            for other in chosen
        )
        if apart and {block.path for block in chain} <= lists:
            chosen.append(chain)
    blocks = [block for chain in chosen for block in chain]
    return tuple(sorted(blocks, key=lambda block: place[block.nodes[0]]))


def main_output(nodes: Iterable[Node]) -> Node | None:
    """The largest float tensor that leaves ``nodes`` (of equal ones the first)."""
    candidates = [node for node in external_outputs(list(nodes)) if is_float_tensor(node)]
    return max(candidates, key=numel_hint, default=None)


def _walk_back(gm: GraphModule, end: Block, owner: dict[Node, Block]) -> tuple[Block, ...]:
    place = positions(gm.graph)
    chain = [end]
    value = main_output(end.nodes)
    while value is not None:
        block = chain[-1]
        start = place[block.nodes[0]]

        def elsewhere(node: Node, start: int = start) -> bool:
            return node in owner and place[node] < start

        reached = leaves(value, elsewhere)
        before = _predecessor(block, reached, leaves(value, elsewhere, main_only=True), owner)
        if before is None:
            break
        mine = [node for node in reached if owner[node] is before] or _read_from(before, block)
        value = max(mine, key=numel_hint, default=None)
        chain.append(before)
    return tuple(reversed(chain))


def _predecessor(block: Block, reached: list[Node], main: list[Node], owner: dict[Node, Block]) -> Block | None:
    """The block before ``block``: its neighbour in the same list if possible, else the only block that was reached.

    ``reached`` is where the whole stream comes from, ``main`` where its largest part does. Two lists that meet in one
    stream (image and text refiners that are concatenated) do not precede: the chain starts where they have met. Nor
    does what is no block, such as a projection of concatenated skips.
    """
    candidates = list(dict.fromkeys(owner[node] for node in reached))
    neighbour = next((run for run in candidates if _is_neighbour(run, block)), None)
    if neighbour is not None:
        return neighbour
    candidates = [run for run in candidates if _is_residual(run)]
    if len(candidates) == 1 and any(owner[node] is candidates[0] for node in main):
        return candidates[0]
    if not candidates:  # no residual path (post-norm, concatenated skips): neighbours that feed each other will do
        return next((run for run in set(owner.values()) if _is_neighbour(run, block) and _read_from(run, block)), None)
    return None


def _is_neighbour(run: Block, block: Block) -> bool:
    return (run.path, run.turn, run.index) == (block.path, block.turn, block.index - 1)


def _is_residual(run: Block) -> bool:
    """Whether a residual path leads through ``run``."""
    output = main_output(run.nodes)
    inside = set(run.nodes)
    return output is not None and bool(leaves(output, lambda node: node not in inside))


def _read_from(before: Block, block: Block) -> list[Node]:
    """Float tensors of ``before`` that ``block`` reads, directly or through nodes between the two."""
    produced = set(before.nodes)
    found: dict[Node, None] = {}
    todo = external_inputs(block.nodes)
    seen: set[Node] = set()
    while todo:
        node = todo.pop()
        if node in seen or node.op in ("placeholder", "get_attr"):
            continue
        seen.add(node)
        if node in produced:
            if is_float_tensor(node):
                found.setdefault(node)
        elif len(seen) < 64:
            todo.extend(node.all_input_nodes)
    return list(found)
