"""WHEN to reuse: one small class per guard policy. Numbers in, a verdict with its reason out."""

from . import dbcache, interval, mask
from .base import POLICIES, Policy, StepView, Verdict, register_policy

__all__ = ["POLICIES", "Policy", "StepView", "Verdict", "dbcache", "interval", "mask", "register_policy"]
