"""What is said when a graph is compiled."""

from __future__ import annotations

import itertools
import logging
import re

from ..config import CacheConfig
from ..forecast import FORECASTERS
from ..passes.facts import fake, nbytes_hint
from ..passes.plan import Block, Plan
from ..policy import POLICIES
from .summary import format_bytes

log = logging.getLogger("dit_compile")
_said: set[str] = set()


def chain_name(chain: tuple[Block, ...]) -> str:
    """``19 x DoubleBlock + 38 x SingleBlock``; alternating blocks are counted by kind."""
    runs = [(kind, len(list(blocks))) for kind, blocks in itertools.groupby(chain, key=lambda block: block.kind)]
    if len(runs) > 4:
        kinds = dict.fromkeys(block.kind for block in chain)
        runs = [(kind, sum(block.kind == kind for block in chain)) for kind in kinds]
    return " + ".join(f"{count} x {kind}" for kind, count in runs)


def bytes_per_branch(plan: Plan, config: CacheConfig) -> int:
    """(order + 1) snapshots of each forecast stream, and one probe, of all regions."""
    snapshots = FORECASTERS[config.forecast]().snapshots(config)
    total = 0
    for region in plan.regions:
        total += snapshots * sum(nbytes_hint(exit.node) for exit in region.exits)
        total += nbytes_hint(region.probe_value) if POLICIES[config.policy].needs_probe else 0
    return total


def say_compiled(plan: Plan, config: CacheConfig) -> None:
    """One INFO line per graph, and the notes of the plan as warnings."""
    for note in plan.notes:
        warn_once(note)
    regions = "; ".join(
        f"skips {region.blocks[region.front].name} to {region.blocks[-1 - region.back].name} "
        f"({region.skipped} of {len(region.blocks)} blocks, {len(region.exits)} stream"
        f"{'s' if len(region.exits) != 1 else ''}: "
        + ", ".join("x".join(map(str, fake(exit.node).shape)) for exit in region.exits)
        + ")"
        for region in plan.regions
    )
    log.info(
        "dit_cache: %s; %s; %s; %s held per branch",
        chain_name(plan.chain), regions, config.describe(), format_bytes(bytes_per_branch(plan, config)),
    )  # fmt: skip


def warn_once(message: str) -> None:
    """A warning, but not twice the same: several graphs of one model often have the same reason."""
    reason = re.sub(r"\d+", "#", message)  # graphs of one model differ in their counts of nodes
    if reason not in _said:
        _said.add(reason)
        log.warning("dit_cache: %s", message)


def forget_warnings() -> None:
    _said.clear()
