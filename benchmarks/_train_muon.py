"""Muon, the optimizer of the matrices inside the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with an orthogonalised update, all matrices of one shape together.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                updates = orthogonalised(torch.stack([self._push(m, group["momentum"]) for m in matrices]))
                torch._foreach_sub_(list[torch.Tensor](matrices), list(updates * rate))

    def _push(self, matrix: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Add the gradient to the running mean; the mean as it will be with the same gradient once more."""
        assert matrix.grad is not None
        mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def orthogonalised(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """A stack of matrices (N, R, C) with all singular values pushed towards one (quintic Newton-Schulz)."""
    if stack.shape[1] > stack.shape[2]:
        return orthogonalised(stack.mT, rounds).mT
    x: torch.Tensor = stack / (torch.linalg.matrix_norm(stack, keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x
