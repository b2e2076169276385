"""The two tiers of tests: fast, which ``python -m pytest`` runs, and slow, for ``-m slow``. See CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def examples(fast: int, slow: int) -> pytest.MarkDecorator:
    """Parametrizes ``examples``, hypothesis' ``max_examples``: some in the fast tier, all of them in the slow one."""
    return pytest.mark.parametrize("examples", [fast, pytest.param(slow, marks=pytest.mark.slow)])


def slow_unless(fast: Callable[[Any], bool], values: Iterable[Any], name: Callable[[Any], str]) -> list[Any]:
    """Parameters of a test; those that ``fast`` does not choose are slow. ``name`` gives their ids."""
    return [pytest.param(value, id=name(value), marks=() if fast(value) else pytest.mark.slow) for value in values]
