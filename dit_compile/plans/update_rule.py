"""How a solver makes the next latents of earlier latents and outputs of the model, where it does so linearly.

    x_{t+1} = sum_k coefficient_k * term_k,    terms: x_{t-lag}, or an output of the model at step t-lag

Euler with classifier-free guidance g: x_{t+1} = x_t + (1 - g) d u_t + g d c_t, with d the step of sigma, u and c the
outputs of the two branches. Heun, multistep solvers and scaled latents are of this form with more terms; solvers that
add noise, and guidance that rescales, are not.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """The latents (``source`` None) or an output (``source`` counts the outputs of a step: its branches, or the parts
    of the batch that are branches) of ``lag`` steps ago."""

    lag: int
    source: int | None


class UpdateRule(NamedTuple):
    """The rule of one step. ``error`` is |x_{t+1} - prediction| / |x_{t+1} - x_t| over the calibration runs."""

    terms: tuple[Term, ...]
    coefficients: tuple[float, ...]
    error: float

    def of(self, source: int) -> float:
        """The coefficient of an output of this step."""
        found = dict(zip(self.terms, self.coefficients, strict=True))
        return found.get(Term(0, source), 0.0)
