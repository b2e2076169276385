"""HOW to reuse: one small class per forecaster, each a function from the steps of the snapshots to weights."""

from . import newton, reuse, taylorseer
from .base import FORECASTERS, MAX_SNAPSHOTS, Forecaster, register_forecaster

__all__ = ["FORECASTERS", "MAX_SNAPSHOTS", "Forecaster", "newton", "register_forecaster", "reuse", "taylorseer"]
