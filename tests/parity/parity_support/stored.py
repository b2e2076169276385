"""What cache-dit did with each case, kept in tests/parity/traces: the fast tests read it instead of running cache-dit.

Decisions and diffs are JSON, to be read; final latents and an excerpt of every transformer output are float32 arrays,
in which a difference of 1e-4 is as visible as in the live run. Rewritten by ``python tests/parity/record_traces.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_support.cases import Case
from parity_support.config import EXCERPT_STRIDE, Place, Trace
from parity_support.generation import scene

FOLDER = Path(__file__).parents[1] / "traces"
COMMAND = "python tests/parity/record_traces.py"


def key(case: Case) -> str:
    """A digest of all that a trace depends on: version, settings, weights, prompt, steps. Not of the case's name."""
    what = {"version": case.version, "knobs": asdict(case.knobs), "branches": case.branches, "stride": EXCERPT_STRIDE}
    return hashlib.sha256(json.dumps({**what, **scene()}, sort_keys=True).encode()).hexdigest()[:16]


def read(version: str, folder: Path = FOLDER) -> dict[str, Trace]:
    """All stored traces of one version of cache-dit by their keys; none if nothing is stored."""
    numbers, arrays = files(version, folder)
    if not (numbers.exists() and arrays.exists()):
        return {}
    entries: dict[str, Any] = json.loads(numbers.read_text(encoding="utf-8"))["traces"]
    with np.load(arrays) as stored:
        return {
            name: Trace(
                cached={_place(place): steps for place, steps in entry["cached"].items()},
                diffs={
                    _place(place): {int(step): diff for step, diff in diffs.items()}
                    for place, diffs in entry["diffs"].items()
                },
                latents=torch.from_numpy(stored[f"{name}.latents"]),
                excerpts=torch.from_numpy(stored[f"{name}.excerpts"]),
            )
            for name, entry in entries.items()
        }


def write(version: str, traces: Iterable[tuple[Case, Trace]], made_with: Mapping[str, str], folder: Path) -> None:
    """Replaces what is stored of one version."""
    folder.mkdir(exist_ok=True)
    entries, arrays = {}, {}
    for case, trace in traces:
        name = key(case)
        assert trace.latents is not None
        entries[name] = {
            "case": case.name,
            "cached": {_text(place): steps for place, steps in trace.cached.items()},
            "diffs": {_text(place): diffs for place, diffs in trace.diffs.items()},
        }
        arrays[f"{name}.latents"] = trace.latents.numpy()
        arrays[f"{name}.excerpts"] = trace.stored_excerpts().numpy()
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    head = f'{{"cache-dit": {json.dumps(version)}, "made with": {json.dumps(dict(made_with))}, "traces": {{\n'
    numbers, packed = files(version, folder)
    numbers.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    np.savez_compressed(packed, **arrays)


def files(version: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"cache-dit-{version}.json", folder / f"cache-dit-{version}.npz"


def _text(place: Place) -> str:
    return f"{place[0]},{place[1]}"


def _place(text: str) -> Place:
    branch, region = text.split(",")
    return int(branch), int(region)
