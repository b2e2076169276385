"""docs/quality.md: what benchmarks/quality.py measured, which presets follow from it, and the figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from quality_grid import (
    CHOOSING,
    FEWER,
    FORECASTS,
    HELD_OUT,
    LIMITS,
    OURS,
    PEER,
    POLICIES,
    SCREEN,
    WHOLE,
    Scene,
    first_round,
)
from quality_sums import Point, at_cost, choose

from dit_compile.config import PRESETS, CacheConfig

DOCS = Path(__file__).parents[1] / "docs"
LAGGED = Path(__file__).parent / "results" / "quality_lagged.json"
PAGE, PLOT = DOCS / "quality.md", DOCS / "images" / "quality.png"
PLOT_LINK = "images/quality.png"
Ways = Mapping[str, Mapping[str, Any]]

BUNDLED = """\
# Quality

<!-- Written by `python benchmarks/quality.py` from benchmarks/results/quality.json; change those instead. -->

What a cached picture is worth for the blocks that were run, on the bundled model. The presets were chosen here, and
this page says by which rule. Its model is small and smooth: the order of methods may carry over to a large one, the
decibels do not. `train_emoji.py --scenes` trains a harder model on a GPU, six times as large, and `quality.py --model`
measures it; that has not been done yet, so how the methods compare there is not known.
"""
OTHER = """\
# Quality on {model}

<!-- Written by `python benchmarks/quality.py --model`; change that instead. -->

What a cached picture is worth for the blocks that were run, on a model that `benchmarks/train_emoji.py` has trained.
The presets are those that were chosen on the bundled model.
"""
METHOD = """\
{opening}
* **Cost** is counted, not timed: blocks executed, in units of a step that runs all {blocks} of them, from the
  statistics of the run. A reused step of DBCache with one front block costs 1/{blocks}.
* **PSNR and SSIM** compare with the uncached picture of the same prompt, seed, number of steps and guidance (float
  pictures, data range 2; means over the prompts).
* **{choosing} prompts chose** {what}, **{held_out} others are reported**, each with a seed of its own, in 28 and
  50 steps, at guidance 1 (one branch) and 2 (two branches).
* Three rounds: every policy with every forecaster draws {screened} of the choosing prompts ({screen}); the DBCache
  settings on the Pareto front of that draw all of them ({chose});
  presets and rivals draw the prompts held out.
* **Rivals**: fewer steps, computed in full; repeating the model's whole output for every second to fourth step (in 28
  steps, every second is the very schedule of 14 steps); and [cache-dit](https://github.com/vipshop/cache-dit)
  {cache_dit} in an environment of its own on the same model. *At equal cost* means on straight lines between a rival's
  best settings.
* Every picture decides for itself: cache-dit draws one at a time, ours are batches with `batch_decision="rows"`, which
  gives the decisions and pictures of drawing alone.

torch {torch}, diffusers {diffusers}, {device}, fp32. [All figures]({results}), among them the
worst picture of each batch. `{command}` draws what that file lacks.
"""

# What the figures of the bundled model show is said of that model alone.
SAME_STEPS = """\
 In 28 steps `balanced` and cache-dit compute the same steps at the same cost, so only the forecaster
differs:"""

RULE = """\
Of the DBCache settings in the second round, a preset is the one with the highest PSNR among those that run at most a
given share of all blocks, on average over its scenes: {limits}.
Presets use DBCache only: it needs no calibration, and its guard adapts to the model, which fixed schedules do not.

{names}"""

RULE_HERE = """\
{names}
By the rule that chose them, the highest PSNR among the DBCache settings of the second round that run at most a given
share of all blocks ({limits}), this model would have:

{here}"""

PRESETS_TEXT = """\
## Presets

{rule}
On the prompts held out, each beside its rivals at equal cost (**bold**: better than both; *none*: nothing of that rival
is as cheap).{same_steps}

{rows}
![Cost against PSNR: the first round, and the prompts held out in four panels]({plot})
"""

PAIRS_CLAIMS = """\
 The last step changes the picture most: a policy that reuses it loses several decibels, which a guard notices
and a count does not. Without a forecast (`reuse`) no policy is worth its blocks here."""

PAIRS_TEXT = """\
## Every policy with every forecaster

Decibels above what fewer steps give at equal cost ({scene}, {count} prompts); the best of each pair's two operating
points.{claims} The number of a forecaster is its
order, of `meancache` the span, and of `dicache(2)` the limit (`dicache` has that of its authors, 1.5). `magcache` and
`sencache` know the model: their tables were measured on the choosing prompts.

{rows}"""

LAGGED_TEXT = """\
## Decisions without waiting

`decision="lagged"` decides a step by what the step before has measured, carried on as it has grown lately, so the host
waits for no difference; what has not arrived is computed, and a change is noticed one step late. The first {prompts}
of the prompts held out, guidance 1, at the same thresholds; exact and lagged, PSNR in dB and steps reused.
`python benchmarks/quality_lagged.py` draws them.

{rows}"""

FIGURES_TEXT = """\
## All figures on the prompts held out

Cost in full steps · PSNR in dB · SSIM.

{rows}"""


def points(ways: Ways, scene: Scene, family: str, quality: str = "psnr") -> dict[str, Point]:
    """Cost in full steps and ``quality`` of every way of ``family`` that drew ``scene``, by name."""
    drawn = {name: way["figures"].get(scene.name) for name, way in ways.items() if way["family"] == family}
    return {name: (figures["cost"], figures[quality]) for name, figures in drawn.items() if figures}


def candidates(ways: Ways) -> dict[str, Point]:
    """What presets are chosen from: share of the blocks that ran and PSNR, both averaged over the choosing scenes."""
    found = {}
    for name, way in ways.items():
        drawn = [(scene.steps, way["figures"].get(scene.name)) for scene in CHOOSING]
        if way["settings"].get("policy") == "dbcache" and all(figures for _, figures in drawn):
            share = fmean(figures["cost"] / steps for steps, figures in drawn)
            found[name] = (share, fmean(figures["psnr"] for _, figures in drawn))
    return found


def chosen(ways: Ways) -> dict[str, str]:
    """The way that each preset is."""
    return choose(candidates(ways), LIMITS)


def shipped() -> dict[str, str]:
    """The way that each preset of the package is."""
    ways = [way for way in first_round() if way.settings.get("policy") == "dbcache"]
    configs = {preset: CacheConfig(**PRESETS[preset]) for preset in LIMITS}
    return {
        preset: next(w.name for w in ways if all(getattr(config, k) == v for k, v in w.settings.items()))
        for preset, config in configs.items()
    }


def presets_of(data: Mapping[str, Any]) -> dict[str, str]:
    """The presets of results: on the bundled model they are chosen, other models take them as they are."""
    return shipped() if "model" in data else chosen(data["ways"])


def chosen_here(ways: Ways) -> Iterable[list[str]]:
    """What would be chosen for each limit, where anything can."""
    for preset, limit in LIMITS.items():
        try:
            yield [f"`{preset}`", choose(candidates(ways), {preset: limit})[preset]]
        except ValueError:
            yield [f"`{preset}`", "nothing that was drawn"]


def rivals_at_equal_cost(ways: Ways, name: str, scene: Scene, quality: str) -> list[float | None]:
    """What fewer steps and cache-dit reach at the cost of ``name``."""
    cost = ways[name]["figures"][scene.name]["cost"]
    return [at_cost(points(ways, scene, family, quality).values(), cost) for family in (FEWER, PEER)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def preset_rows(ways: Ways, presets: Mapping[str, str]) -> Iterable[list[str]]:
    """Each preset in each held-out scene, beside both rivals at equal cost; what beats both is bold."""
    for preset, name in presets.items():
        for scene in HELD_OUT:
            figures = ways[name]["figures"].get(scene.name)
            if figures is None:  # only the first round was drawn
                continue
            cells = [f"`{preset}`", f"{scene.steps} / {scene.guidance:g}", f"{figures['cost']:.1f}"]
            for quality, digits in (("psnr", 1), ("ssim", 4)):
                rivals = rivals_at_equal_cost(ways, name, scene, quality)
                best = all(rival is None or figures[quality] > rival for rival in rivals)
                own = f"{figures[quality]:.{digits}f}"
                cells += [f"**{own}**" if best else own]
                drawn = [points(ways, scene, family) for family in (FEWER, PEER)]
                missing = ["none" if rival else "not drawn" for rival in drawn]
                pairs = zip(rivals, missing, strict=True)
                cells += [why if rival is None else f"{rival:.{digits}f}" for rival, why in pairs]
            yield cells


def pair_rows(ways: Ways) -> Iterable[list[str]]:
    """For each policy, the best gain of each forecaster over fewer steps at equal cost."""
    for policy, operating in POLICIES.items():
        cells = [f"`{policy}`"]
        for forecast in FORECASTS:
            names = [f"{policy} {point} {forecast}" for point in operating]
            drawn = [name for name in names if SCREEN.name in ways.get(name, {}).get("figures", {})]
            gains = []
            for name in drawn:
                fewer, _ = rivals_at_equal_cost(ways, name, SCREEN, "psnr")
                if fewer is not None:
                    gains.append(ways[name]["figures"][SCREEN.name]["psnr"] - fewer)
            cells.append(f"{max(gains):+.1f}" if gains else "")
        yield cells


def figure_rows(ways: Ways) -> Iterable[list[str]]:
    """Every way that drew a held-out scene, cheapest first within its family."""
    for family in (OURS, PEER, FEWER, WHOLE):
        rows = []
        for name, way in ways.items():
            drawn = [way["figures"].get(scene.name) for scene in HELD_OUT]
            if way["family"] == family and any(drawn):
                cells = [f"{f['cost']:.1f} · {f['psnr']:.1f} · {f['ssim']:.4f}" if f else "" for f in drawn]
                share = fmean(f["cost"] / scene.steps for f, scene in zip(drawn, HELD_OUT, strict=True) if f)
                rows.append((share, [f"{family}: {name}", *cells]))
        yield from (cells for _, cells in sorted(rows))


def lagged_rows(rows: Sequence[Mapping[str, Any]]) -> Iterable[list[str]]:
    """Each preset and number of steps: steps reused and PSNR, exact and lagged."""
    for exact, lagged in zip(rows[::2], rows[1::2], strict=True):
        pair = (exact, lagged)
        reused, psnrs = [f"{row['reused']:.1f}" for row in pair], [f"{row['psnr']:.1f}" for row in pair]
        yield [f"`{exact['preset']}`", str(exact["steps"]), *reused, *psnrs]


def lagged_section(result: Mapping[str, Any]) -> str:
    """What benchmarks/quality_lagged.py measured."""
    header = ["preset", "steps", "reused, exact", "reused, lagged", "PSNR, exact", "PSNR, lagged"]
    return LAGGED_TEXT.format(prompts=result["prompts"], rows=table(header, lagged_rows(result["rows"])))


def presets_section(data: Mapping[str, Any], plot: str) -> str:
    """What the presets are and what they reach."""
    ways, presets = data["ways"], presets_of(data)
    columns = [
        f"{quality} {rival}".strip() for quality in ("PSNR", "SSIM") for rival in ("", "fewer steps", "cache-dit")
    ]
    rule = (RULE_HERE if "model" in data else RULE).format(
        limits=", ".join(f"`{preset}` {limit:.0%}" for preset, limit in LIMITS.items()),
        names=table(["preset", "is"], [[f"`{preset}`", name] for preset, name in presets.items()]),
        here=table(["limit", "setting"], chosen_here(ways)),
    )
    rows = table(["preset", "steps / guidance", "cost", *columns], preset_rows(ways, presets))
    return PRESETS_TEXT.format(rule=rule, rows=rows, plot=plot, same_steps="" if "model" in data else SAME_STEPS)


def page(data: Mapping[str, Any], results: str = "../benchmarks/results/quality.json", plot: str = PLOT_LINK) -> str:
    """The text of docs/quality.md, or of the page of another model, whose links are ``results`` and ``plot``."""
    ways, bundled = data["ways"], "model" not in data
    facts = {name: data[name] for name in ("torch", "diffusers", "cache_dit", "device", "command", "blocks")}
    counts = {part.replace(" ", "_"): len(prompts) for part, prompts in data["prompts"].items()}
    screen, screened = SCREEN.name.partition(", ")[2], len(SCREEN.of(data["prompts"]))
    rounds = {"screened": screened, "screen": screen}
    rounds["chose"] = ", ".join(f"{scene.steps} steps / {scene.guidance:g}" for scene in CHOOSING)
    opening = BUNDLED if bundled else OTHER.format(model=data["model"])
    what = "the presets" if bundled else "what else goes on"
    introduction = METHOD.format(**facts, **counts, **rounds, opening=opening, what=what, results=results)
    pairs = PAIRS_TEXT.format(
        scene=screen,
        count=screened,
        claims=PAIRS_CLAIMS if bundled else "",
        rows=table(["", *(f"`{name}`" for name in FORECASTS)], pair_rows(ways)),
    )
    lagged = [lagged_section(json.loads(LAGGED.read_text()))] if bundled else []
    scenes = [scene.name.partition(", ")[2] for scene in HELD_OUT]
    all_figures = FIGURES_TEXT.format(rows=table(["", *scenes], figure_rows(ways)))
    return "\n".join([introduction, presets_section(data, plot), pairs, *lagged, all_figures])
