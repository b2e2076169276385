"""Finds the graph inputs by which steps, branches and generations are told apart at run time."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from ..compat import python_numbers
from .facts import fake, is_static_input, numel_hint
from .numbers import NUMBER
from .operators import CONCATENATIONS, WAVES
from .plan import ClockInputs

_WHOLE_TIME_NAME = re.compile(r"(timesteps?|sigmas?|t|time)$")  # of a Python number: p_t may count frames
_TIME_NAME = re.compile(r"(^|_)(timesteps?|sigmas?|t|time)$")


def find_clock_inputs(graph: Graph, main_stream: Node | None, streams: Iterable[Node] = ()) -> ClockInputs:
    """Sorts the activations among the inputs of ``graph`` by the part they play in a denoising loop.

    ``main_stream`` is the image stream where the first block takes it. What it is computed from are the moving inputs
    (the latents); of a concatenation of image and text tokens, only the larger part counts. The timestep is the small
    input that feeds a sinusoidal embedding; an argument called so wins over one that only looks so, because guidance
    scales are embedded in the same way. It may be a Python integer. Of the other tensors those with at least two
    dimensions (embeddings, position ids) are conditioning; loops like to make scalars such as the guidance scale anew
    for every call. Python numbers are kept apart: the host knows their values. ``streams`` are all streams where they
    enter the first block.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    weights = [node for node in inputs if is_static_input(node)]
    owner = tuple(weights)
    # with dynamic=True numbers held by modules are inputs, too: new tensors at every call, which nobody reads any more
    read = [node for node in inputs if node.users and not is_static_input(node)]
    active = [node for node in read if isinstance(fake(node), torch.Tensor)]
    numbers = [node for node in active if NUMBER in node.meta]
    active = [node for node in active if NUMBER not in node.meta]
    integers = [node for node in read if isinstance(fake(node), int | torch.SymInt)]
    timestep, fixed_time = _time(active, [node for node in numbers if not is_held_by_module(node.name)], integers)
    sources = _sources([main_stream] if main_stream is not None else [])
    moving = tuple(node for node in active if node in sources and node is not timestep)
    rest = [node for node in active if node is not timestep and node not in moving]
    lasting = [node for node in rest if not _is_called_time(node)]  # a second time moves at every step
    conditioning = tuple([node for node in lasting if fake(node).ndim >= 2] or lasting)
    begun = _sources(streams) | sources
    side = tuple(
        node
        for node in active
        if fake(node).is_floating_point() and node not in begun and not _is_time(node) and node is not timestep
    )
    changing = tuple(node for node in numbers if node is not timestep)
    return ClockInputs(owner, moving, timestep, conditioning, side, changing, fixed_time)


def _is_time(node: Node) -> bool:
    return _is_called_time(node) or _feeds_waves(node)


def _is_called_time(node: Node) -> bool:
    return bool(_TIME_NAME.search(_argument_name(node)))


def _time(tensors: list[Node], numbers: list[Node], integers: list[Node]) -> tuple[Node | None, float | None]:
    """The input that is the time, or else its value in a graph that serves no other."""
    waves = [node for node in (*tensors, *numbers) if fake(node).ndim <= 1 and _feeds_waves(node)]
    named = [node for node in (*tensors, *numbers) if _is_called_time(node) and numel_hint(node) > 0]
    named += [node for node in integers if _WHOLE_TIME_NAME.match(_argument_name(node))]
    found = next(iter([node for node in named if node in waves] or named), None)
    if found is not None:
        return found, None
    fixed = next((value for name, value in python_numbers().items() if _WHOLE_TIME_NAME.match(name)), None)
    return (None, fixed) if fixed is not None else (next(iter(waves), None), None)


def is_held_by_module(name: str) -> bool:
    """Whether the input of this name is an attribute of the model, not an argument of the call."""
    return name.startswith(("l_self_", "l_model_")) or "_modules_" in name


def _argument_name(node: Node) -> str:
    """``L_kwargs_timestep_`` -> ``timestep``."""
    return re.sub(r"^l_(kwargs_|args_)?|_+$", "", node.name.lower())


def _feeds_waves(node: Node) -> bool:
    """True when ``node`` reaches a sine or cosine within a few element-wise steps."""
    todo, seen = [(node, 0)], set[Node]()
    while todo:
        current, depth = todo.pop()
        if current in seen or depth > 12:
            continue
        seen.add(current)
        if current.target in WAVES:
            return True
        if current.target is not torch.nn.functional.linear:
            todo.extend((user, depth + 1) for user in current.users)
    return False


def _sources(values: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    todo = list(values)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            parts = node.all_input_nodes
            if node.target in CONCATENATIONS:
                largest = max(map(numel_hint, parts))
                parts = [part for part in parts if numel_hint(part) == largest]
            todo.extend(parts)
    return found
