"""Whether the solver updates the latents as it did when a plan was made, which guidance and step sizes are part of.

For the first steps the plan knows the rule x_{t+1} = sum_k c_k term_k (plans/update_rule.py). With r the difference of
the two sides on a sample of elements, A the terms and d = x_{t+1} - x_t, the share of r that other coefficients would
explain is

    |A A^+ r|^2 / |d|^2

Rounding of the latents has next to no such share. One transfer per step, which nobody waits for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..plans import UpdateRule
from .side_inputs import thinned
from .transfer import Outbox, Ticket

SAMPLE = 1 << 12
TOLERANCE = 0.01  # of |d|: a guidance of 2.1 in the place of 2 is about twice that


class Matching(NamedTuple):
    """Which of the latents the solver updates, and with which result: all of it, or the first half of dimension ``dim``
    (a model may return as many values again, for the variance)."""

    latents: int
    output: int
    dim: int | None = None

    def of(self, results: Any) -> Tensor:
        """The output among ``results`` of a call."""
        found: Tensor = (results if isinstance(results, (tuple, list)) else [results])[self.output]
        return found if self.dim is None else found.narrow(self.dim, 0, found.shape[self.dim] // 2)


def matching(moving: Sequence[Tensor], results: Any) -> Matching | None:
    """The first of the latents and the first result that fit each other; None where none do."""
    outputs = results if isinstance(results, (tuple, list)) else [results]
    for i, latents in enumerate(moving):
        for j, output in enumerate(outputs):
            if isinstance(output, Tensor) and output.is_floating_point() and output.ndim == latents.ndim:
                pairs = enumerate(zip(output.shape, latents.shape, strict=True))
                differ = [dim for dim, (mine, wanted) in pairs if mine != wanted]
                if not differ:
                    return Matching(i, j)
                if len(differ) == 1 and output.shape[differ[0]] == 2 * latents.shape[differ[0]] and differ[0]:
                    return Matching(i, j, differ[0])
    return None


def parts_of(tensor: Tensor, count: int, sample: int = SAMPLE) -> list[Tensor]:
    """A float32 sample of each of ``count`` equal parts of the batch."""
    return [thinned(part, sample).to(torch.float32, copy=True) for part in tensor.chunk(count)]


class UpdateCheck:
    """Of one generation: ``rules`` are those of its first steps, ``parts`` the branches in one batch."""

    def __init__(self, rules: Sequence[UpdateRule | None], parts: int) -> None:
        self._rules, self._parts = rules, parts
        self._latents: list[Tensor] = []  # samples, by step
        self._outputs: list[list[Tensor]] = []  # by step and source
        self._pending: list[tuple[UpdateRule, Ticket]] = []

    def begin(self, step: int, moving: Sequence[Tensor], place: Matching | None, outbox: Outbox) -> None:
        """The first call of ``step`` begins; ``place`` is what ``matching`` found at the first step."""
        if len(self._latents) != step or step > len(self._rules) or (step and place is None):
            return
        at = 0 if place is None else place.latents
        if at >= len(moving):
            return
        self._latents.append(parts_of(moving[at], self._parts)[0])
        self._outputs.append([])
        rule = self._rules[step - 1] if step else None
        if rule is not None and (columns := list(self._columns(rule, step - 1))) and len(columns) == len(rule.terms):
            now, before = self._latents[step], self._latents[step - 1]
            wrong = now - sum(c * column for c, column in zip(rule.coefficients, columns, strict=True))
            vectors = torch.stack([*columns, wrong, now - before])
            self._pending.append((rule, outbox.put([(vectors @ vectors.T).reshape(-1)])))

    def end(self, step: int, output: Tensor) -> None:
        """A call of ``step`` has returned ``output``."""
        if step < len(self._rules) and len(self._outputs) == step + 1:
            self._outputs[step] += parts_of(output, self._parts)

    def _columns(self, rule: UpdateRule, step: int) -> Iterator[Tensor]:
        for lag, source in rule.terms:
            known = self._latents if source is None else self._outputs
            if lag <= step < len(known):
                if source is None:
                    yield self._latents[step - lag]
                elif source < len(self._outputs[step - lag]):
                    yield self._outputs[step - lag][source]

    def arrived(self) -> bool:
        return all([ticket.ready() for _, ticket in self._pending])  # noqa: C419 - no generator: at every call

    def deviation(self, *, wait: bool) -> float | None:
        """The largest deviation that has not been asked for yet, as a share of |d|; None where there is nothing new."""
        found = None
        while self._pending and (wait or self._pending[0][1].ready()):
            rule, ticket = self._pending.pop(0)
            found = max(found or 0.0, _deviation(ticket.values(), rule))
        return found


def _deviation(values: Sequence[float], rule: UpdateRule) -> float:
    size = math.isqrt(len(values))
    gram = torch.tensor(values, dtype=torch.float64).reshape(size, size)
    moved = gram[-1, -1].item()
    if not (math.isfinite(moved) and moved > 0):
        return math.inf
    terms, right = gram[:-2, :-2], gram[:-2, -2]
    scale = terms.diagonal().clamp_min(1e-30).rsqrt()
    solved = torch.linalg.lstsq(terms * scale * scale[:, None], (right * scale)[:, None], driver="gelsd").solution
    explained = (right * scale) @ solved[:, 0]
    return math.sqrt(max(explained.item(), 0.0) / moved)
