"""What a call costs the host beside the model's own operators: function calls, Python's and C's, as cProfile counts.

A model with one region, eager pieces, compiled with backend="dit_cache" and with backend="eager"; of the former also
how often each file of the runtime is entered from another file during one call.

    python benchmarks/host_calls.py --out benchmarks/results/host_calls_cpu.json
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Annotated, Any

import torch
import typer
from _bundled import write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dit_compile

STEPS = 40
RUNTIME = str(Path(dit_compile.__file__).parent / "runtime")
SETTINGS = {
    "inner": "eager", "residual_diff_threshold": 0.9, "warmup_steps": 4, "max_continuous_cached_steps": 2,
}  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, h: Tensor, temb: Tensor, prompt: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(h) + temb + prompt)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        h, temb = x, torch.sin(t / 1000).reshape(-1, 1, 1)
        for block in self.blocks:
            h = block(h, temb, prompt)
        return h


def calls(run: Callable[[], Any]) -> int:
    profile = cProfile.Profile()
    profile.runcall(run)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def entries(run: Callable[[], Any]) -> Counter[str]:
    """Of each file of the runtime, how often it is entered from another file."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        name, caller = frame.f_code.co_filename, frame.f_back
        while caller is not None and caller.f_code.co_filename.startswith("<"):  # the __init__ of a dataclass
            caller = caller.f_back
        if event == "call" and name.startswith(RUNTIME) and caller is not None:
            found[Path(name).name] += caller.f_code.co_filename != name

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@torch.no_grad()
def entries_and_calls() -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plain = Model().eval()
    models = {
        "eager": torch.compile(plain, backend="eager"),
        "dit_cache": torch.compile(plain, backend="dit_cache", options=SETTINGS),
    }
    prompt, x, way = torch.randn(1, 1, 16), torch.randn(1, 8, 16), torch.randn(1, 8, 16)
    found: dict[str, list[int]] = {"eager": [], "compute": [], "reuse": []}
    files: dict[str, Counter[str]] = {}
    for step in range(STEPS):
        inputs = (x + 0.01 * step * way, torch.tensor([1000.0 - 20 * step]), prompt)
        found["eager"].append(calls(lambda given=inputs: models["eager"](*given)))  # type: ignore[misc]
        if step % 2:
            count = calls(lambda given=inputs: models["dit_cache"](*given))  # type: ignore[misc]
        else:
            entered = entries(lambda given=inputs: models["dit_cache"](*given))  # type: ignore[misc]
        action = dit_compile.stats(plain)[-1].steps[-1].action
        if step < SETTINGS["warmup_steps"]:
            continue  # compiles, and fills what is made once
        if step % 2:
            found[action].append(count)
        else:
            files[action] = files.get(action, Counter()) | entered
    return {
        "calls": {name: median(counts) for name, counts in found.items()},
        "entries": {action: dict(counter.most_common()) for action, counter in files.items()},
    }


def main(out: Annotated[Path | None, typer.Option(help="Write the result here, as JSON.")] = None) -> None:
    result = entries_and_calls()
    table = Table("call", "function calls", "more than eager", "files of runtime/ entered more than once")
    eager = result["calls"]["eager"]
    for name, count in result["calls"].items():
        often = [f"{file} {times}" for file, times in result["entries"].get(name, {}).items() if times > 1]
        table.add_row(name, f"{count:.0f}", f"{count - eager:.0f}", ", ".join(often))
    Console().print(table)
    write_result(out, **result)


if __name__ == "__main__":
    typer.run(main)
