"""The backend: ``torch.compile(model, backend="dit_cache")``.

TorchDynamo hands over the graph of a diffusion transformer. ``analyse`` runs the passes below, which cut it into a
front, a region that can be skipped and a tail; ``build`` compiles each piece once. At run time a guard decides at every
step between the region and its forecast.
"""

from __future__ import annotations

import atexit
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .analysis import Analysis, CutGraph, analyse, no_plan
from .api import process_overrides, reports, table
from .artifact import Layers, Recorder, activate
from .compat import current_compilation, dynamo_control_flow, follows_graph_break, is_region, mode_options
from .compat.workers import start_workers
from .config import CacheConfig, ConfigError, environment_layer, parse_layer, resolve, split_options
from .debug.messages import forget_warnings, say_recompile_limit, say_refused
from .debug.report import GraphReport
from .passes.bind_weights import Bound, drop_inputs, find_weights
from .passes.clock_inputs import find_clock_inputs
from .passes.effects import Effects
from .passes.facts import fake, is_static_input
from .passes.inline_bodies import RegionMismatch
from .passes.lower import PieceCode, assemble, compile_graph, lower
from .passes.plan import Refusal, RegionPlan
from .passes.segment_operands import segment_operands
from .passes.signature import signature
from .plans import Cut
from .plugins import plugin_names
from .runtime.code import ClockPlaces, Code, CutCode, without_code
from .runtime.cuda_graphs import GraphedCode
from .runtime.diffusers_hook import listen
from .runtime.earlier_frame import Places, leaving_inputs
from .runtime.observer import observing
from .runtime.recorder import RECORDERS
from .runtime.rows import RowPlaces
from .runtime.segment_graph import SegmentPlace
from .runtime.watched import BoundPlaces, StructureChanged, under_way

log = logging.getLogger("dit_compile")


def dit_cache(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Callable[..., Any]:
    """Compiles ``gm`` with a step cache; what ``torch.compile`` calls.

    ``mode`` and the ``options`` that are not settings of ours go to Inductor; ``options`` may hold a ``mode`` of its
    own, because ``torch.compile`` takes no other options beside its ``mode``. A graph that cannot be cached safely, or
    for which a pass fails, is compiled as plain Inductor would, with the same mode and options and one message that
    names the reason. ``name`` is what newer releases of torch pass on from ``torch.compile(..., name=...)``; it labels
    their own logs.

    Raises:
        ConfigError: an unknown or contradictory setting in the environment or in ``options``.
    """
    listen(table.bound_run)
    layers, patches = read_options(options, mode)
    config = resolve(*layers, process_overrides())
    recorder = Recorder(gm, config, patches)
    with recorder.compiling():
        return _compile(gm, example_inputs, layers, config, patches, recorder)


def read_options(options: Mapping[str, Any] | None, mode: str | None = None) -> tuple[Layers, dict[str, Any]]:
    """The layers of our settings (environment, options), and those of Inductor, that ``torch.compile`` is given.

    Raises:
        ConfigError: an unknown or contradictory setting.
    """
    ours, inductor = split_options(options)
    patches = _inductor_patches(inductor.pop("mode", mode), inductor)
    names = plugin_names(ours)
    return (environment_layer(**names), parse_layer(ours, where="option", **names)), patches


def _compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    layers: Layers,
    config: CacheConfig,
    patches: Mapping[str, Any],
    recorder: Recorder,
) -> Callable[..., Any]:
    if not config.enabled:
        run = compile_graph(gm, config.inner, patches)
        recorder.keep(run)
        return run
    watched = under_way.get()
    if watched is not None and watched.has_changed():  # the trace is of before
        raise StructureChanged
    try:
        say_recompile_limit()
        _refuse_training(example_inputs)
        bound = find_weights(gm, watched.name_of) if watched is not None else None
        code = build(_analysed(gm, config), layers, config, patches, recorder, bound)
        if watched is not None and bound is not None:
            drop_inputs(gm, bound)
            watched.cached()
        return code
    except Refusal as refusal:
        if watched is not None and any(map(is_region, gm.graph.nodes)):
            raise RegionMismatch(str(refusal)) from refusal  # what runs as it is, is traced as it is
        report = GraphReport(len(gm.graph.nodes), refusal=str(refusal))
        reports.add(report)
        graphs = reports.all()
        hopeless = len(graphs) > 2 and all(report.refusal is not None for report in graphs)
        say_refused(gm, refusal, config.inner, hopeless=hopeless)
    except Exception as error:
        if config.strict or isinstance(error, (ConfigError, RegionMismatch, *dynamo_control_flow())):
            raise
        report = _report_failure(gm, error, config)
    return _compile_uncached(gm, config, patches, report, recorder)


def _analysed(gm: GraphModule, config: CacheConfig) -> Analysis:
    """The analysis, with the cut that a plan, or who makes one, asks for; without it where that cut is not legal."""
    observer = observing.get()
    plan = config.plan
    if observer is None and plan is None:
        return analyse(gm, config)

    def planned(structure: str) -> Cut | None:
        if observer is not None:
            return observer.cut
        parts = () if plan is None else plan.parts
        return next((part.cut for part in parts if part.conditions.structure == structure), None)

    try:
        return analyse(gm, config, planned)
    except Refusal as refusal:
        analysis = analyse(gm, config, no_plan)  # a refusal that has nothing to do with the plan is raised again
        note = f"no plan can be used: {refusal}"
        report = replace(analysis.report, notes=(*analysis.report.notes, note))
        return replace(analysis, report=report)


def build(
    analysis: Analysis,
    layers: Layers,
    config: CacheConfig,
    patches: Mapping[str, Any],
    recorder: Recorder,
    bound: Bound | None = None,
) -> Callable[..., Any]:
    """Compiles the pieces with Inductor's settings ``patches`` and returns the callable that Dynamo runs."""
    pieces = lower(analysis.outliner.pieces, analysis.effects, config.inner, patches)
    compilation = current_compilation()
    first = analysis.cuts[0]
    code = Code(
        tuple(_cut_code(cut, analysis, pieces, config, patches) for cut in analysis.cuts),
        _clock_places(first.graph, first.plan),
        analysis.report.chain,
        compilation.function if compilation is not None else None,
        analysis.structure,
        BoundPlaces(*bound) if bound is not None else None,
    )
    recorder.keep(*(cut.forward for cut in code.cuts), code=without_code(code), report=analysis.report)
    return activate(code, analysis.report, layers)


def _cut_code(
    one: CutGraph, analysis: Analysis, pieces: Mapping[str, PieceCode], config: CacheConfig, patches: Mapping[str, Any]
) -> CutCode:
    graphed = _graphed_code(one, analysis.effects, config, patches)
    top = assemble(one.top, pieces) if graphed is None else assemble(one.top, pieces, graphed.wrap)
    return CutCode(
        forward=top.forward,
        cut=one.cut,
        tap=one.tap,
        rows=tuple(r if isinstance(r, str) else RowPlaces(r.tensors, r.sizes, r.whole) for r in one.rows),
        mains=tuple(region.main for region in one.plan.regions),
        skipped=tuple(region.skipped for region in one.plan.regions),
        blocks=len(one.plan.chain),
        signature=(signature(one.graph, one.plan), one.tap),
        graphed=graphed,
    )


def _graphed_code(
    one: CutGraph, effects: Mapping[str, Effects], config: CacheConfig, patches: Mapping[str, Any]
) -> GraphedCode | None:
    """What records the segments as CUDA graphs; None where settings or the device rule that out."""
    inputs = [node for node in one.graph.graph.nodes if node.op == "placeholder"]
    tensors = [value for node in inputs if isinstance(value := fake(node), torch.Tensor)]
    if config.cuda_graphs == "off" or not tensors or tensors[0].device.type not in RECORDERS:
        return None
    asked = config.cuda_graphs == "on" or bool(patches.get("triton.cudagraphs"))
    if config.cuda_graphs == "mode" and not asked:
        return None
    segments = segment_operands(one.top, effects)
    places = [
        SegmentPlace(i, one.name, one.weights, one.others, one.skippable, one.refusal) for i, one in enumerate(segments)
    ]
    others = [i for i, node in enumerate(inputs) if not is_static_input(node)]
    return GraphedCode(places, tuple(others), tensors[0].device, measure=not asked)


def _inductor_patches(mode: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's settings for ``torch.compile(mode=..., options=...)``; options win."""
    if mode in (None, "default"):
        return dict(options)
    try:
        return {**mode_options(mode), **options}
    except RuntimeError as error:
        raise ConfigError(f"mode {mode!r}: {error}") from error


def _report_failure(gm: GraphModule, error: Exception, config: CacheConfig) -> GraphReport:
    """An error in our own code, or in the compilation of a piece: it must not cost the user the model."""
    text = f"an unexpected error, {type(error).__name__}: {error}"
    report = GraphReport(len(gm.graph.nodes), refusal=text, traceback=traceback.format_exc())
    reports.add(report)
    log.exception(
        "dit_cache: this graph is not cached, it runs as with plain %s: an unexpected error. Please report it with "
        "this traceback; DIT_CACHE_STRICT=1 raises it instead",
        config.inner,
    )
    return report


def _refuse_training(example_inputs: Sequence[Any]) -> None:
    tensors = (value for value in example_inputs if isinstance(value, torch.Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise Refusal(
            "gradients are enabled, and skipped blocks have none. Call the model under torch.no_grad() or "
            "torch.inference_mode() (pipelines do), or set requires_grad_(False)"
        )


def _clock_places(gm: GraphModule, plan: RegionPlan) -> ClockPlaces:
    place = _argument_places(gm)

    def places(nodes: tuple[Node, ...]) -> tuple[int, ...]:
        return tuple(place[node] for node in nodes)

    clock = plan.clock_inputs
    timestep = place[clock.timestep] if clock.timestep is not None else None
    return ClockPlaces(
        places(clock.owner), places(clock.moving), timestep, places(clock.conditioning), places(clock.side),
        places(clock.numbers), clock.fixed_time, bool(follows_graph_break()),
    )  # fmt: skip


def _argument_places(gm: GraphModule) -> dict[Node, int]:
    return {node: i for i, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder")}


def _compile_uncached(
    gm: GraphModule, config: CacheConfig, patches: Mapping[str, Any], report: GraphReport, recorder: Recorder
) -> Callable[..., Any]:
    """Compiles ``gm`` as plain Inductor would. Where it is the part of a broken model that gets the time, its callable
    tells the rest; if that fails, the rest is computed at every step."""
    resumed = follows_graph_break()
    try:
        places = _inputs_for_later_parts(gm) if resumed is not None else None
    except Exception:
        if config.strict:
            raise
        log.exception("dit_cache: an unexpected error in looking for the time among the inputs of an uncached graph")
        places = None
    run = compile_graph(gm, config.inner, patches)
    recorder.keep(run, report=report, places=places, resumed=bool(resumed))
    return run if places is None else leaving_inputs(run, places, resumed=bool(resumed))


def _inputs_for_later_parts(gm: GraphModule) -> Places | None:
    clock = find_clock_inputs(gm.graph, None)
    if clock.timestep is None and clock.fixed_time is None:
        return None
    place = _argument_places(gm)
    timestep = place[clock.timestep] if clock.timestep is not None else None
    return Places(timestep, clock.fixed_time, tuple(place[node] for node in clock.conditioning))


def _reset() -> None:
    """``torch.compiler.reset()`` comes here: compiled pieces go with Dynamo's cache, state goes with this."""
    table.reset()
    table.free_graphs(table.owners(None))
    table.forget_warnings()
    reports.clear()
    forget_warnings()


dit_cache.reset = _reset  # type: ignore[attr-defined]
listen(table.bound_run)  # again before each compilation: diffusers may be imported later
start_workers()
atexit.register(table.reset)  # the last generation ends, too: its warning or summary would be lost otherwise
