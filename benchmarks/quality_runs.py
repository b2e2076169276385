"""How benchmarks/quality.py draws: without a cache, in fewer steps, repeating outputs, and with dit_cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from quality_grid import CHOOSING, FEWER, WHOLE, Scene, Way
from quality_model import Model
from quality_sums import costs_in_steps, figures
from quality_tables import Around, mag_ratios, sensitivities
from skimage.metrics import structural_similarity
from torch import nn

import dit_compile
from dit_compile.config import STRUCTURE, CacheConfig
from dit_compile.demo.codec import decode_float
from dit_compile.demo.pipeline import FluxPipeline, generate, wrap_transformer
from dit_compile.demo.result import Pictures, psnr
from dit_compile.policy import POLICIES

TABLES = {"magcache": "mag_ratios", "sencache": "sencache_sensitivities"}  # settings that hold what was measured
BLIND = ("interval", "mask", "magcache", "delta_dit")  # look at no data: all rows of a batch decide alike


class Drawn(NamedTuple):
    """Pictures (N, S, S, 3) in [-1, 1] and what each has cost, in full steps."""

    pictures: Pictures
    costs: Sequence[float]


def compare(reference: Pictures, drawn: Drawn) -> dict[str, float]:
    """The figures of pictures against the same ones with every step computed."""
    ssim = [
        float(structural_similarity(true, test, data_range=2.0, channel_axis=2))
        for true, test in zip(reference, drawn.pictures, strict=True)
    ]
    return figures(drawn.costs, psnr(reference, drawn.pictures), ssim)


class EveryNth(Around):
    """Runs ``model`` at every n-th step and repeats its output in between."""

    def __init__(self, model: nn.Module, every: int, branches: int) -> None:
        super().__init__(model)
        self.every, self.branches = every, branches
        self.calls = self.computed = 0
        self.kept: dict[int, Any] = {}

    def forward(self, **inputs: Any) -> Any:
        step, branch = divmod(self.calls, self.branches)
        self.calls += 1
        if step % self.every == 0:
            self.computed += 1
            self.kept[branch] = self.model(**inputs)
        return self.kept[branch]


class Studio:
    """A model, uncached and compiled once for every structure of the cached graph that is asked for.

    The prompts of a scene are one batch in which each row decides for itself (``batch_decision="rows"``), which gives
    the pictures and decisions of drawing them one by one.
    """

    def __init__(
        self, inner: str = "eager", tables: Mapping[str, Any] | None = None, model: Model | None = None
    ) -> None:
        torch.set_num_threads(1)
        torch._dynamo.config.recompile_limit = 64  # one graph for each structure, all of the same class
        self.inner, self.tables = inner, dict(tables or {})
        self.model = model or Model()
        self.prompts, self.codec = self.model.prompts, self.model.codec
        self.plain = self.model.load()
        self._uncached = wrap_transformer(torch.compile(self.plain.transformer, backend=inner, dynamic=True))
        lists = (self.plain.transformer.transformer_blocks, self.plain.transformer.single_transformer_blocks)
        self.blocks = sum(map(len, lists))
        self._cached: dict[tuple[Any, ...], tuple[FluxPipeline, list[int]]] = {}
        self._references: dict[Scene, Pictures] = {}

    def reference(self, scene: Scene) -> Pictures:
        """The pictures of ``scene`` with every step computed."""
        if scene not in self._references:
            self._references[scene] = self._draw(self._uncached, scene)
        return self._references[scene]

    def measure(self, way: Way, scene: Scene) -> dict[str, float]:
        """The figures of ``way`` in ``scene``."""
        draw = {FEWER: self._fewer, WHOLE: self._whole}.get(way.family, self._cache)
        return compare(self.reference(scene), draw(way.settings, scene))

    def _fewer(self, settings: Mapping[str, Any], scene: Scene) -> Drawn:
        pictures = self._draw(self._uncached, scene, settings["steps"])
        return Drawn(pictures, [settings["steps"]] * len(pictures))

    def _whole(self, settings: Mapping[str, Any], scene: Scene) -> Drawn:
        repeating = EveryNth(self._uncached.transformer, settings["every"], scene.branches)
        pictures = self._draw(wrap_transformer(repeating), scene)
        return Drawn(pictures, [repeating.computed / scene.branches] * len(pictures))

    def _cache(self, settings: Mapping[str, Any], scene: Scene) -> Drawn:
        pipe, skipped = self._compiled(settings)
        runtime = {name: value for name, value in settings.items() if name not in STRUCTURE}
        if runtime["policy"] in TABLES:
            name = TABLES[runtime["policy"]]
            runtime[name] = self.tables[name]
        runtime["num_steps"] = scene.steps  # masks by name, magcache and spectrum want to know
        runtime["delta_boundary"] = scene.steps // 2
        if settings["policy"] in BLIND:
            runtime["batch_decision"] = "one"
        with dit_compile.session("quality", **runtime):
            pictures = self._draw(pipe, scene)
        records = dit_compile.stats(self.plain.transformer)[-1].steps
        return Drawn(pictures, costs_in_steps(records, skipped, self.blocks, len(pictures)))

    def _compiled(self, settings: Mapping[str, Any]) -> tuple[FluxPipeline, list[int]]:
        """A pipeline for the structure of ``settings``, and the number of blocks that each region skips."""
        structure = {name: value for name, value in settings.items() if name in STRUCTURE}
        policy = settings["policy"]
        tap = POLICIES[policy]().tap(CacheConfig()) if POLICIES[policy].needs_probe else "residual"
        key = (*sorted(structure.items()), tap)
        if key not in self._cached:
            watching = policy if POLICIES[policy].needs_probe or policy == "delta_dit" else "dbcache"
            options = {"inner": self.inner, "policy": watching, "batch_decision": "rows", **structure}
            options |= {TABLES[watching]: self.tables[TABLES[watching]]} if watching in TABLES else {}
            model = torch.compile(self.plain.transformer, backend="dit_cache", dynamic=True, options=options)
            pipe = wrap_transformer(model)
            generate(pipe, ["", ""], [0, 0], 2, config=self.codec)
            report = dit_compile.graphs()[-1]
            if report.refusal is not None:
                raise RuntimeError(f"{options} was refused: {report.refusal}")
            self._cached[key] = (pipe, [region.skipped for region in report.regions])
        return self._cached[key]

    def table(self, policy: str) -> Any:
        """What ``policy`` needs to know of the model, measured on the choosing prompts."""
        scene = CHOOSING[1]
        measure = {"magcache": mag_ratios, "sencache": sensitivities}[policy]
        return measure(self.plain.transformer, scene.branches, lambda model: self._draw(wrap_transformer(model), scene))

    def _draw(self, pipe: FluxPipeline, scene: Scene, steps: int | None = None) -> Pictures:
        prompts = scene.of(self.prompts)
        seeds = range(len(prompts))
        return decode_float(generate(pipe, prompts, seeds, steps or scene.steps, scene.guidance, config=self.codec))
