"""A demo result that nobody had to compute, made-up emoji to train with, and the training scripts within reach."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

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


@pytest.fixture(scope="session")
def emoji_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like emoji-datasource-google, with three shapes on a transparent ground and their table."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "img" / "google" / "64"
    folder.mkdir(parents=True)
    rgba = np.zeros((3, 64, 64, 4), np.uint8)
    rgba[0, 8:56, 8:56] = (255, 0, 0, 255)
    rgba[1, 8:56, 8:32] = (0, 255, 0, 255)
    rgba[2, 8:56, 8:56] = (0, 0, 255, 255)
    rgba[2, 24:40, 24:40] = 0
    names = ("square", "left", "ring")
    for name, pixels in zip(names, rgba, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (root / "emoji.json").write_text(json.dumps([{"short_name": name, "image": f"{name}.png"} for name in names]))
    rows = ["short_name\tprompt\tcategory\tmirror", *(f"{n}\t{n} shape\tform\t{int(n == 'left')}" for n in names)]
    (root / "subjects.tsv").write_text("\n".join(rows) + "\n")
    return root
