"""What the commands share: checks of options before the long work, how an error is reported, and files of figures."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from ..config import ConfigError, environment_layer, resolve
from ..plugins import plugin_names

USAGE_ERROR = 2
MIN_STEPS = 4
MAX_STEPS = 1000
INNER = ("inductor", "aot_eager", "eager")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_choice(option: str, value: str | None, known: Iterable[str]) -> None:
    """Fails unless ``value`` is None or one of ``known``."""
    if value is not None and value not in known:
        fail(f"{option} must be one of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")


def check_steps(steps: int) -> None:
    if not MIN_STEPS <= steps <= MAX_STEPS:
        fail(f"--steps must be from {MIN_STEPS} to {MAX_STEPS}, got {steps}")


def check_environment() -> None:
    """Reads the DIT_CACHE_* variables as the backend will, so that a wrong one is reported before the long work."""
    try:
        resolve(environment_layer(**plugin_names()))
    except ConfigError as error:
        fail(str(error))


def check_picture(option: str, path: Path | None) -> None:
    """Fails unless ``path`` is None or a picture that can be written."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        fail(f"{option} must end in {', '.join(PICTURE_SUFFIXES)}, got {path}")
    check_writable(option, path)


def check_writable(option: str, path: Path | None) -> None:
    """Fails unless ``path`` is None or can be written, by trying; leaves no file behind."""
    if path is None:
        return
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        fail(f"{option} {path} cannot be written: {error.strerror}")
    if not existed:
        path.unlink()


def checked_device(device: str | None) -> str:
    """A device torch can compute on; by default CUDA's, where there is one."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        fail(f"--device must be a device of torch such as cpu, cuda or cuda:1, got {device!r}")
    try:
        if kind == "meta" or torch.zeros(1, device=device).add(1).item() != 1:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fail(f"--device {device} cannot be used here: {str(error).splitlines()[0]}")
    return device


def quiet_libraries() -> None:
    """Silences notices of diffusers' optional dependencies, which have nothing to do with the demo."""
    import logging

    for name in ("transformers", "torchao", "diffusers", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")


def write_figures(path: Path, data: Mapping[str, Any], console: Console) -> None:
    """Writes ``data`` and the command under way as JSON, and says so."""
    command = " ".join(["dit-compile", *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, **data}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"figures  {escape(str(path))}", highlight=False)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def fail(message: str) -> NoReturn:
    """One line on stderr and exit code 2: the call was wrong, not the program."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    raise typer.Exit(USAGE_ERROR)
