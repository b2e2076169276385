"""The data that passes hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node

PART = "dit_part"  # node.meta key: the Part that a node belongs to


@dataclass(frozen=True, eq=False)
class Part:
    """Nodes that are compiled together: a block, or the nodes between two blocks. Each is equal to itself only.

    ``name`` is for people. ``skippable``: it lies in a region. ``moved``: it runs in front of the region that its nodes
    stand in.
    """

    name: str
    skippable: bool = False
    moved: bool = False


class Refusal(Exception):
    """The graph cannot be cached safely; the message says why and what a user can do."""


class NoChain(Refusal):
    """No repeated blocks in this graph; another graph of the same model may have them.

    ``lists`` are the lists of modules that were seen.
    """

    def __init__(self, message: str, lists: tuple[str, ...]) -> None:
        super().__init__(message)
        self.lists = lists


@dataclass(frozen=True)
class Block:
    """One repetition in the graph.

    ``nodes`` are the block's own nodes in graph order. ``container`` is the dotted name of the list the block came
    from (or ``structure`` when only its shape in the graph gave it away), ``index`` its place there and ``kind`` the
    class name of its module. ``path`` tells lists apart (two may have the same dotted name). ``turn`` counts how often
    the list has been run before in the same call of the model.
    """

    container: str
    index: int
    kind: str
    nodes: tuple[Node, ...] = field(repr=False)
    path: tuple[str, ...] = field(default=(), repr=False)
    turn: int = 0

    @property
    def name(self) -> str:
        return f"{self.container}.{self.index}" + (f" (run {self.turn + 1})" if self.turn else "")


@dataclass(frozen=True)
class Exit:
    """A value that the region makes and the rest of the graph reads.

    ``base`` is the same stream where it enters the region: the forecast is then ``base + residual``. Without a base
    the value itself is forecast. A ``joined`` base was put together from several entry values for this purpose.
    """

    node: Node
    base: Node | None
    joined: bool = False


@dataclass(frozen=True)
class Region:
    """The part of a graph that can be skipped, and what its skipping needs.

    ``start`` and ``stop`` are node positions (half open). ``probe_entry`` is the main stream where the first of the
    ``front`` blocks takes it, ``probe_value`` where the region takes it; the guard compares their difference.
    ``hoisted`` nodes inside the range run in front of it, ``pulled`` nodes behind it run in it. ``main`` is the number
    of the exit that is the main stream.
    """

    name: str
    front: int
    back: int
    blocks: tuple[Block, ...] = field(repr=False)
    start: int
    stop: int
    exits: tuple[Exit, ...]
    hoisted: frozenset[Node] = field(repr=False)
    pulled: frozenset[Node] = field(repr=False)
    probe_entry: Node | None
    probe_value: Node
    main: int | None = None

    @property
    def skipped(self) -> int:
        return len(self.blocks) - self.front - self.back


@dataclass(frozen=True)
class BatchRows:
    """How to run a region on some rows of the batch only: which of its operands have one row per sample
    (``tensors``), and which are sizes that grow with the batch (``sizes``).

    ``whole`` is the reason why it can only be run on all rows; rows may still decide for themselves.
    """

    tensors: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: str | None = None


@dataclass(frozen=True)
class RegionPlan:
    """Chain and regions of one graph, with remarks for the user (clamped F and B, for example)."""

    chain: tuple[Block, ...] = field(repr=False)
    regions: tuple[Region, ...]
    clock_inputs: ClockInputs
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClockInputs:
    """Graph inputs that tell steps and branches apart at run time.

    ``owner`` are the model's weights (whose model is this?), ``moving`` the inputs that change at every step
    (the latents), ``timestep`` the diffusion time, ``conditioning`` what stays the same within one branch of a
    generation. ``side`` are floating point inputs of which no stream begins (prompts, control samples, scales): the
    guard must notice when they change. ``numbers`` are Python numbers, which arrive as float64 tensors of shape ().
    ``fixed_time`` is the diffusion time where Dynamo has made a constant of it: the graph serves this time alone.
    """

    owner: tuple[Node, ...]
    moving: tuple[Node, ...]
    timestep: Node | None
    conditioning: tuple[Node, ...]
    side: tuple[Node, ...] = ()
    numbers: tuple[Node, ...] = ()
    fixed_time: float | None = None
