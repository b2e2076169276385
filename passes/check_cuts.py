"""Refuses cuts that would change results.

A piece that is compiled on its own must not write into what another piece has made, and a piece that is skipped must
have no effect besides the values that are forecast for it. What a piece does is read from ``effects``; sections that
Dynamo opens and closes by calls (autocast, no_grad, a collective and its wait) must lie in one piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from torch.fx import GraphModule, Node

from .effects import Effects
from .facts import storage
from .operators import target_name
from .outline import PieceCall
from .plan import PART, Part, Refusal

_CLOSING = {"_exit_autocast": "an autocast section", "wait_tensor": "a collective", "wait": "a collective"}


def check_sections(gm: GraphModule) -> None:
    """Checks that no section begins in one part of ``gm`` (``node.meta[PART]``) and ends in another.

    Raises:
        Refusal: names both ends.
    """
    modes: Counter[Part] = Counter()
    for node in gm.graph.nodes:
        part = node.meta.get(PART)
        if part is None:
            continue
        name = target_name(node)
        if name == "_set_grad_enabled":
            modes[part] += 1
        if name in _CLOSING:
            for opener in node.all_input_nodes:
                if opener.op == "call_function" and opener.meta.get(PART) is not part:
                    raise Refusal(f"{_CLOSING[name]} begins in {_where(opener)} and ends in {_where(node)}")
    odd = [part.name for part, count in modes.items() if count % 2]
    if odd:
        raise Refusal(f"a no_grad section begins in {odd[0]} and ends in another block")


def check_effects(calls: Iterable[PieceCall], effects: Mapping[str, Effects]) -> None:
    """Checks each call of a piece, in order of execution, against what the piece does.

    Raises:
        Refusal: names the operator and the block.
    """
    made: dict[Hashable, list[Node]] = {}  # memory -> values of other pieces that lie in it
    overlaps: dict[str, tuple[int, ...]] = {}
    for call in calls:
        does = effects[call.piece]
        if does.written and overlaps.setdefault(call.piece, _overlap(call)) != _overlap(call):
            raise Refusal(
                f"{_writers(does)} in {call.where} writes into inputs that share memory here, but not in other blocks"
            )
        if call.skippable or call.moved:
            _check_skippable(call, does)
        for number in does.written:
            _check_write(call, call.inputs[number], does, made)
        for node in call.outputs:
            where = storage(node)
            if where is not None:
                made.setdefault(where, []).append(node)


def _check_skippable(call: PieceCall, does: Effects) -> None:
    where = call.where
    if does.random is not None:
        raise Refusal(
            f"{does.random} in {where} draws random numbers, so skipping it would change the results of everything "
            "after it. Call model.eval() (dropout is off then) or set the dropout probability to 0"
        )
    if does.tokens:
        raise Refusal(f"{', '.join(does.tokens)} in {where} has an effect outside the graph and must run on every step")
    if call.moved and does.written:
        raise Refusal(
            f"{_writers(does)} in {where} writes into one of its inputs, and would have to run before the blocks "
            "that are skipped"
        )


def _check_write(call: PieceCall, target: Node, does: Effects, made: Mapping[Hashable, Sequence[Node]]) -> None:
    others = [node for node in (target, *made.get(storage(target), ())) if PART in node.meta]
    if not others and not call.skippable:
        return  # an input of the model, at every step
    name = others[0].name if others else target.name
    raise Refusal(
        f"{_writers(does)} in {call.where} writes into {name}, which was made outside that block. Write "
        "`x = x + y` instead of `x += y` (out of place) across blocks"
    )


def _overlap(call: PieceCall) -> tuple[int, ...]:
    """Which inputs share memory: for each the number of the first that lies in the same."""
    places: dict[object, int] = {}
    return tuple(places.setdefault(storage(node) or node, i) for i, node in enumerate(call.inputs))


def _writers(does: Effects) -> str:
    return " or ".join(does.writers[:3]) or "an operation"


def _where(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values()))), "the forward method of the model")
