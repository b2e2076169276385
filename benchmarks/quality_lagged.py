"""What decision=lagged costs in quality, beside the exact mode: each preset, on prompts held out of the choice of
presets.

    python benchmarks/quality_lagged.py --prompts 8

Writes benchmarks/results/quality_lagged.json: of each preset, number of steps and mode the steps reused per
picture, the cost in full steps and the PSNR against the uncached pictures of the same seeds. The bundled model,
guidance 1, one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bundled import write_result
from quality_grid import HELD_OUT, OURS, Scene, Way
from quality_runs import Studio

import dit_compile
from dit_compile.config import PRESETS

RESULT = Path(__file__).parent / "results" / "quality_lagged.json"
SHOWN = ("quality", "balanced", "fast", "ultra")


@dataclass(frozen=True)
class FirstPrompts(Scene):
    """``count`` prompts of a scene."""

    count: int = 8

    def of(self, prompts: Mapping[str, Sequence[str]]) -> Sequence[str]:
        return super().of(prompts)[: self.count]


def measure(studio: Studio, prompts: int) -> list[dict[str, Any]]:
    """One row for each preset, number of steps and mode."""
    rows: list[dict[str, Any]] = []
    for scene in HELD_OUT:
        if scene.guidance != 1:
            continue
        fewer = FirstPrompts(scene.part, scene.steps, scene.guidance, prompts)
        for preset in SHOWN:
            for decision in ("exact", "lagged"):
                settings = {"policy": "dbcache", **PRESETS[preset], "decision": decision}
                figures = studio.measure(Way(OURS, f"{preset} {decision}", settings), fewer)
                stats = dit_compile.stats(studio.plain.transformer)[-1]
                reused = sum(step.action == "reuse" for step in stats.steps) / prompts
                row = {"preset": preset, "steps": scene.steps, "decision": decision, "reused": reused, **figures}
                print(row, flush=True)
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per row, the first of those held out")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file that receives the figures")
    args = parser.parse_args()
    rows = measure(Studio(), args.prompts)
    write_result(args.out, prompts=args.prompts, rows=rows)


if __name__ == "__main__":
    main()
