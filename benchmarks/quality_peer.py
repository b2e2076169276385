"""cache-dit beside us: a process of its own, with its own version installed into a folder that is thrown away.

Run as a program, this file is that process: a line of JSON in (settings, prompts, steps, guidance), a line of JSON out
(pictures and costs). cache-dit decides for a batch as a whole, so each picture is drawn alone.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quality_model import Model

VERSION = "1.5.3"
PARITY = Path(__file__).parents[1] / "tests" / "parity"


class Peer:
    """The other process, started when first needed, and the model it loads."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._process: subprocess.Popen[str] | None = None
        self._site: tempfile.TemporaryDirectory[str] | None = None

    def draw(self, settings: dict[str, Any], scene: Any) -> tuple[list[Any], list[float]]:
        """Pictures (N, S, S, 3) as nested lists and what each has cost in full steps.

        Raises ``PeerUnavailable`` where this version of cache-dit cannot be installed.
        """
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        job = {
            "settings": settings,
            "prompts": scene.of(self.model.prompts),
            "steps": scene.steps,
            "guidance": scene.guidance,
        }
        print(json.dumps(job), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"cache-dit {VERSION} ended with code {process.wait()}; its message is above")
        pictures, costs = json.loads(answer)
        return pictures, costs

    def _start(self) -> subprocess.Popen[str]:
        sys.path.append(str(PARITY))
        from parity_support.peer import package_path

        self._site = tempfile.TemporaryDirectory()
        paths = [*package_path(VERSION, Path(self._site.name)), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.model.folder), self.model.device],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CACHE_DIT_LOG_LEVEL": "ERROR"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._process


def serve(folder: Path, device: str) -> None:
    """Answers jobs until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not come between answers
    import cache_dit
    import torch
    from quality_model import Model

    if cache_dit.__version__ != VERSION:
        raise SystemExit(f"wanted cache-dit {VERSION}, found {cache_dit.__version__}")
    torch.set_num_threads(1)
    model = Model(folder, device)
    pipe = model.load()
    for line in sys.stdin:
        print(json.dumps(_draw(pipe, model.codec, **json.loads(line))), file=answers, flush=True)


def _draw(
    pipe: Any, codec: Any, settings: dict[str, Any], prompts: list[str], steps: int, guidance: float
) -> tuple[Any, Any]:
    """All prompts, one by one, with seeds 0, 1, 2, ..."""
    import cache_dit
    from cache_dit import DBCacheConfig, FoCaCalibratorConfig, TaylorSeerCalibratorConfig
    from diffusers import FluxPipeline

    from dit_compile.demo.codec import decode_float
    from dit_compile.demo.pipeline import generate

    settings = dict(settings)
    order, foca = settings.pop("taylorseer", None), settings.pop("foca", False)
    calibrator = FoCaCalibratorConfig() if foca else None
    if order:
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order)
    # cache-dit wraps ``__call__`` of the pipeline's class, so every configuration needs a class of its own
    kind = type("FluxPipeline", (FluxPipeline,), {})
    cached = kind(**{**pipe.components, "transformer": copy.deepcopy(pipe.transformer)})
    cached.set_progress_bar_config(disable=True)
    branches = 1 if guidance == 1 else 2
    cache_dit.enable_cache(
        cached,
        cache_config=DBCacheConfig(**settings, enable_separate_cfg=branches == 2),
        calibrator_config=calibrator,
    )
    blocks = len(pipe.transformer.transformer_blocks) + len(pipe.transformer.single_transformer_blocks)
    skipped = blocks - settings["Fn_compute_blocks"] - settings["Bn_compute_blocks"]
    pictures, costs = [], []
    for seed, prompt in enumerate(prompts):
        pictures += decode_float(generate(cached, [prompt], [seed], steps, guidance, config=codec)).tolist()
        (context,) = cached._context_manager._cached_context_manager.values()  # FLUX's two lists are one chain in 1.5
        reused = [context.cached_steps, context.cfg_cached_steps][:branches]
        costs.append(steps - sum(map(len, reused)) * skipped / blocks / branches)
    return pictures, costs


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
