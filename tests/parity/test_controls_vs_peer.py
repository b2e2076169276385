"""ControlNets beside cache-dit, with nothing cached: it loses their residuals, the backend does not.

cache-dit replaces a block list by one large block, so a loop that adds a sample behind every block adds one, once. Of
diffusers' ControlNets it has a patch for Qwen-Image's alone, for those who name its pipeline.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from control_inputs import WITH_NETS, NetLoop
from parity_support.peer import PeerUnavailable, ask

VERSION = "1.0.14"
# cache-dit runs beside. The backend's part alone is in tests/coverage/test_controlnets.py.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor] | str]:
    """What cache-dit returns for each model at each step, or what it raises."""
    folder = tmp_path_factory.mktemp("controls")
    try:
        ask(VERSION, folder, "parity_support.controls_worker", folder / "answer.pt")
    except PeerUnavailable as reason:
        pytest.skip(str(reason))
    return torch.load(folder / "answer.pt")


@torch.no_grad()
@pytest.mark.parametrize("cls", WITH_NETS)
def test_a_controlled_model_that_computes_every_step(cls: str, peer: dict[str, list[Tensor] | str]) -> None:
    """cache-dit 1.0.14 is off by about as much as the ControlNet does at all; the backend equals eager."""
    loop = NetLoop(cls)
    plain = loop.controlled.spec.build()
    options = {"inner": "eager", "residual_diff_threshold": 0}
    model = torch.compile(
        loop.controlled.spec.build(), backend="dit_cache", fullgraph=True, dynamic=False, options=options
    )
    theirs = peer[cls]
    for index in range(3):
        wanted = plain(**loop.call(index))[0]
        effect = float((plain(**loop.call(index, control=0.0))[0] - wanted).abs().max())
        torch.testing.assert_close(model(**loop.call(index))[0], wanted, rtol=1e-5, atol=1e-5)
        if isinstance(theirs, str):
            assert "context_pre_only" in theirs, "SD3's loop asks each block for it"
        else:
            assert float((theirs[index] - wanted).abs().max()) > effect / 3 > 0.1
