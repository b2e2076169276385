"""Trains the models that the benchmarks and the demo draw with: small FLUX transformers that draw emoji.

The pictures are not downloaded for you. They are Google's Noto Emoji, packed by Cal Henderson for npm:

    npm pack emoji-datasource-google@16.0.0
    tar xzf emoji-datasource-google-16.0.0.tgz          # makes the folder "package"

The bundled model, one emoji per picture, in about 100 minutes on one CPU core; and a harder one, several emoji per
picture in places, sizes and colours that the prompt names, in 25 minutes on a GPU:

    python benchmarks/train_emoji.py --emoji-dir package --out run
    python benchmarks/train_emoji.py --emoji-dir package --out scenes --scenes

The schedule follows --steps or, without it, the clock of --minutes. Ctrl-C keeps what was trained, and the same command
with --resume goes on. `python benchmarks/quality.py --model scenes` measures caches on the result.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _train_model import Recipe, Size, Trainer
from _train_pictures import EmojiData, PictureData, read_subjects
from _train_scenes import SceneData
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dit_compile.demo.pipeline import MODEL_DIR

MOST_BYTES = 40_000_000  # of weights, two bytes each
SHOW_SECONDS = 1.0  # between two looks at the loss, for which a GPU must finish its work


@dataclass(frozen=True)
class Run:
    """The defaults of one model."""

    size: Size
    recipe: Recipe
    minutes: float


SMALL = Run(Size(3, 4, 8), Recipe(batch=32, muon_rate=0.02, adam_rate=1.5e-3, decay=0.998), minutes=100)
LARGE = Run(Size(6, 6, 12), Recipe(batch=256, muon_rate=0.02, adam_rate=1e-3, decay=0.999), minutes=25)


class Checkpoint:
    """The file beside the weights from which a run that was stopped goes on."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "state.pt"

    def save(self, trainer: Trainer) -> None:
        """The weights as they will be used, and all that training needs; through a second file, so that a run that is
        killed while it writes leaves a whole one."""
        trainer.save(self.out)
        beside = self.path.with_suffix(".new")
        torch.save(trainer.state(), beside)
        beside.replace(self.path)

    def restore(self, trainer: Trainer) -> None:
        """Raises typer.BadParameter where there is nothing to go on with, or that of another model."""
        if not self.path.exists():
            raise typer.BadParameter(f"{self.path} does not exist", param_hint="--resume")
        try:
            trainer.restore(torch.load(self.path, map_location="cpu", weights_only=True))
        except RuntimeError as error:
            raise typer.BadParameter(f"{self.path} is of a model of another size", param_hint="--resume") from error

    def finish(self, trainer: Trainer) -> None:
        trainer.save(self.out)
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed, so that no step is left half done; pressed twice, it
    interrupts as ever."""
    pressed = False

    def press(_signal: int, _frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    trainer: Trainer, minutes: float, steps: int | None, save_every: float, checkpoint: Checkpoint, console: Console
) -> bool:
    """Trains until ``steps``, or ``minutes`` without it, are over; False where Ctrl-C came first."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    start = time.monotonic() - trainer.seconds
    saved, shown = trainer.seconds, -SHOW_SECONDS
    with Progress(*columns, console=console, refresh_per_second=2) as progress, stopping() as stopped:
        task = progress.add_task("training", total=1.0)
        while True:
            trainer.seconds = time.monotonic() - start
            spent = trainer.step / steps if steps else trainer.seconds / (60 * minutes)
            over = spent >= 1 or stopped()
            if over or trainer.seconds - shown > SHOW_SECONDS:
                shown = trainer.seconds
                progress.update(task, completed=spent, description=f"step {trainer.step}, loss {trainer.loss:.4f}")
            if over:
                return spent >= 1
            trainer.advance(spent)
            if trainer.seconds - saved > 60 * save_every:
                saved = trainer.seconds
                checkpoint.save(trainer)


def main(
    emoji_dir: Annotated[
        Path, typer.Option(help="Unpacked npm package emoji-datasource-google.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, the scheduler and samples.png.", file_okay=False)],
    scenes: Annotated[bool, typer.Option("--scenes", help="Several emoji per picture, 64x64.")] = False,
    subjects: Annotated[
        Path, typer.Option(help="Table of what to learn.", exists=True, dir_okay=False, show_default="the bundled 89")
    ] = MODEL_DIR / "subjects.tsv",
    minutes: Annotated[
        float | None, typer.Option(help="Length of the run by the clock: 100, or 25 with --scenes.", min=0.01)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps, instead of --minutes.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out was stopped.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    half: Annotated[
        bool | None, typer.Option("--half/--no-half", help="bfloat16 autocast; without either, on a GPU.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; without either, on a GPU.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step: 32, or 256 with --scenes.", min=1)] = None,
    poses: Annotated[int, typer.Option(help="Rendered variants of each emoji, without --scenes.", min=1)] = 16,
    heads: Annotated[int | None, typer.Option(help="Heads of 32 channels: 3, or 6 with --scenes.", min=1)] = None,
    layers: Annotated[int | None, typer.Option(help="Double-stream blocks: 4, or 6.", min=1)] = None,
    single_layers: Annotated[int | None, typer.Option(help="Single-stream blocks: 8, or 12.", min=1)] = None,
    muon_rate: Annotated[float | None, typer.Option(help="Peak rate of the matrices in the blocks: 0.02.")] = None,
    adam_rate: Annotated[float | None, typer.Option(help="Peak rate of everything else: 1.5e-3, or 1e-3.")] = None,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints.", min=0.1)] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
) -> None:
    """Train an emoji FLUX; see the top of the file for where the pictures come from."""
    console = Console()
    checkpoint = Checkpoint(out)
    if checkpoint.path.exists() and not resume:
        raise typer.BadParameter(
            f"{out} holds a run that was stopped: add --resume, or choose another", param_hint="--out"
        )
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    run = LARGE if scenes else SMALL
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where, on_gpu = torch.device(device), device != "cpu"
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32, for the optimizer's matrices
    data: PictureData
    if scenes:
        data = SceneData(emoji_dir, read_subjects(subjects), seed, where)
    else:
        data = EmojiData(emoji_dir, read_subjects(subjects), poses, seed)
    size = replace(run.size, **_given(heads=heads, layers=layers, single_layers=single_layers))
    recipe = replace(
        run.recipe,
        half=on_gpu if half is None else half,
        backend="inductor" if compiled or (compiled is None and on_gpu) else None,
        **_given(batch=batch, muon_rate=muon_rate, adam_rate=adam_rate),
    )
    trainer = Trainer(data, size, recipe, where)
    count = sum(weight.numel() for weight in trainer.model.parameters())
    if 2 * count > MOST_BYTES:
        raise typer.BadParameter(f"{count:,} parameters are more than {MOST_BYTES / 1e6:.0f} MB", param_hint="--heads")
    console.print(f"{len(data.subjects)} emoji, {count:,} parameters")
    if resume:
        checkpoint.restore(trainer)

    if not train(trainer, minutes or run.minutes, steps, save_every, checkpoint, console):
        checkpoint.save(trainer)
        console.print(f"stopped at step {trainer.step}; the same command with --resume goes on")
        raise typer.Exit(130)
    checkpoint.finish(trainer)
    decibels = trainer.draw_samples(out / "samples.png")
    console.print(f"step {trainer.step}, loss {trainer.loss:.4f}, samples at {decibels:.1f} dB; saved in {out}")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    typer.run(main)
