"""Plan files: which steps are computed, and with which weights the others are forecast."""

from .part import Conditions, Cut, Forecast, Part
from .plan import Plan, PlanError
from .update_rule import Term, UpdateRule

__all__ = ["Conditions", "Cut", "Forecast", "Part", "Plan", "PlanError", "Term", "UpdateRule"]
