"""The backend: ``torch.compile(model, backend="dit_cache")``.

TorchDynamo hands over the graph of a diffusion transformer. The passes below cut it into a front, a region that can be
skipped and a tail; each piece is compiled once; at run time a guard decides at every step between the region and its
forecast.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .api import process_overrides, reports, table
from .config import CacheConfig, environment_layer, parse_layer, resolve, split_options
from .debug.dump import Dump
from .debug.messages import forget_warnings, say_compiled, say_refused
from .debug.report import GraphReport, Watch, describe_plan
from .passes.batch_rows import find_batch_rows
from .passes.check_peers import check_peers
from .passes.extract import duplicate
from .passes.find_blocks import find_blocks
from .passes.insert_guard import insert_guard
from .passes.lower import compile_graph, compiler_options, lower
from .passes.normalize import normalize
from .passes.outline import Outliner
from .passes.plan import Plan, Refusal
from .passes.plan_region import plan_region
from .plugins import plugin_names
from .policy import POLICIES
from .runtime.cached_graph import CachedGraph, ClockPlaces, Code
from .runtime.rows import RowPlaces

Layers = tuple[Mapping[str, Any], Mapping[str, Any]]


def dit_cache(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compiles ``gm`` with a step cache; what ``torch.compile`` calls.

    ``mode`` and the ``options`` that are not settings of ours go to Inductor. A graph that cannot be cached safely is
    compiled as plain Inductor would, with one warning that names the reason.

    Raises:
        ConfigError: an unknown or contradictory setting in the environment or in ``options``.
    """
    ours, inductor = split_options(options)
    names = plugin_names(ours)
    layers = (environment_layer(**names), parse_layer(ours, where="option", **names))
    config = resolve(*layers, process_overrides())
    patches = compiler_options(mode, inductor)
    if not config.enabled:
        return compile_graph(gm, config.inner, patches)
    try:
        return _cached(gm, example_inputs, layers, config, patches)
    except Refusal as refusal:
        graphs = reports.all()
        hopeless = len(graphs) > 2 and all(report.refusal is not None for report in graphs)
        say_refused(gm, refusal, config.inner, hopeless=hopeless)
        return compile_graph(gm, config.inner, patches)


def _cached(
    gm: GraphModule, example_inputs: Sequence[Any], layers: Layers, config: CacheConfig, patches: dict[str, Any]
) -> Callable[..., Any]:
    """The passes, in order."""
    dump = Dump(config.dump)
    dump.before(gm)
    watch = Watch()
    try:
        _refuse_training(example_inputs)
        check_peers(gm)
        with watch("normalize"):
            graph = normalize(duplicate(gm))
        with watch("find_blocks"):
            chain = find_blocks(graph)
        dump.blocks(chain)
        with watch("plan_region"):
            tap = POLICIES.instance(config.policy).tap(config)
            plan = plan_region(graph, chain, front=config.fn, back=config.bn, scope=config.scope, tap=tap)
        dump.plan(plan)
        with watch("insert_guard"):
            top = insert_guard(graph, plan)
    except Refusal as refusal:
        dump.refusal(str(refusal))
        reports.add(GraphReport(len(gm.graph.nodes), refusal=str(refusal), seconds=watch.seconds))
        raise
    outliner = Outliner(whole=config.pieces == "segment")
    rows = tuple(r if isinstance(r, str) else RowPlaces(r.tensors, r.sizes) for r in find_batch_rows(top, plan))
    with watch("outline"):
        top = outliner.outline(top)
    dump.after(top, outliner)
    report = describe_plan(graph, plan, config, len(outliner.pieces), watch.seconds)
    reports.add(report)
    say_compiled(report)
    top = lower(top, outliner.pieces, config.inner, patches)
    mains = tuple(region.main for region in plan.regions)
    code = Code(top.forward, _clock_places(graph, plan), report.chain, tap, rows, mains)
    cached = CachedGraph(code, layers, table, process_overrides)
    torch._dynamo.utils.counters["dit_cache"]["graphs"] += 1
    torch._dynamo.utils.counters["dit_cache"]["pieces"] += len(outliner.pieces)

    def forward(*args: Any) -> Any:
        return cached(*args)

    return forward


def _refuse_training(example_inputs: Sequence[Any]) -> None:
    tensors = (value for value in example_inputs if isinstance(value, torch.Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise Refusal(
            "gradients are enabled, and skipped blocks have none. Call the model under torch.no_grad() or "
            "torch.inference_mode() (pipelines do), or set requires_grad_(False)"
        )


def _clock_places(gm: GraphModule, plan: Plan) -> ClockPlaces:
    place = {node: i for i, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder")}

    def places(nodes: tuple[Node, ...]) -> tuple[int, ...]:
        return tuple(place[node] for node in nodes)

    clock = plan.clock_inputs
    timestep = place[clock.timestep] if clock.timestep is not None else None
    return ClockPlaces(
        places(clock.owner), places(clock.moving), timestep, places(clock.conditioning), places(clock.side)
    )


def _reset() -> None:
    """``torch.compiler.reset()`` comes here: compiled pieces go with Dynamo's cache, state goes with this."""
    table.reset()
    reports.clear()
    forget_warnings()


dit_cache.reset = _reset  # type: ignore[attr-defined]
atexit.register(table.reset)  # the last generation ends, too: its warning or summary would be lost otherwise
