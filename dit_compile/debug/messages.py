"""What is said when a graph is compiled."""

from __future__ import annotations

import logging
import re

from .report import GraphReport

log = logging.getLogger("dit_compile")
_said: set[str] = set()


def say_compiled(report: GraphReport) -> None:
    """One INFO line per graph, and the notes of the plan as warnings."""
    for note in report.notes:
        warn_once(note)
    log.info("dit_cache: %s", report.line())


def warn_once(message: str) -> None:
    """A warning, but not twice the same: several graphs of one model often have the same reason."""
    reason = re.sub(r"\d+", "#", message)  # graphs of one model differ in their counts of nodes
    if reason not in _said:
        _said.add(reason)
        log.warning("dit_cache: %s", message)


def forget_warnings() -> None:
    _said.clear()
