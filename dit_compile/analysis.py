"""The passes, in order: a graph of Dynamo is taken apart, nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.fx import GraphModule

from .config import CacheConfig
from .debug.dump import Dump
from .debug.report import GraphReport, Watch, describe_plan
from .passes.batch_rows import find_batch_rows
from .passes.check_cuts import check_effects, check_sections
from .passes.check_peers import check_peers
from .passes.effects import Effects, effects_of
from .passes.extract import duplicate
from .passes.find_blocks import find_blocks
from .passes.insert_guard import insert_guard
from .passes.normalize import normalize
from .passes.numbers import FIXED
from .passes.outline import Outliner
from .passes.plan import BatchRows, Block, RegionPlan
from .passes.plan_region import plan_region
from .passes.signature import structure_of
from .plans import Cut
from .policy import POLICIES

RESIDUAL = "residual"  # the tap of a cut that a plan asks for


@dataclass(frozen=True)
class CutGraph:
    """One way to cut the graph.

    ``graph`` is the normalized copy of Dynamo's graph that ``plan`` speaks of, ``top`` the graph that remains after the
    cuts: it calls segments, which call unique pieces. ``rows`` says how each region runs on some rows of a batch, or
    why it cannot. ``tap`` is what guards measure.
    """

    cut: Cut
    graph: GraphModule
    plan: RegionPlan
    top: GraphModule
    rows: tuple[BatchRows | str, ...]
    tap: str


@dataclass(frozen=True)
class Analysis:
    """A graph taken apart, nothing compiled.

    ``cuts[0]`` is the one that settings describe; one that a plan asks for may follow. ``outliner`` has the pieces that
    all cuts share, ``effects`` says what each piece does besides returning values, ``structure`` is a digest of the
    graph's operators.
    """

    cuts: tuple[CutGraph, ...]
    outliner: Outliner
    effects: Mapping[str, Effects]
    structure: str
    report: GraphReport


def no_plan(structure: str) -> Cut | None:
    """No cut besides the one that settings describe."""
    return None


def analyse(gm: GraphModule, config: CacheConfig, planned: Callable[[str], Cut | None] = no_plan) -> Analysis:
    """The passes, in order. ``gm`` is left as it is. ``planned`` is asked for a further cut, with the structure of the
    graph.

    Raises:
        Refusal: the graph cannot be cached safely; says why and what to do.
    """
    watch = Watch()
    with Dump(config.dump, strict=config.strict) as dump:
        dump.before(gm)
        check_peers(gm)
        with watch("normalize"):
            graph = normalize(duplicate(gm))
        structure = structure_of(graph)
        with watch("find_blocks"):
            chain = find_blocks(graph)
        dump.blocks(chain)
        tap = POLICIES.instance(config.guard_policy).tap(config)
        cuts = [_cut(graph, chain, Cut(config.fn, config.bn, config.scope), tap, watch)]
        dump.plan(cuts[0].plan)
        wanted = planned(structure)
        if wanted is not None and (wanted, RESIDUAL) != (cuts[0].cut, tap):
            graph = normalize(duplicate(gm))  # planning has added nodes to the other copy
            cuts.append(_cut(graph, find_blocks(graph), wanted, RESIDUAL, watch))
        outliner = Outliner(whole=config.pieces == "segment")
        with watch("outline"):
            calls = outliner.outline(*(one.top for one in cuts))
        with watch("effects"):
            effects = {name: effects_of(piece, name) for name, piece in outliner.pieces.items()}
            for each in calls:
                check_effects(each, effects)
        dump.after(cuts[0].top, outliner, effects)
    first = cuts[0]
    notes = [*first.plan.notes, *dump.failures]
    fixed = first.graph.meta.get(FIXED, ())
    report = describe_plan(first.graph, first.plan, config, outliner, effects, fixed, notes, watch.seconds)
    return Analysis(tuple(cuts), outliner, effects, structure, report)


def _cut(graph: GraphModule, chain: tuple[Block, ...], cut: Cut, tap: str, watch: Watch) -> CutGraph:
    with watch("plan_region"):
        plan = plan_region(graph, chain, front=cut.front, back=cut.back, scope=cut.scope, tap=tap)
    with watch("insert_guard"):
        top = insert_guard(graph, plan)
        check_sections(graph)
        rows = find_batch_rows(top, plan)
    return CutGraph(cut, graph, plan, top, rows, tap)
