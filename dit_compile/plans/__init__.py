"""Plan files: which steps are computed, and with which weights the others are forecast."""

from .plan import Conditions, Cut, Forecast, Part, Plan, PlanError
from .update_rule import Term, UpdateRule

__all__ = ["Conditions", "Cut", "Forecast", "Part", "Plan", "PlanError", "Term", "UpdateRule"]
