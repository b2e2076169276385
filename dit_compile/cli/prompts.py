"""The file of prompts for ``dit-compile tune``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checks import fail


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a text file, one a line, with a seed and a tab before it if it has one of its own; ``#`` begins a
    comment. Or of a file ``*.json``: a list of texts and pairs [text, seed].

    Returns texts, and pairs (text, seed).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}")
    prompts = _from_json(path, text) if path.suffix.lower() == ".json" else _from_lines(path, text)
    if not prompts:
        fail(f"--prompts {path} has no prompts in it: one a line")
    return prompts


def _from_lines(path: Path, text: str) -> list[Any]:
    prompts: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        seed, tab, prompt = line.partition("\t")
        if not tab:
            prompts.append(line.strip())
            continue
        try:
            prompts.append((prompt.strip(), int(seed)))
        except ValueError:
            fail(f"--prompts {path}, line {number}: {seed.strip()!r} before the tab is no seed (an integer)")
    return prompts


def _from_json(path: Path, text: str) -> list[Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        fail(f"--prompts {path} is not JSON: {error}")
    if not isinstance(data, list):
        fail(f"--prompts {path} must be a list of prompts, it is a {type(data).__name__}")
    return [_entry(path, number, one) for number, one in enumerate(data)]


def _entry(path: Path, number: int, given: Any) -> Any:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and len(given) == 2 and isinstance(given[0], str) and type(given[1]) is int:
        return given[0], given[1]
    fail(f"--prompts {path}, entry {number}: expected a text or [text, seed], got {json.dumps(given)}")
