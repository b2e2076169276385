"""A demo result that nobody had to compute."""

import numpy as np
import pytest

from dit_compile.demo.result import Compile, DemoResult, Drawing, Reuse, Settings


@pytest.fixture
def made_up() -> DemoResult:
    """Two random pictures per row; the cached run takes half the time of the uncached one."""
    random = np.random.default_rng(0)

    def drawing(steps: int, seconds: float, *psnr: float) -> Drawing:
        pictures = random.uniform(-0.5, 0.5, (2, 32, 32, 3)).astype(np.float32)
        return Drawing(steps, (seconds, seconds), pictures, psnr)

    return DemoResult(
        settings=Settings(
            prompts=("fox", "crown"),
            seed=0,
            steps=28,
            guidance=2.0,
            inner="inductor",
            preset="balanced",
            config="F1 B0 W2 C2 t0.12 foca dbcache",
            device="cpu, 2 threads",
            torch="2.13.0",
            diffusers="0.42.1",
        ),
        compile_plain=Compile(60.0, from_disk=False),
        compile_cached=Compile(30.0, from_disk=True),
        uncached=drawing(28, 1.0),
        cached=drawing(28, 0.5, 47.0, 49.0),
        reuse=Reuse(15.0, 14.25, bytes_held=147456, host_reads=34),
        same_time=drawing(14, 0.5, 43.0, 44.0),
        same_cost=drawing(13, 0.47, 42.0, 43.0),
    )
