"""What is said when a graph is compiled."""

from __future__ import annotations

import logging
import re

from torch.fx import GraphModule

from ..compat import current_compilation
from ..passes.graph_breaks import any_break, explain_break, source_files
from ..passes.plan import NoChain, Refusal
from .report import GraphReport

log = logging.getLogger("dit_compile")
_said: set[str] = set()


def say_compiled(report: GraphReport) -> None:
    """One INFO line per graph, and the notes of the plan as warnings."""
    for note in report.notes:
        warn_once(note)
    log.info("dit_cache: %s", report.line())


def say_refused(gm: GraphModule, refusal: Refusal, inner: str, *, hopeless: bool) -> None:
    """One warning with the reason and the way out.

    Of a model that Dynamo has broken into many graphs, those without any list of modules are not worth a warning: a
    front or head in a graph of its own does no harm as long as the blocks are together. ``hopeless`` says that
    several graphs were refused by now and none is cached.
    """
    message = f"this graph is not cached, it runs as with plain {inner}: {refusal}"
    if not isinstance(refusal, NoChain):
        warn_once(message)
        return
    if not refusal.lists and any_break() and not hopeless:
        log.info("dit_cache: %s", message)
        return
    broken = explain_break(gm)
    way_out = broken or (
        "Compile the whole transformer, not a single block. If a graph break cuts its blocks apart, compile with "
        "fullgraph=True: Dynamo then traces through data-dependent shapes, or names the line that it cannot trace"
    )
    warn_once(f"{message}. {way_out}", key=f"no chain in {source_files(gm)[:1]}, break known: {broken is not None}")


def say_recompile_limit() -> None:
    """One warning when the graph that is being compiled is the last that torch compiles for its function."""
    now = current_compilation()
    if now is None or now.limit is None or now.number < now.limit:
        return
    warn_once(
        f"this is graph {now.number} of one function, and torch compiles no more than {now.limit} "
        "(torch._dynamo.config.recompile_limit). The next input that needs another graph runs without compilation and "
        "without the cache. TORCH_LOGS=recompiles names what changes; pass sizes that vary with dynamic=True, or raise "
        f"the limit: torch._dynamo.config.recompile_limit = {4 * now.limit}",
        key=f"recompile limit {now.function}",
    )


def warn_once(message: str, key: str | None = None) -> None:
    """A warning, but not twice for one ``key``: several graphs of one model often have the same reason."""
    key = key or re.sub(r"\d+", "#", message)  # graphs of one model differ in their counts of nodes
    if key not in _said:
        _said.add(key)
        log.warning("dit_cache: %s", message)


def forget_warnings() -> None:
    _said.clear()
