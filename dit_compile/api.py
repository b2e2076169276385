"""The Python interface: statistics, summary, reset, settings, sessions."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from .config import SETTINGS, ConfigError, runtime_layer, shortened
from .debug.report import GraphReport, Reports
from .debug.summary import print_summary, report_end
from .plugins import plugin_names
from .runtime.fork import free_in_child
from .runtime.session import DEFAULT, Session
from .runtime.session import SessionInUse as SessionInUse
from .runtime.stats import GenerationStats
from .runtime.table import SideTable

table = SideTable(on_end=report_end)
reports = Reports()
_lock = free_in_child(threading.Lock())
_overrides: Mapping[str, Any] = MappingProxyType({})


def process_overrides() -> Mapping[str, Any]:
    """The layer that ``configure`` has set; a new object after every change."""
    return _overrides


def _check_module(module: torch.nn.Module | None) -> None:
    if module is not None and not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"expected the compiled transformer (a torch.nn.Module) or None, got {type(module).__name__}; "
            "for a pipeline pass pipe.transformer"
        )


def stats(module: torch.nn.Module | None = None) -> list[GenerationStats]:
    """What the cache did, generation by generation, newest last.

    ``module`` is the transformer, compiled or not; None means every module of this process. The last 64 generations of
    each module are kept. A module that was never run through the backend gives an empty list.
    """
    _check_module(module)
    return table.history(module)


def graphs() -> list[GraphReport]:
    """What became of each graph that was compiled with this backend, newest last: its blocks, regions and streams, or
    why it is not cached. ``torch.compiler.reset()`` empties the list."""
    return reports.all()


def summary(module: torch.nn.Module | None = None) -> None:
    """Prints a table of the last generation of each module: steps, reasons, differences, time saved, bytes held."""
    print_summary(stats(module))


def reset(module: torch.nn.Module | None = None) -> None:
    """Forgets the state of ``module`` (None: of every module), so that the next call begins a generation, and frees
    its CUDA graphs.

    Statistics stay.
    """
    _check_module(module)
    owners = set(table.owners(module))
    table.reset(lambda owner, session: owner in owners)
    table.free_graphs(owners)


def _runtime(knobs: Mapping[str, Any], where: str) -> dict[str, Any]:
    return runtime_layer(knobs, where=where, **plugin_names(knobs))


def configure(**knobs: Any) -> None:
    """Changes runtime settings for everything compiled in this process, without recompiling.

    Raises ConfigError for unknown names, bad values, and for structure (fn, bn, scope, ...), which needs a recompile.
    ``configure(name=None)`` takes a setting back.
    """
    global _overrides
    with _lock:
        kept = {name: value for name, value in _overrides.items() if knobs.get(name, value) is not None}
        given = {name: value for name, value in knobs.items() if value is not None}
        misspelt = dict.fromkeys(knobs.keys() - given.keys() - SETTINGS.keys())
        changed = _runtime({**given, **misspelt}, "configure() argument")
        _overrides = MappingProxyType({**kept, **changed})


def session(name: str, *, keep: bool = False, **overrides: Any) -> Session:
    """A caller's own state and settings: ``with dit_compile.session("request-7", residual_diff_threshold=0.1): ...``

    Calls inside see only this session's snapshots, whatever other threads or sessions do with the same model. Leaving
    the ``with`` frees them; with ``keep=True`` the session can be left and entered again between steps, until
    ``close()``. Raises ConfigError for bad settings; entering raises SessionInUse while another session of this name
    is open.
    """
    if not isinstance(name, str) or not name or name == DEFAULT:
        raise ConfigError(
            f"a session needs a name, a non-empty text other than {DEFAULT!r} (calls outside of sessions have that); "
            f"got {shortened(name)}"
        )
    return Session(name, _runtime(overrides, "session() argument"), keep, table.end_session)
