"""Which steps to compute: exact dynamic programming over a Gram matrix.

All that is needed of the calibration runs are the inner products G of what the model returns, of all steps and
sources (branches of guidance). Step t adds sum_b a_t^b v_t^b to the latents, with v_t^b its outputs and a_t^b their
coefficients in the solver's rule. A step that is not computed is forecast from the last ``LOOK_BACK`` computed steps s;
its error

    e_t = sum_b a_t^b (v_t^b - sum_s w_s^b v_s^b),    sum_s w_s^b = 1

is what the best weights w leave, which G tells. Errors of one gap point the same way and the solver adds them up, so a
gap costs |sum_t e_t|^2. The state of the recursion is the last ``LOOK_BACK`` computed steps, which makes it exact: the
cost of a gap depends on all of them. The first step and the last are always computed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOOK_BACK = 3
FIRST = 1  # computed at the beginning
RIDGE = 1e-6  # of the mean squared norm
MAX_GAP = 10  # steps that may be forecast in a row


@dataclass(frozen=True)
class Schedules:
    """For each number of computed steps the best set of them, and its cost."""

    steps: dict[int, tuple[int, ...]]
    costs: dict[int, float]


def schedules(gram: Tensor, scales: Tensor, *, max_gap: int = MAX_GAP, forced: Collection[int] = ()) -> Schedules:
    """The best computed steps for every number of them, from 2 on.

    Args:
        gram: float64, shape (S * T, S * T), index s * T + t: inner products of the outputs v_t^s.
        scales: float64, shape (S, T): the coefficients a_t^s.
        max_gap: steps that may be forecast in a row.
        forced: steps that must be computed.
    """
    total = scales.shape[1]
    costs = gap_costs(gram, scales, max_gap)
    for step in forced:
        costs[:, :, : step + 1, step + 2 :] = torch.inf  # from a step before it to one behind it
    size = total + 1  # index 0: no such step, because the generation has just begun
    best = torch.full((size,) * LOOK_BACK, torch.inf, dtype=torch.float64)
    best[(0,) * (LOOK_BACK - FIRST) + tuple(range(1, FIRST + 1))] = 0.0
    back: list[Tensor] = []
    found: dict[int, tuple[int, ...]] = {}
    values: dict[int, float] = {}
    for count in range(FIRST + 1, total + 1):
        ways = best[..., None] + costs[..., :size]  # (j1, ..., jm, k)
        best, came_from = ways.min(dim=0)
        back.append(came_from)
        value, place = best[..., total].reshape(-1).min(dim=0)
        if torch.isfinite(value):
            state = [*_unravel(int(place), best.shape[:-1]), total]
            found[count], values[count] = _path(back, state), float(value)
    return Schedules(found, values)


def _unravel(place: int, shape: Sequence[int]) -> list[int]:
    indices: list[int] = []
    for size in reversed(shape):
        indices.insert(0, place % size)
        place //= size
    return indices


def _path(back: Sequence[Tensor], state: list[int]) -> tuple[int, ...]:
    """The computed steps that lead to ``state``."""
    path = list(state)
    for came_from in reversed(back):
        path.insert(0, int(came_from[tuple(path[:LOOK_BACK])]))
    return tuple(step - 1 for step in path if step > 0)


def gap_costs(gram: Tensor, scales: Tensor, max_gap: int) -> Tensor:
    """``costs[j1, ..., jm, k]``: of forecasting all steps between jm and k from the steps j1 to jm; infinite where they
    do not rise. Indices are steps plus one, 0 stands for no step."""
    total = scales.shape[1]
    size = total + 1
    costs = torch.full((size,) * (LOOK_BACK + 1), torch.inf, dtype=torch.float64)
    for newest in range(FIRST, total):
        states = torch.tensor(_states(newest))
        error = torch.zeros(len(states), gram.shape[0], dtype=torch.float64)  # the gap's, in outputs
        for k in range(newest + 1, min(newest + 1 + max_gap, total) + 1):
            place = (*states.unbind(1), torch.full((len(states),), k))
            costs[place] = ((error @ gram) * error).sum(1).clamp_min(0)
            error = error + _errors(gram, scales, states, k)
    return costs


def _states(newest: int) -> list[list[int]]:
    """All rising states that end at ``newest``, padded with 0 at the front where fewer steps have been computed; then
    the first of them is step 0."""
    states = [[0, 1, newest]] if newest > 1 else [[0, 0, 1]]
    return states + [[oldest, older, newest] for older in range(2, newest) for oldest in range(1, older)]


def _errors(gram: Tensor, scales: Tensor, states: Tensor, k: int) -> Tensor:
    """For each state the error of forecasting step ``k - 1``, in outputs: shape (states, S * T)."""
    sources, total = scales.shape
    offsets = torch.arange(sources) * total
    places = (states - 1).clamp_min(0)
    columns = (offsets[None, :, None] + places[:, None, :]).flatten(1)  # (states, S * m)
    factors = scales[:, k - 1].repeat_interleave(LOOK_BACK)
    targets = torch.zeros(gram.shape[0], dtype=torch.float64)
    targets[offsets + k - 1] = scales[:, k - 1]
    inner = gram[columns[:, :, None], columns[:, None, :]] * factors[:, None] * factors
    right = (gram @ targets)[columns] * factors
    weights = best_weights(inner, right, (states > 0).repeat(1, sources), sources)
    error = targets.expand(len(states), -1).clone()
    return error.scatter_add(1, columns, -weights * factors)


def best_weights(inner: Tensor, right: Tensor, known: Tensor, sources: int) -> Tensor:
    """Weights w that minimise w' inner w - 2 w' right + ridge |w|^2, with the sum 1 for each source; 0 where not
    ``known``. All of shape (states, S * m), ``inner`` one dimension more; float64."""
    count, size = right.shape
    real = known.double()
    ridge = RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-300)
    sums = torch.eye(sources, dtype=torch.float64).repeat_interleave(size // sources, dim=1)  # (S, S * m)
    system = torch.zeros(count, size + sources, size + sources, dtype=torch.float64)
    system[:, :size, :size] = inner * real[:, :, None] * real[:, None, :]
    system[:, :size, :size] += torch.diag_embed(torch.where(known, ridge, torch.ones_like(ridge)))
    system[:, size:, :size] = sums * real[:, None, :]
    system[:, :size, size:] = system[:, size:, :size].transpose(1, 2)
    vector = torch.cat([right * real, torch.ones(count, sources, dtype=torch.float64)], dim=1)
    scale = system[:, :size, :size].diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-300)
    system[:, :size, :size] /= scale  # the multipliers of the sums take up the rest
    vector[:, :size] /= scale[:, 0]
    return torch.linalg.solve(system, vector[..., None])[:, :size, 0]
