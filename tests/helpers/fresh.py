"""A fixture that test folders import into their conftest: ``from fresh import clean``."""

import pytest
import torch

import dit_compile
from dit_compile.api import process_overrides
from dit_compile.debug.messages import forget_warnings
from dit_compile.forecast import FORECASTERS
from dit_compile.policy import POLICIES


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Begins and ends without compiled code, state, settings, plug-ins or remembered warnings."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit_compile.reset()
    forget_warnings()
    for registry in (POLICIES, FORECASTERS):  # what a test registers is forgotten with it
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield
    dit_compile.reset()
    dit_compile.configure(**dict.fromkeys(process_overrides()))
