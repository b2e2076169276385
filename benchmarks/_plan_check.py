"""A plan on a GPU: made, and run with and without CUDA graphs. A section of gpu_check.py."""

import time
from statistics import median
from typing import Any

import torch
from _cases import DEVICE
from rich.console import Console
from rich.table import Table

console = Console()
PROMPTS = (
    "cat",
    "panda on pink",
    "earth on black",
    "sunflower on blue",
    "pizza",
    "key on purple",
    "owl on green",
    "crown",
)
EQUAL_DB = 60.0  # pictures with and without CUDA graphs


def plan(device: str = DEVICE, inner: str = "inductor", repeats: int = 3) -> tuple[Any, bool]:
    """The bundled model: a plan for 36% of the blocks, its figures, and seconds per picture beside the preset.

    Fine when the plan is in force in every way of running it, waits for the device at two steps at most, and gives the
    same pictures with CUDA graphs.
    """
    import dit_compile
    from dit_compile.demo.codec import decode_float
    from dit_compile.demo.pipeline import generate, load_pipeline
    from dit_compile.demo.result import psnr

    pipe = load_pipeline(device)
    model = pipe.transformer

    def draw(prompt: str, seed: int) -> Any:
        return decode_float(generate(pipe, [prompt], [seed]))

    start = time.perf_counter()
    made = dit_compile.tune(
        draw, [(one, 100 + i) for i, one in enumerate(PROMPTS)], model=model, cost=0.36, inner=inner
    )
    seconds = time.perf_counter() - start
    ways: dict[str, dict[str, Any]] = {
        "every step computed": {"enabled": False},
        "preset": {},
        "plan": {"plan": made},
        "plan, CUDA graphs": {"plan": made, "cuda_graphs": "on"},
    }
    table = Table("way", "s per picture", "host reads", "plan", title=f"a plan, made in {seconds:.0f} s")
    found: dict[str, Any] = {}
    pictures = {}
    for name, settings in ways.items():
        torch.compiler.reset()
        dit_compile.compile(pipe, inner=inner, **settings)
        draw(PROMPTS[0], 7), draw(PROMPTS[0], 7)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            pictures[name] = draw(PROMPTS[0], 7)
            times.append(time.perf_counter() - begin)
        last = dit_compile.stats(model)[-1:]
        reads, text = (last[0].host_reads, last[0].plan) if last else (0, "")
        found[name] = {"seconds": median(times), "host_reads": reads, "plan": text}
        table.add_row(name, f"{median(times):.4f}", str(reads), text)
    console.print(table)
    alike = psnr(pictures["plan"], pictures["plan, CUDA graphs"])[0]
    found |= {"tuning_seconds": seconds, "figures": dict(made.figures), "db_with_and_without_graphs": min(alike, 999.0)}
    planned = [found[name] for name in ways if name.startswith("plan")]
    fine = all("in force" in one["plan"] and one["host_reads"] <= 2 for one in planned) and alike >= EQUAL_DB
    return found, fine
