"""How good are cached pictures for the blocks that were run? The table and plot of docs/quality.md.

Cost is counted work, blocks executed over blocks of a full step, so the figures do not depend on the machine's speed.
Results are written after every configuration: what the file has already is not drawn again. Needs a checkout (the
tests' way to install cache-dit beside us); about half an hour on one core.

    python benchmarks/quality.py

Another model, such as the scenes of train_emoji.py, goes through the same rounds, with the presets as they are; its
results, page and plot are files beside each other:

    python benchmarks/quality.py --model scenes --device cuda
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from quality_grid import PEER, PEERS, SCREEN, Scene, Way, first_round, second_round, third_round
from quality_model import Model
from quality_page import PAGE, PLOT, presets_of
from quality_page import page as page_of
from quality_peer import VERSION, Peer
from quality_plot import save_plot
from quality_runs import TABLES, Drawn, Studio, compare
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dit_compile.demo.pipeline import MODEL_DIR

RESULTS = Path(__file__).parent / "results" / "quality.json"


class Results:
    """What was measured on ``model``, in a file that is complete after every figure.

    Raises typer.BadParameter where the file has figures of another model.
    """

    def __init__(self, path: Path, model: Model) -> None:
        self.path = path
        facts = model.facts()
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ways": {}, **facts}
        if {name: self.data.get(name) for name in ("model", "weights")} != {"model": None, "weights": None} | facts:
            raise typer.BadParameter(f"{path} has figures of another model, or of other weights", param_hint="--out")
        self.data |= {
            "command": " ".join(["python", *sys.argv]),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "cache_dit": VERSION,
            "device": device_name(model.device),
            "prompts": model.prompts,
        }

    def has(self, way: Way, scene: Scene) -> bool:
        known = self.data["ways"].get(way.name)
        return known is not None and known["settings"] == dict(way.settings) and scene.name in known["figures"]

    def add(self, way: Way, scene: Scene, figures: dict[str, float]) -> None:
        known = self.data["ways"].get(way.name)
        if known is None or known["settings"] != dict(way.settings):
            known = {"family": way.family, "settings": dict(way.settings), "of_steps": way.of_steps, "figures": {}}
            self.data["ways"][way.name] = known
        known["figures"][scene.name] = figures
        self.save()

    def save(self) -> None:
        """Through a second file, so that an interrupted run leaves a whole one."""
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        beside.replace(self.path)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's family."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{platform.machine()} CPU"


class Measurer:
    """Draws what a list asks for and the results lack."""

    def __init__(self, results: Results, model: Model, console: Console, inner: str) -> None:
        self.results, self.console = results, console
        self.studio, self.peer = Studio(inner, model=model), Peer(model)
        for policy, name in TABLES.items():
            if name not in results.data:
                results.data[name] = self.studio.table(policy)
                results.save()
            self.studio.tables[name] = results.data[name]
        results.data["blocks"] = self.studio.blocks

    def run(self, title: str, jobs: Iterable[tuple[Way, Scene]]) -> None:
        todo = [(way, scene) for way, scene in jobs if way.draws(scene) and not self.results.has(way, scene)]
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, refresh_per_second=1) as progress:
            task = progress.add_task(title, total=len(todo))
            for way, scene in todo:
                figures = self.measure(way, scene)
                self.results.add(way, scene, figures)
                values = "  ".join(f"{name} {value:g}" for name, value in figures.items())
                progress.console.print(f"{scene.name}: {way.name}: {values}", highlight=False, soft_wrap=True)
                progress.advance(task)

    def measure(self, way: Way, scene: Scene) -> dict[str, float]:
        if way.family != PEER:
            return self.studio.measure(way, scene)
        pictures, costs = self.peer.draw(dict(way.settings), scene)
        return compare(self.studio.reference(scene), Drawn(np.asarray(pictures, np.float32), costs))


def main(
    out: Annotated[
        Path | None, typer.Option(help="results, read and completed: results/quality.json, or quality_MODEL.json")
    ] = None,
    model: Annotated[
        Path, typer.Option(help="folder of a model", exists=True, file_okay=False, show_default="the bundled one")
    ] = MODEL_DIR,
    device: Annotated[str, typer.Option(help="where it draws: cpu or cuda")] = "cpu",
    inner: Annotated[str, typer.Option(help="what compiles the pieces of the graph: eager or inductor")] = "eager",
    quick: Annotated[bool, typer.Option(help="only the first round, on four prompts")] = False,
    ours: Annotated[bool, typer.Option(help="draw with everything but cache-dit")] = True,
    peer: Annotated[bool, typer.Option(help="draw with cache-dit, in a process of its own")] = True,
    page: Annotated[bool, typer.Option(help="write docs/quality.md and its plot, or those beside the results")] = True,
) -> None:
    """Draws what is missing and writes the page."""
    for name in ("dit_compile", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    console = Console()
    measured = Model(model, device)
    if out is None:
        out = RESULTS if measured.bundled else RESULTS.with_name(f"quality_{model.resolve().name}.json")
    measurer = Measurer(Results(out, measured), measured, console, inner)
    wanted = [way for way in [*first_round(), *PEERS] if (peer if way.family == PEER else ours)]
    measurer.run("first round", [(way, SCREEN) for way in wanted])
    if not quick:
        ways = measurer.results.data["ways"]
        measurer.run("second round", second_round(ways) if ours else ())
        third = third_round(ways, presets_of(measurer.results.data).values())
        measurer.run("third round", [(way, scene) for way, scene in third if (peer if way.family == PEER else ours)])
    if page:
        text, plot = (PAGE, PLOT) if measured.bundled else (out.with_suffix(".md"), out.with_suffix(".png"))
        links = {} if measured.bundled else {"results": out.name, "plot": plot.name}
        text.write_text(page_of(measurer.results.data, **links), encoding="utf-8")
        save_plot(measurer.results.data, plot)
        console.print(f"wrote {text} and {plot}")


if __name__ == "__main__":
    typer.run(main)
