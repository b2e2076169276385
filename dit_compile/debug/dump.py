"""Graph dumps: what each pass saw and made, as files a person can read."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.fx import GraphModule, Node

from ..compat import trace_artifact
from ..passes.effects import Effects
from ..passes.facts import fake, is_static_input, numel_hint
from ..passes.guard_ops import compute_or_forecast, guard
from ..passes.outline import Outliner
from ..passes.plan import Block, Refusal, RegionPlan

log = logging.getLogger("dit_compile")
_numbers = itertools.count()


class Dump:
    """Writes into ``folder/graph_N/``; does nothing when ``folder`` is None.

    As a context manager it writes ``refused.txt`` when the graph is refused. A file that cannot be written is logged
    with its traceback and noted in ``failures``; the graph is compiled all the same. ``strict`` raises instead.
    """

    def __init__(self, folder: str | None, *, strict: bool = False) -> None:
        self._folder = folder
        self._strict = strict
        self._path: Path | None = None
        self.failures: list[str] = []

    def __enter__(self) -> Dump:
        if self._folder is not None:
            with self._safely():
                path = Path(self._folder) / f"graph_{next(_numbers)}"
                path.mkdir(parents=True, exist_ok=True)
                self._path = path
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refusal):
            self._write("refused.txt", lambda: f"{error}\n")

    def before(self, gm: GraphModule) -> None:
        self._write("0_before.py", lambda: gm.print_readable(print_output=False))

    def blocks(self, chain: tuple[Block, ...]) -> None:
        self._write("1_blocks.txt", lambda: render_blocks(chain))

    def plan(self, plan: RegionPlan) -> None:
        self._write("2_plan.txt", lambda: render_plan(plan))

    def after(self, top: GraphModule, outliner: Outliner, effects: Mapping[str, Effects]) -> None:
        self._write("3_after.txt", lambda: render(top) + "\n" + render_uses(outliner, effects))
        for name, piece in outliner.pieces.items():
            self._write(f"pieces/{name}.py", partial(piece.print_readable, print_output=False))
        if self._path is not None:
            log.info("dit_cache: graphs written to %s", self._path)

    def _write(self, name: str, text: Callable[[], str]) -> None:
        if self._path is None:
            return
        with self._safely():
            content = text()
            path = self._path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            if path.parent == self._path:
                trace_artifact(f"dit_cache_{path.stem}", content)

    @contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            self._path = None  # said once
            log.exception("dit_cache: the dump of this graph is incomplete (DIT_CACHE_DUMP=%s)", self._folder)
            self.failures.append(f"the dump in {self._folder} is incomplete: {type(error).__name__}: {error}")


def render_blocks(chain: tuple[Block, ...]) -> str:
    """One line per block."""
    width = max(len(block.name) for block in chain)
    lines = [f"{block.name:<{width}}  {len(block.nodes):>5} nodes  {block.kind}" for block in chain]
    return "\n".join([f"chain of {len(chain)} blocks", *lines, ""])


def _shape(node: Node) -> str:
    value = fake(node)
    return (
        f"{node.name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" if numel_hint(node) else node.name
    )


def render_plan(plan: RegionPlan) -> str:
    """Regions, streams and what becomes of every value that leaves a region."""
    lines = []
    for region in plan.regions:
        first, last = region.blocks[region.front], region.blocks[-1 - region.back]
        span = f"{first.name} to {last.name}, F{region.front} B{region.back}, skips {region.skipped} blocks"
        lines += [
            f"{region.name}: {span}",
            f"  probe   {_shape(region.probe_value)}"
            + (f" - {_shape(region.probe_entry)}" if region.probe_entry is not None else ""),
        ]
        for exit in region.exits:
            base = f"{exit.base.name} + residual" if exit.base is not None else "the value itself"
            lines.append(f"  leaves  {_shape(exit.node)} = forecast of {base}")
        lines += [f"  hoisted {node.name}" for node in sorted(region.hoisted, key=lambda n: n.name)]
    clock = plan.clock_inputs
    lines += [
        "clock:",
        f"  moving       {', '.join(n.name for n in clock.moving) or '-'}",
        f"  timestep     {clock.timestep.name if clock.timestep is not None else '-'}",
        f"  conditioning {', '.join(n.name for n in clock.conditioning) or '-'}",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes), ""])


def render_uses(outliner: Outliner, effects: Mapping[str, Effects]) -> str:
    """Which pieces were compiled, for how many blocks each, and what they do besides returning values."""
    lines = [
        f"# {name}: compiled once, runs as {', '.join(uses)}{_effects(effects[name])}"
        for name, uses in outliner.uses().items()
    ]
    return "\n".join(lines) + "\n"


def _effects(does: Effects) -> str:
    found = [f"writes into its inputs {does.written}"] if does.written else []
    found += [f"draws random numbers ({does.random})"] if does.random else []
    found += [f"has side effects ({', '.join(does.tokens)})"] if does.tokens else []
    found += [f"contains collectives of {', '.join(does.groups)}"] if does.groups else []
    return f"; {', '.join(found)}" if found else ""


def render(top: GraphModule) -> str:
    """The top-level graph as the algorithm it is: weights are counted, not listed."""
    lines = []

    def call(values: Iterable[Any]) -> str:
        nodes = [value for value in values if isinstance(value, Node)]
        weights = sum(is_static_input(node) for node in nodes)
        shown = [node.name for node in nodes if not is_static_input(node)]
        return ", ".join([*shown, *([f"*weights[{weights}]"] if weights else [])])

    def results(node: Node) -> str:
        return (
            "".join(f"{user.name}, " for user in node.users if not user.args or user.args[0] is node).rstrip(" ") or "_"
        )

    for node in top.graph.nodes:
        if node.op == "call_module":
            lines.append(f"{results(node)} = {node.target}({call(node.args)})")
        elif node.target is guard:
            _, region, entry, value = node.args
            entry_name = entry.name if isinstance(entry, Node) else None
            lines.append(f"{node.name} = guard(step, {region}, entry={entry_name}, value={value})")
        elif node.target is compute_or_forecast:
            decision, region, operands, bases = node.args
            base_names = ", ".join(base.name if isinstance(base, Node) else "None" for base in bases)
            lines.append(
                f"{results(node)} = compute_or_forecast({decision}, {region.target}, "
                f"[{call(operands)}], bases=[{base_names}])"
            )
        elif node.op == "output":
            lines.append(f"return {node.args[0]}")
    inputs = [node for node in top.graph.nodes if node.op == "placeholder"]
    return "\n    ".join([f"def forward({call(inputs)}):", *lines]) + "\n"
