"""WHEN to reuse: one small class per guard policy. Numbers in, a verdict with its reason out."""

from . import (
    adacache,
    dbcache,
    dbprune,
    delta_dit,
    dicache,
    easycache,
    interval,
    magcache,
    mask,
    plan,
    sencache,
    teacache,
)
from .base import POLICIES, Policy, StepView, Verdict, register_policy

__all__ = [
    "POLICIES", "Policy", "StepView", "Verdict", "adacache", "dbcache", "dbprune", "delta_dit", "dicache", "easycache",
    "interval", "magcache", "mask", "plan", "register_policy", "sencache", "teacache",
]  # fmt: skip
