"""What became of each graph that Dynamo handed over: the answer to "is the cache on, and what does it skip?"."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch.fx import GraphModule

from ..compat import free_unbacked_symbols
from ..config import CacheConfig
from ..forecast import FORECASTERS, ForecastError, wanted_snapshots
from ..passes.break_kinds import found_settings
from ..passes.clock_inputs import is_held_by_module
from ..passes.effects import Effects
from ..passes.facts import fake, nbytes_hint
from ..passes.outline import Outliner
from ..passes.plan import Block, Exit, Region, RegionPlan
from ..policy import POLICIES
from ..readers import format_bytes
from ..runtime.fork import free_in_child
from ..runtime.slots import stored_bytes

HISTORY = 256  # graphs remembered


@dataclass(frozen=True)
class StreamReport:
    """A value that leaves a region and is forecast.

    ``base`` says what the forecast residual is added to: ``entry`` (the stream as it entered the region), ``joined``
    (several entry values, concatenated or rearranged) or ``none`` (the value itself is forecast).
    """

    shape: tuple[str, ...]
    dtype: str
    base: str


@dataclass(frozen=True)
class RegionReport:
    """``first`` to ``last`` are the blocks that can be skipped; ``hoisted`` counts operations moved in front."""

    first: str
    last: str
    front: int
    back: int
    blocks: int
    skipped: int
    streams: tuple[StreamReport, ...]
    hoisted: int

    def __str__(self) -> str:
        streams = ", ".join("x".join(stream.shape) for stream in self.streams)
        return (
            f"skips {self.first} to {self.last} ({self.skipped} of {self.blocks} blocks, {len(self.streams)} "
            f"stream{'s' * (len(self.streams) != 1)}: {streams})"
        )


@dataclass(frozen=True)
class GraphReport:
    """One graph. ``refusal`` is the reason why it is not cached, None where it is.

    ``glue`` counts the operations between blocks, ``pieces`` what was compiled, ``bytes_per_branch`` is the memory
    that snapshots and probe will hold for each branch of classifier-free guidance (None where it depends on the data),
    ``fixed_numbers`` are Python numbers that an operator made a constant of the compiled graph, ``groups`` the process
    groups of collectives that are skipped with a region, ``seconds`` the CPU time of each pass. ``traceback`` is set
    where an unexpected error is the reason of the refusal. ``guards`` counts Dynamo's guards, before and after those
    inside repeated blocks were dropped (None: where ``dit_compile.compile`` drops none). ``dynamo`` are the settings of
    ``torch._dynamo.config`` that ``dit_compile.compile`` found and set for this model.
    """

    nodes: int
    chain: str = ""
    blocks: tuple[str, ...] = ()
    regions: tuple[RegionReport, ...] = ()
    glue: int = 0
    pieces: int = 0
    bytes_per_branch: int | None = 0
    settings: str = ""
    notes: tuple[str, ...] = ()
    refusal: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    fixed_numbers: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    traceback: str | None = None
    guards: tuple[int, int] | None = None
    dynamo: tuple[str, ...] = field(default_factory=lambda: found_settings.get() or ())

    def line(self) -> str:
        """One line for the log."""
        if self.refusal is not None:
            return f"not cached: {self.refusal}"
        if all(region.blocks == 1 for region in self.regions):
            regions = f"skips each of {self.regions[0].first} to {self.regions[-1].last} by itself"
        else:
            regions = "; ".join(map(str, self.regions))
        held = (
            "an amount that depends on the data"
            if self.bytes_per_branch is None
            else format_bytes(self.bytes_per_branch)
        )
        return f"{self.chain}; {regions}; {self.settings}; {held} held per branch"


class Reports:
    """The newest graphs of this process."""

    def __init__(self) -> None:
        self._lock = free_in_child(threading.Lock())
        self._graphs: deque[GraphReport] = deque(maxlen=HISTORY)

    def add(self, report: GraphReport) -> None:
        with self._lock:
            self._graphs.append(report)

    def note_guards(self, before: int, after: int) -> None:
        """Of the graph that was added last."""
        with self._lock:
            self._graphs[-1] = replace(self._graphs[-1], guards=(before, after))

    def all(self) -> list[GraphReport]:
        with self._lock:
            return list(self._graphs)

    def clear(self) -> None:
        with self._lock:
            self._graphs.clear()


class Watch:
    """CPU seconds by name of pass (``thread_time``), which other processes do not affect."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - start


def chain_name(chain: tuple[Block, ...]) -> str:
    """``19 x DoubleBlock + 38 x SingleBlock``; alternating blocks are counted by kind, runs of one list together."""
    turns = [tuple(blocks) for _, blocks in itertools.groupby(chain, key=lambda block: block.turn)]
    if len(turns) > 1:
        names = Counter(_kinds(blocks) for blocks in turns)
        return " + ".join(name if count == 1 else f"{name}, run {count} times" for name, count in names.items())
    return _kinds(chain)


def _kinds(chain: tuple[Block, ...]) -> str:
    runs = [(kind, len(list(blocks))) for kind, blocks in itertools.groupby(chain, key=lambda block: block.kind)]
    if len(runs) > 4:
        kinds = dict.fromkeys(block.kind for block in chain)
        runs = [(kind, sum(block.kind == kind for block in chain)) for kind in kinds]
    return " + ".join(f"{count} x {kind}" for kind, count in runs)


def bytes_per_branch(plan: RegionPlan, config: CacheConfig) -> int | None:
    """The snapshots of each forecast stream, and one probe (or one per snapshot), of all regions.

    None when a size depends on the data (a prompt cut to its mask) and is only known when the model runs.
    """
    forecaster, policy = FORECASTERS.instance(config.forecast), POLICIES[config.guard_policy]
    follows = forecaster.follows_probe and not policy.lagged and config.decision != "lagged"
    try:
        snapshots = wanted_snapshots(forecaster, config)
    except ForecastError:
        snapshots = 1  # what is kept of a forecaster that fails
    total = 0
    for region in plan.regions:
        exits = [exit.node for exit in region.exits]
        probes = [region.probe_value] if policy.needs_probe else []
        if any(free_unbacked_symbols(fake(node)) for node in [*exits, *probes]):
            return None
        for dtype, size in ((fake(node).dtype, nbytes_hint(node)) for node in exits):
            total += snapshots * stored_bytes(size // dtype.itemsize, dtype, config.snapshot_dtype)
        total += sum(map(nbytes_hint, probes)) * (snapshots if follows else 1)
    return total


def describe_plan(
    gm: GraphModule,
    plan: RegionPlan,
    config: CacheConfig,
    outliner: Outliner,
    effects: Mapping[str, Effects],
    fixed_numbers: tuple[tuple[str, str], ...],
    notes: Sequence[str],
    seconds: Mapping[str, float],
) -> GraphReport:
    """The report of a graph that is cached; ``gm`` is the graph that ``plan`` speaks of."""
    skipped = {call.piece for call in outliner.calls if call.skippable}
    groups = tuple(sorted({group for piece in skipped for group in effects[piece].groups}))
    inside = {node for block in plan.chain for node in block.nodes}
    order = [node for node in gm.graph.nodes if node.op in ("call_function", "call_method")]
    first, last = order.index(plan.chain[0].nodes[0]), order.index(plan.chain[-1].nodes[-1])
    return GraphReport(
        nodes=len(gm.graph.nodes),
        chain=chain_name(plan.chain),
        blocks=tuple(block.name for block in plan.chain),
        regions=tuple(_region(region) for region in plan.regions),
        glue=sum(node not in inside for node in order[first:last]),
        pieces=len(outliner.pieces),
        bytes_per_branch=bytes_per_branch(plan, config),
        settings=config.describe(),
        notes=(*notes, *_advice(fixed_numbers, groups, config)),
        seconds=dict(seconds),
        fixed_numbers=fixed_numbers,
        groups=groups,
    )


def _advice(fixed_numbers: tuple[tuple[str, str], ...], groups: tuple[str, ...], config: CacheConfig) -> Iterator[str]:
    """What a user should know of a graph that is cached."""
    given = [(name, operator) for name, operator in fixed_numbers if not is_held_by_module(name)]
    if given:
        names = ", ".join(f"{name} ({operator})" for name, operator in given)
        yield (
            "arguments that are Python numbers became constants of the compiled graph, because an operator takes "
            f"nothing else: {names}. Every new value compiles another graph; pass a tensor where the model accepts one"
        )
    if groups and POLICIES[config.guard_policy].needs_probe:
        yield (
            f"the skipped blocks contain collectives (process groups {', '.join(groups)}), and every rank decides by "
            "what it measures itself: ranks that differ would wait for each other for ever. Choose a policy that "
            "measures nothing, such as policy=interval or policy=mask"
        )


def _region(region: Region) -> RegionReport:
    return RegionReport(
        first=region.blocks[region.front].name,
        last=region.blocks[-1 - region.back].name,
        front=region.front,
        back=region.back,
        blocks=len(region.blocks),
        skipped=region.skipped,
        streams=tuple(_stream(exit) for exit in region.exits),
        hoisted=len(region.hoisted),
    )


def _stream(exit: Exit) -> StreamReport:
    value = fake(exit.node)
    base = "none" if exit.base is None else "joined" if exit.joined else "entry"
    return StreamReport(tuple(map(str, value.shape)), str(value.dtype).removeprefix("torch."), base)
