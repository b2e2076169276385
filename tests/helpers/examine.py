"""Runs one model of the registry through the backend and through what it is compared with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from eager_oracle import EagerOracle, chain_blocks
from specs import Model
from torch import Tensor
from torch.utils._pytree import tree_leaves

import dit_compile
from dit_compile.backend import dit_cache
from dit_compile.debug.report import GraphReport

STEPS = 4
ALTERNATING = "1010"


@dataclass(frozen=True)
class Examination:
    """``report`` is that of the graph that is cached, or of the first refused one. Errors are relative to the largest
    value of the output. ``graphs`` is the number of graphs that Dynamo made, ``plain_graphs`` the same without us.
    """

    report: GraphReport
    graphs: int
    plain_graphs: int
    expected_blocks: tuple[str, ...]
    computed_error: float
    disabled_error: float
    reused_error: float
    change: float
    actions: str
    bytes_held: int
    warnings: tuple[str, ...]


def examine(spec: Model, inner: str = "eager") -> Examination:
    """Compiles a fresh model and compares: computed steps and a disabled cache with plain eager, the schedule "compute,
    reuse, compute, reuse" with the eager oracle."""
    torch._dynamo.reset()
    dit_compile.reset()
    with torch.no_grad(), torch._dynamo.config.patch(**spec.dynamo), _listening() as said:
        switch = _Switch(inner)
        model = torch.compile(spec.build(), backend=switch, fullgraph=spec.fullgraph, dynamic=False)
        with dit_compile.session("computed"):
            computed = _run(spec, model)
        reports = dit_compile.graphs()
        with dit_compile.session("alternating", step_mask=ALTERNATING):
            reused = _run(spec, model)
            held = sum(stats.bytes_held for stats in dit_compile.stats(model)[-1:])
        actions = "".join(step.action[0] for stats in dit_compile.stats(model)[-1:] for step in stats.steps)
        warned = tuple(said)

        switch.enabled = False
        disabled = _run(spec, model)
        plain_graphs = _Counter()
        plain = spec.build()
        if not spec.fullgraph:
            torch._dynamo.reset()  # what was compiled above counts towards Dynamo's limit of recompilations
            _run(spec, torch.compile(spec.build(), backend=plain_graphs, dynamic=False))
        wanted = _run(spec, plain)
        oracle = EagerOracle(plain, spec)
        schedule = [oracle.step(reuse=digit == "0", **spec.call(i, steps=STEPS)) for i, digit in enumerate(ALTERNATING)]
    cached = [report for report in reports if report.refusal is None]
    return Examination(
        report=(cached or reports)[0],
        graphs=len(reports),
        plain_graphs=plain_graphs.graphs if not spec.fullgraph else 1,
        expected_blocks=block_names(plain, spec),
        computed_error=max(map(error, computed, wanted)),
        disabled_error=max(map(error, disabled, wanted)),
        reused_error=max(map(error, reused, schedule)),
        change=error(schedule[1], wanted[1]),
        actions=actions,
        bytes_held=held,
        warnings=warned,
    )


@dataclass(frozen=True)
class EntryExamination:
    """What ``dit_compile.compile`` makes of a model; fields as in ``Examination``."""

    reports: list[GraphReport]
    expected_blocks: tuple[str, ...]
    computed_error: float
    reused_error: float
    actions: str


def examine_entry(spec: Model) -> EntryExamination:
    """A fresh model through ``dit_compile.compile``, without a setting of Dynamo's, compared as ``examine`` does."""
    torch._dynamo.reset()
    dit_compile.reset()
    with torch.no_grad(), _listening():
        plain = spec.build()
        wanted = _run(spec, plain)
        oracle = EagerOracle(plain, spec)
        schedule = [oracle.step(reuse=digit == "0", **spec.call(i, steps=STEPS)) for i, digit in enumerate(ALTERNATING)]
        model = dit_compile.compile(
            spec.build(), inner="eager", policy="mask", forecast="reuse", fn=1, bn=0, step_mask="1" * STEPS
        )
        with dit_compile.session("first"):
            _run(spec, model)  # a call may run uncompiled, to fill what the model makes once
        with dit_compile.session("computed"):
            computed = _run(spec, model)
        with dit_compile.session("alternating", step_mask=ALTERNATING):
            reused = _run(spec, model)
        actions = "".join(step.action[0] for stats in dit_compile.stats(model)[-1:] for step in stats.steps)
    return EntryExamination(
        reports=dit_compile.graphs(),
        expected_blocks=block_names(plain, spec),
        computed_error=max(map(error, computed, wanted)),
        reused_error=max(map(error, reused, schedule)),
        actions=actions,
    )


def block_names(model: torch.nn.Module, spec: Model) -> tuple[str, ...]:
    """Dotted names of the chain's blocks as the backend should find them."""
    names = {module: name for name, module in model.named_modules()}
    return tuple(names[block] for block in chain_blocks(model, spec))


def error(got: Any, wanted: Any) -> float:
    """Largest difference of all float tensors in two outputs, relative to the largest value of each."""
    pairs = zip(_floats(got), _floats(wanted), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in pairs)


def _floats(output: Any) -> list[Tensor]:
    return [leaf.float() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _run(spec: Model, model: Callable[..., Any]) -> list[Any]:
    return [model(**spec.call(index, steps=STEPS)) for index in range(STEPS)]


class _Switch:
    """A backend that compiles each graph twice, with the cache and with ``enabled=False``, and runs the one that is
    asked for: Dynamo's tracing, nearly all of the time that a tiny model takes, is done once."""

    reset = staticmethod(dit_cache.reset)  # what torch._dynamo.reset() asks for

    def __init__(self, inner: str) -> None:
        self.enabled = True
        self._on = {
            "inner": inner, "policy": "mask", "forecast": "reuse", "fn": 1, "bn": 0, "step_mask": "1" * STEPS
        }  # fmt: skip
        self._off = {"inner": "eager", "enabled": False}  # with Inductor it is plain Inductor, nothing of ours

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        cached = dit_cache(gm, example_inputs, options=self._on)
        plain = dit_cache(gm, example_inputs, options=self._off)
        return lambda *args: (cached if self.enabled else plain)(*args)


class _Counter:
    """A backend that counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return gm.forward


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects the backend's warnings."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("dit_compile")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        log.removeHandler(handler)
