"""Reads the solver's update rule of each step off recorded latents and outputs.

For every step the coefficients of x_{t+1} = sum_k c_k term_k (plans/update_rule.py) are fitted by least squares over
all recordings, with more and more terms until the rule holds: Euler, scaled latents, two-step and two-stage solvers.
Noise that a solver adds, and guidance that rescales, leave an error that no terms explain: then there is no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..plans import Term, UpdateRule
from .recording import Recording

LARGEST_ERROR = 0.05  # of |x_{t+1} - x_t|: guidance that rescales a little is nearly linear
ROUNDING = 8.0  # times what rounding the latents to their dtype gives
MOST_LAG = 2


def update_rules(recordings: Sequence[Recording]) -> list[UpdateRule | None]:
    """The rules of all steps but the last (its result is not seen by the model); None where there is none."""
    count = len(recordings[0].steps) - 1
    if not all(recording.solver_is_seen for recording in recordings):
        return [None] * count
    return [_rule(recordings, step) for step in range(count)]


def _rule(recordings: Sequence[Recording], step: int) -> UpdateRule | None:
    now, before = _stacked(recordings, step + 1, None), _stacked(recordings, step, None)
    moved = (now - before).norm().item()
    if not moved > 0:
        return None
    start = recordings[0].start
    assert start is not None
    eps = torch.finfo(start.dtype).eps / 4
    allowed = max(LARGEST_ERROR, ROUNDING * eps * now.norm().item() / moved)
    for terms, fixed in _candidates(recordings[0], step):
        columns = torch.stack([_stacked(recordings, step - term.lag, term.source) for term in terms], dim=1)
        right = now - before if fixed else now
        scale = columns.norm(dim=0).clamp_min(1e-30)
        solved = torch.linalg.lstsq(columns / scale, right[:, None], driver="gelsd").solution[:, 0] / scale
        error = (right - columns @ solved).norm().item() / moved
        if error <= allowed:
            coefficients = tuple(solved.tolist())
            if fixed:
                terms, coefficients = (Term(0, None), *terms), (1.0, *coefficients)
            return UpdateRule(tuple(terms), coefficients, error)
    return None


def _candidates(recording: Recording, step: int) -> Iterator[tuple[tuple[Term, ...], bool]]:
    """Sets of terms, simplest first; True: besides x_t with the coefficient 1."""
    outputs = [
        tuple(Term(lag, source) for source in range(len(recording.steps[step - lag].outputs)))
        for lag in range(min(step, MOST_LAG) + 1)
    ]
    yield outputs[0], True
    yield (Term(0, None), *outputs[0]), False
    for lags in range(2, len(outputs) + 1):
        these = tuple(term for lag in range(lags) for term in outputs[lag])
        yield (Term(0, None), *these), False
        yield (*(Term(lag, None) for lag in range(lags)), *these), False


def _stacked(recordings: Sequence[Recording], step: int, source: int | None) -> Tensor:
    """One term of all recordings, float64, shape (prompts * n,)."""
    found = [one.steps[step] for one in recordings]
    return torch.cat([_term(one.latents, one.outputs, source) for one in found]).double()


def _term(latents: Tensor | None, outputs: Sequence[Tensor], source: int | None) -> Tensor:
    if source is not None:
        return outputs[source]
    assert latents is not None
    return latents


def next_latents(rule: UpdateRule, latents: Sequence[Tensor], outputs: Sequence[Sequence[Tensor]]) -> Tensor:
    """x_{t+1} by ``rule``, float32; ``latents`` and ``outputs`` are those of all steps up to t."""
    found = torch.zeros_like(latents[-1], dtype=torch.float32)
    for term, coefficient in zip(rule.terms, rule.coefficients, strict=True):
        place = -1 - term.lag
        found += coefficient * _term(latents[place], outputs[place], term.source).float()
    return found
