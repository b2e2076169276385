"""What is said when a graph is compiled."""

from __future__ import annotations

import atexit
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch.fx import GraphModule

from ..compat import current_compilation
from ..passes.graph_breaks import find_part, latest_break
from ..passes.plan import NoChain, Refusal
from .report import GraphReport

log = logging.getLogger("dit_compile")
_said: set[str] = set()
_later: dict[str, str] = {}
_cached: list[str] = []


@dataclass
class Held:
    """What was said while a model was compiled for a trial: ``warnings`` with their keys, and whether any graph was
    ``cached`` or ``refused``."""

    warnings: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    refused: bool = False

    def release(self) -> None:
        """Says what was held back."""
        for key, message in self.warnings.items():
            warn_once(message, key)
        self.warnings.clear()


_held: ContextVar[Held | None] = ContextVar("held", default=None)


@contextmanager
def hold() -> Iterator[Held]:
    """Holds back the warnings of this thread, until ``release`` or an error."""
    held = Held()
    token = _held.set(held)
    try:
        yield held
    except BaseException:
        _held.reset(token)
        held.release()
        raise
    _held.reset(token)


def say_compiled(report: GraphReport) -> None:
    """One INFO line per graph, and the notes of the plan as warnings."""
    _cached.append(report.chain)
    if (held := _held.get()) is not None:
        held.cached = True
    for note in report.notes:
        warn_once(note)
    log.info("dit_cache: %s", report.line())


def say_refused(gm: GraphModule, refusal: Refusal, inner: str, *, hopeless: bool) -> None:
    """One warning with the reason and, if Dynamo has broken the graph, the place, the cause and the way out.

    A front or head in a graph of its own does no harm as long as the blocks are together: of a model that is broken
    into many graphs it is said once, and only when no graph with all blocks can come any more. ``hopeless`` says that
    several graphs were refused by now and none is cached, which decides where the model's blocks are not known.
    """
    if (held := _held.get()) is not None:
        held.refused = True
    message = f"this graph is not cached, it runs as with plain {inner}: {refusal}"
    if not isinstance(refusal, NoChain):
        warn_once(message)
        return
    part = find_part(gm)
    if part is None:
        warn_once(f"{message}. Compile the whole transformer, not a single block", key="no chain in a whole graph")
    elif part.hopeless or (part.hopeless is None and hopeless):
        warn_once(f"{message}. {part.cut}", key=part.cut.key)
    else:
        log.info("dit_cache: %s", message)
        _later.setdefault(part.cut.key, f"{message}. {part.cut}")


def say_unseen() -> None:
    """The warning that ``say_refused`` has put off, or that Dynamo handed over no graph at all; nothing if a graph is
    cached. For the end of the process: until then a graph with blocks may come."""
    if _cached or _said:
        return
    cut = latest_break()
    for message in list(_later.values())[-1:] or ([f"nothing is cached: Dynamo made no graph. {cut}"] if cut else []):
        warn_once(message)


def say_recompile_limit() -> None:
    """One warning when the graph that is being compiled is the last that torch compiles for its function."""
    now = current_compilation()
    if now is None or now.limit is None or now.number < now.limit:
        return
    warn_once(
        f"this is graph {now.number} of one function, and torch compiles no more than {now.limit} "
        "(torch._dynamo.config.recompile_limit). The next input that needs another graph runs without compilation and "
        "without the cache. TORCH_LOGS=recompiles names what changes; pass sizes that vary with dynamic=True, or raise "
        f"the limit, in each thread that calls the model: torch._dynamo.config.recompile_limit = {4 * now.limit}",
        key=f"recompile limit {now.function}",
    )


def warn_once(message: str, key: str | None = None) -> None:
    """A warning, but not twice for one ``key``: several graphs of one model often have the same reason."""
    key = key or re.sub(r"\d+", "#", message)  # graphs of one model differ in their counts of nodes
    if (held := _held.get()) is not None:
        held.warnings.setdefault(key, message)
    elif key not in _said:
        _said.add(key)
        log.warning("dit_cache: %s", message)


def forget_warnings() -> None:
    _said.clear()
    _later.clear()
    _cached.clear()


atexit.register(say_unseen)
