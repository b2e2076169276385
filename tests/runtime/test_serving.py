"""The recipe of docs/serving.md, run as it stands there: eight requests at once, each as if it were alone."""

import json
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import dit_compile
from dit_compile.api import table

fastapi = pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ORDERS = [
    {"prompts": prompts, "seed": seed, "steps": steps, "threshold": threshold}
    for seed, (prompts, steps, threshold) in enumerate(
        [
            (["fox"], 8, 0.3), (["earth"], 10, 0.5), (["panda", "fox"], 8, 0.3), (["fox"], 12, 0.0),
            (["panda"], 9, 0.9), (["earth", "fox"], 10, 0.5), (["fox", "panda"], 8, 0.2), (["fox"], 11, 0.4),
        ]
    )
]  # fmt: skip


def recipe():
    text = PAGE.read_text(encoding="utf-8").split("## FastAPI")[1]
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


@pytest.fixture
def address(monkeypatch):
    """The recipe's server on a free port of this machine; torch compiles without Inductor."""
    monkeypatch.setenv("DIT_CACHE_INNER", "eager")
    names = {"__name__": "recipe"}
    exec(compile(recipe(), str(PAGE), "exec"), names)
    server = uvicorn.Server(uvicorn.Config(names["app"], port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    [port] = {socket.getsockname()[1] for one in server.servers for socket in one.sockets}
    yield f"http://127.0.0.1:{port}/draw"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_eight_requests_at_once_are_as_if_alone(address):
    def draw(order):
        request = urllib.request.Request(address, json.dumps(order).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    with ThreadPoolExecutor(len(ORDERS)) as pool:
        together = list(pool.map(draw, ORDERS))
    alone = [draw(order) for order in ORDERS]
    for one, other, order in zip(together, alone, ORDERS, strict=True):
        torch.testing.assert_close(torch.tensor(one["latents"]), torch.tensor(other["latents"]), rtol=1e-4, atol=1e-5)
        assert one["reused"] == other["reused"]
        assert (one["reused"] > 0) == (order["threshold"] > 0)
    assert not [name for _, name in table._states if name.startswith("request-")]
    assert dit_compile.stats()
