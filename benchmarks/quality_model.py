"""Which model benchmarks/quality.py measures: the bundled one, or one that train_emoji.py has trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality_grid import PROMPTS

from dit_compile.demo.codec import CodecConfig
from dit_compile.demo.pipeline import MODEL_DIR, FluxPipeline, load_pipeline, read_codec


@dataclass(frozen=True)
class Model:
    """A folder with ``transformer``, ``scheduler``, ``codec.json`` and, where it knows other prompts than the bundled
    model, ``prompts.json``; and where it draws."""

    folder: Path = MODEL_DIR
    device: str = "cpu"

    @property
    def bundled(self) -> bool:
        return self.folder.resolve() == MODEL_DIR.resolve()

    @property
    def prompts(self) -> Mapping[str, Sequence[str]]:
        """Prompts by part: "choosing" and "held out"."""
        path = self.folder / "prompts.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else PROMPTS

    @property
    def codec(self) -> CodecConfig:
        return read_codec(self.folder)

    def load(self) -> FluxPipeline:
        return load_pipeline(self.device, folder=self.folder)

    def facts(self) -> dict[str, Any]:
        """What tells results of one model from those of another; nothing for the bundled one, which is in git."""
        if self.bundled:
            return {}
        weights = (self.folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
        return {"model": self.folder.resolve().name, "weights": hashlib.sha256(weights).hexdigest()}
