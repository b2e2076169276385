"""HOW to reuse: one small class per forecaster, each a function from the steps of the snapshots to weights.

DMD (cache-dit's ``dmd``) is missing on purpose: every fit is a singular value decomposition of the snapshots, so its
weights depend on the data and are not known from a few numbers.
"""

from . import adams_bashforth, dicache, foca, hicache, meancache, newton, reuse, spectrum, taylorseer
from .base import FORECASTERS, MAX_SNAPSHOTS, Forecaster, register_forecaster
from .checked import ForecastError, checked_weights, damped, wanted_snapshots

__all__ = [
    "FORECASTERS", "MAX_SNAPSHOTS", "ForecastError", "Forecaster", "adams_bashforth", "checked_weights", "damped",
    "dicache", "foca", "hicache", "meancache", "newton", "register_forecaster", "reuse", "spectrum", "taylorseer",
    "wanted_snapshots",
]  # fmt: skip
