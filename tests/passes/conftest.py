"""Fixtures that show what Dynamo hands to the passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import GraphModule


@pytest.fixture
def capture() -> Callable[..., GraphModule]:
    """``capture(model, *inputs, **kwargs)`` -> the graph of the last compilation."""

    def run(model: torch.nn.Module, *inputs: Any, dynamic: bool | None = None, **kwargs: Any) -> GraphModule:
        graphs = []

        def record(gm: GraphModule, example_inputs: Any) -> Any:
            graphs.append(gm)
            return gm.forward

        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model, backend=record, fullgraph=True, dynamic=dynamic)(*inputs, **kwargs)
        return graphs[-1]

    return run
