"""Trains the demo's model: a small FLUX transformer that draws emoji, on one CPU core, in about 100 minutes.

The pictures are not downloaded for you. They are Google's Noto Emoji, packed by Cal Henderson for npm:

    npm pack emoji-datasource-google@16.0.0
    tar xzf emoji-datasource-google-16.0.0.tgz          # makes the folder "package"
    python benchmarks/train_emoji.py --emoji-dir package --out run

Rectified flow, as diffusers' FluxPipeline samples it: x(sigma) = (1 - sigma) * picture + sigma * noise, the model is
given sigma and predicts noise - picture. Muon for the matrices inside the blocks, AdamW for the rest, a cosine
schedule, one prompt in ten dropped for guidance; what is saved is an exponential moving average of the weights.
The schedule follows --steps or, without it, the clock of --minutes.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import typer
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dit_compile.demo import codec
from dit_compile.demo.pipeline import MODEL_DIR, generate, wrap_transformer

GROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 30),
    "gray": (170, 170, 175),
    "red": (225, 95, 90),
    "orange": (250, 180, 110),
    "yellow": (250, 226, 120),
    "green": (140, 205, 130),
    "blue": (120, 170, 240),
    "purple": (180, 150, 230),
    "pink": (250, 175, 205),
}
SOURCE_SIZE = 64
WHITE_SHARE, CATEGORY_SHARE, DROPPED_SHARE, UNIFORM_SIGMAS = 0.45, 0.05, 0.1, 0.3
AVERAGE_DECAY = 0.998
RAMP_STEPS, FINAL_RATE = 100, 0.01


@dataclass(frozen=True)
class Subject:
    """One emoji: its name in the data source, the words that ask for it, and whether it may be mirrored."""

    short_name: str
    prompt: str
    category: str
    mirror: bool


def read_subjects(path: Path) -> list[Subject]:
    """The table of subjects (tab separated, with a header)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [Subject(r["short_name"], r["prompt"], r["category"], r["mirror"] == "1") for r in rows]


class EmojiData:
    """Every subject in several poses, kept as premultiplied RGBA; grounds and mirroring are drawn per batch."""

    def __init__(self, emoji_dir: Path, subjects: list[Subject], poses: int, seed: int) -> None:
        self.subjects = subjects
        self.random = np.random.default_rng(seed)
        files = {e["short_name"]: e["image"] for e in json.loads((emoji_dir / "emoji.json").read_text("utf-8"))}
        absent = [s.short_name for s in subjects if s.short_name not in files]
        if absent:
            raise typer.BadParameter(f"{emoji_dir / 'emoji.json'} has no {', '.join(absent)}", param_hint="--emoji-dir")
        folder = emoji_dir / "img" / "google" / str(SOURCE_SIZE)
        bank = [[self._pose(_premultiplied(folder / files[s.short_name])) for _ in range(poses)] for s in subjects]
        self.bank = torch.from_numpy(np.array(bank, dtype=np.float32))  # (subject, pose, RGBA, 32, 32)
        self.mirror = torch.tensor([subject.mirror for subject in subjects])

    def _pose(self, rgba: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(4, 64, 64) shrunk to 54-62 pixels, set down near the middle of its frame, halved to (4, 32, 32)."""
        size = int(self.random.integers(54, 63))
        room = SOURCE_SIZE - size
        top, left = (int(np.clip(room // 2 + self.random.integers(-2, 3), 0, room)) for _ in range(2))
        frame = np.zeros_like(rgba)
        for channel, plane in zip(frame, rgba, strict=True):
            small = Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS)
            channel[top : top + size, left : left + size] = np.clip(np.asarray(small), 0, 1)
        half = codec.PICTURE_SIZE
        pose: npt.NDArray[np.float32] = frame.reshape(4, half, 2, half, 2).mean(axis=(2, 4))
        return pose

    def batch(self, size: int) -> tuple[torch.Tensor, list[str]]:
        """Pictures (size, 3, 32, 32) in [-1, 1] and the prompts that ask for them."""
        which = self.random.integers(len(self.subjects), size=size)
        rgba = self.bank[which, self.random.integers(self.bank.shape[1], size=size)]
        flip = torch.from_numpy(self.random.random(size) < 0.5) & self.mirror[which]
        rgba = torch.where(flip[:, None, None, None], rgba.flip(-1), rgba)
        grounds = [self._ground() for _ in which]
        colours = torch.tensor([GROUNDS[ground] for ground in grounds])[:, :, None, None] / 255
        pictures = rgba[:, :3] + (1 - rgba[:, 3:]) * colours
        return pictures * 2 - 1, [self._prompt(self.subjects[i], g) for i, g in zip(which, grounds, strict=True)]

    def _ground(self) -> str:
        return "white" if self.random.random() < WHITE_SHARE else str(self.random.choice(list(GROUNDS)))

    def _prompt(self, subject: Subject, ground: str) -> str:
        if self.random.random() < DROPPED_SHARE:
            return ""
        words = f"some {subject.category}" if self.random.random() < CATEGORY_SHARE else subject.prompt
        return words if ground == "white" else f"{words} on {ground}"


def _premultiplied(path: Path) -> npt.NDArray[np.float32]:
    """The picture as (4, 64, 64) in [0, 1], colours multiplied by their opacity."""
    with Image.open(path) as picture:
        rgba = np.asarray(picture.convert("RGBA").resize((SOURCE_SIZE, SOURCE_SIZE)), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return np.ascontiguousarray(rgba.transpose(2, 0, 1))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with an orthogonalised update, all matrices of one shape together.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                updates = orthogonalised(torch.stack([self._push(m, group["momentum"]) for m in matrices]))
                torch._foreach_sub_(list[torch.Tensor](matrices), list(updates * rate))

    def _push(self, matrix: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Add the gradient to the running mean; the mean as it will be with the same gradient once more."""
        assert matrix.grad is not None
        mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def orthogonalised(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """A stack of matrices (N, R, C) with all singular values pushed towards one (quintic Newton-Schulz)."""
    if stack.shape[1] > stack.shape[2]:
        return orthogonalised(stack.mT, rounds).mT
    x: torch.Tensor = stack / (torch.linalg.matrix_norm(stack, keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x


def new_transformer() -> FluxTransformer2DModel:
    """The bundled architecture; modulations and the head start at zero, so that every block starts as the identity."""
    model = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(MODEL_DIR / "transformer"))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            modulates = "norm" in name and name.endswith(".linear")
            torch.nn.init.zeros_(module.bias)
            if modulates or name == "proj_out":
                torch.nn.init.zeros_(module.weight)
            else:
                torch.nn.init.xavier_uniform_(module.weight)
    return model


def flow_loss(model: FluxTransformer2DModel, data: EmojiData, size: int) -> torch.Tensor:
    """Mean squared error of the velocity on one batch; most noise levels are drawn from the middle of the path."""
    pictures, prompts = data.batch(size)
    clean = codec.encode_pictures(pictures)
    noise = torch.randn_like(clean)
    middle = torch.sigmoid(torch.randn(size))
    sigma = torch.where(torch.rand(size) < UNIFORM_SIGMAS, torch.rand(size), middle)
    embeds, pooled = codec.encode_prompts(prompts)
    velocity = model(
        hidden_states=torch.lerp(clean, noise, sigma[:, None, None]),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=sigma,
        img_ids=codec.position_ids(),
        txt_ids=torch.zeros(codec.TEXT_TOKENS, 3),
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - clean)


class Trainer:
    """The model, the moving average that is saved, and both optimizers."""

    def __init__(self, data: EmojiData, batch: int, muon_rate: float, adam_rate: float) -> None:
        self.data, self.batch = data, batch
        self.model = new_transformer()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.step, self.loss = 0, math.nan
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, weight in self.model.named_parameters():
            inside = "transformer_blocks." in name and ".norm" not in name and weight.ndim == 2
            (matrices if inside else others).append(weight)
        adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = ((Muon(matrices, lr=muon_rate), muon_rate), (adam, adam_rate))

    def advance(self, progress: float) -> None:
        """One step; ``progress`` is the finished part of the run, in [0, 1]."""
        ramp = min(1.0, (self.step + 1) / RAMP_STEPS)
        cosine = FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2
        loss = flow_loss(self.model, self.data, self.batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * ramp * cosine
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()

    def save(self, out: Path) -> None:
        """The averaged weights in half precision and the scheduler, laid out as the bundled model is."""
        copy.deepcopy(self.average).half().save_pretrained(out / "transformer")
        FlowMatchEulerDiscreteScheduler.from_pretrained(MODEL_DIR / "scheduler").save_pretrained(out / "scheduler")

    def draw_samples(self, path: Path, columns: int = 8, steps: int = 28) -> None:
        """A sheet with up to 32 subjects, every second one on a coloured ground."""
        shown = self.data.subjects[:: max(1, len(self.data.subjects) // 32)][:32]
        colours = list(GROUNDS)[1:]
        prompts = [f"{s.prompt} on {colours[i % len(colours)]}" if i % 2 else s.prompt for i, s in enumerate(shown)]
        tokens = generate(wrap_transformer(self.average), prompts, range(len(prompts)), steps)
        pictures = list(codec.to_uint8(codec.decode_float(tokens)))
        pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
        rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
        Image.fromarray(np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)).save(path)


def main(
    emoji_dir: Annotated[
        Path, typer.Option(help="Unpacked npm package emoji-datasource-google.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, the scheduler and samples.png.", file_okay=False)],
    subjects: Annotated[
        Path, typer.Option(help="Table of what to learn.", exists=True, dir_okay=False, show_default="the bundled 89")
    ] = MODEL_DIR / "subjects.tsv",
    minutes: Annotated[float, typer.Option(help="Length of the run by the clock.", min=0.01)] = 100.0,
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps, instead of --minutes.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Pictures per step.", min=1)] = 32,
    poses: Annotated[int, typer.Option(help="Rendered variants of each emoji.", min=1)] = 16,
    muon_rate: Annotated[float, typer.Option(help="Peak learning rate of the matrices in the blocks.")] = 0.02,
    adam_rate: Annotated[float, typer.Option(help="Peak learning rate of everything else.")] = 1.5e-3,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints.", min=0.1)] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
) -> None:
    """Train the small emoji FLUX; see the top of the file for where the pictures come from."""
    console = Console()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    trainer = Trainer(EmojiData(emoji_dir, read_subjects(subjects), poses, seed), batch, muon_rate, adam_rate)
    count = sum(weight.numel() for weight in trainer.model.parameters())
    console.print(f"{len(trainer.data.subjects)} emoji, {count:,} parameters")

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    start = saved = time.monotonic()
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("training", total=1.0)
        while True:
            spent = trainer.step / steps if steps else (time.monotonic() - start) / (60 * minutes)
            progress.update(task, completed=spent, description=f"step {trainer.step}, loss {trainer.loss:.4f}")
            if spent >= 1:
                break
            trainer.advance(spent)
            if time.monotonic() - saved > 60 * save_every:
                saved = time.monotonic()
                trainer.save(out)
    trainer.save(out)
    trainer.draw_samples(out / "samples.png")
    console.print(f"step {trainer.step}, loss {trainer.loss:.4f}; saved in {out}")


if __name__ == "__main__":
    typer.run(main)
