"""Every test begins without compiled code, state, settings or remembered warnings."""

import pytest
import torch

import dit_compile


@pytest.fixture(autouse=True)
def clean():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit_compile.reset()
    yield
    for name in ("enabled", "residual_diff_threshold", "warmup_steps", "policy", "step_mask", "preset", "forecast"):
        dit_compile.configure(**{name: None})
