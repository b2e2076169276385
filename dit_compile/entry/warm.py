"""``dit_compile.save`` and ``dit_compile.load``: compiled models for the next process.

A file holds, for each transformer, what Dynamo compiled (its code around the graphs, and the guards) and the graphs of
this backend with their kernels. It is one line of JSON that says what it was made for, and a pickle:

    dit_compile {"digest": "...", "made for": {"torch": "2.13.0", ...}, ...}
    <pickle>
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..api import process_overrides
from ..artifact import GraphArtifact, settings_key
from ..backend import read_options
from ..compat.precompile import triton_version
from ..config import resolve
from ..version import VERSION
from .compile import transformers_of
from .fingerprint import difference
from .recording import Recording
from .target import Target

log = logging.getLogger("dit_compile")
_BEGIN = b"dit_compile "
_FORMAT = 1


class ArtifactError(RuntimeError):
    """A file of compiled code that cannot be written or does not fit; says why, and what to do."""


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes what was compiled for ``model`` to the file ``path``, for ``load`` in another process.

    Everything that has been compiled so far is saved: call the model first, at each resolution that is to start
    quickly. The model must have been compiled with ``dit_compile.compile(model, record=True)``. ``model`` is what was
    given there: a transformer, or a pipeline with its transformers.

    Graphs that torch cannot keep are left out, each with a warning that says why.

    Raises:
        ArtifactError: the model was not compiled so that it can be kept, or not called yet.
        OSError: the file cannot be written.
    """
    targets = [_target(transformer) for transformer in transformers_of(model)]
    recordings: list[Recording] = []
    models = []
    for target in targets:
        if target.recording is None:
            raise ArtifactError(
                f"{type(target.model).__name__} was not compiled so that it can be saved: {target.unrecorded}"
            )
        if target.recording not in recordings:
            recordings.append(target.recording)
        models.append((recordings.index(target.recording), target.structure()))
    contents = [_content(recording) for recording in recordings]
    payload = pickle.dumps({"models": models, "recordings": contents})
    header = {"format": _FORMAT, "digest": hashlib.sha256(payload).hexdigest(), "made for": _here()}
    _write(Path(path), _BEGIN + json.dumps(header).encode() + b"\n" + payload)


def _content(recording: Recording) -> tuple[Any, dict[str, GraphArtifact]]:
    name, content, reasons = recording.function.__name__, recording.content(), recording.reasons()
    if not content[1]:
        raise ArtifactError(
            f"{name} cannot be saved: {'; '.join(reasons)}"
            if reasons
            else f"{name}: nothing was compiled so far. Call it before saving"
        )
    for reason in reasons:
        log.warning("dit_cache: a part of %s is not saved: %s", name, reason)
    return content


def load(model: Any, path: str | os.PathLike[str], *, strict: bool = True) -> bool:
    """Gives ``model`` the compiled code of the file ``path``, so that its first call traces and compiles nothing.

    Call it after ``dit_compile.compile(model, ...)`` with the settings that were saved. Settings that may change
    without recompilation (thresholds, limits) may be others. What the file does not hold, such as another
    resolution, is compiled when it is called for, as without a file. Weights are not in the file.

    The file is a pickle: loading it executes code, as loading torch's own cache artifacts does. Load files that you
    trust.

    Args:
        strict: False turns the error for a file that is missing or does not fit into a warning; the model then compiles
            at its first call.

    Returns:
        Whether the code of the file is used.

    Raises:
        ArtifactError: the file is damaged, or was made for another version of torch, Python or this package, another
            device, another model or other settings. The model is as before: it can be called, and compiles.
    """
    try:
        _load(model, Path(path))
    except (ArtifactError, OSError) as error:
        error = error if isinstance(error, ArtifactError) else ArtifactError(f"{path}: {error.strerror or error}")
        if strict:
            raise error from error.__cause__
        log.warning("dit_cache: %s. The model is compiled at its first call", error)
        return False
    return True


def _load(model: Any, path: Path) -> None:
    targets = [_target(transformer) for transformer in transformers_of(model)]
    content = _read(path)
    if len(content["models"]) != len(targets):
        raise ArtifactError(f"{path} holds {len(content['models'])} models, and {len(targets)} are to be loaded")
    recordings: dict[Any, Recording] = {}
    adopted = []
    for target, (number, saved) in zip(targets, content["models"], strict=True):
        different = difference(saved.named, target.structure().named)
        if different:
            raise ArtifactError(
                f"{path} was made for another model: {different}. Load it when the model has its device, dtype "
                "and adapters, or save it again with this one"
            )
        entry, artifacts = content["recordings"][number]
        layers, patches = read_options(target.options)
        _check_settings(path, artifacts, settings_key(resolve(*layers, process_overrides()), patches))
        key = (number, tuple(map(repr, layers)))
        if key not in recordings:
            recordings[key] = _adopt(path, target, entry, artifacts, layers)
        adopted.append((target, recordings[key], saved))
    for target, recording, saved in adopted:
        target.adopt(recording, saved)


def _adopt(path: Path, target: Target, entry: Any, artifacts: Mapping[str, GraphArtifact], layers: Any) -> Recording:
    recording = Recording(type(target.model))
    try:
        recording.adopt(entry, artifacts, layers)
    except Exception as error:  # of torch, which has many
        raise ArtifactError(f"{path}: {error or type(error).__name__}. Save it again in this environment") from error
    return recording


def _check_settings(path: Path, artifacts: Mapping[str, GraphArtifact], here: Mapping[str, str]) -> None:
    for artifact in artifacts.values():
        saved = artifact.settings
        for name in [*saved, *(name for name in here if name not in saved)]:
            was, now = saved.get(name, "not set"), here.get(name, "not set")
            if was != now:
                raise ArtifactError(
                    f"{path} was made with other settings: {name} was {was}, and is {now} here (options and "
                    "DIT_CACHE_* variables count). Use the same ones, or save it again"
                )


def _target(transformer: torch.nn.Module) -> Target:
    target = getattr(transformer, "_compiled_call_impl", None)
    if not isinstance(target, Target):
        raise ArtifactError(
            f"{type(transformer).__name__} is not compiled with dit_compile.compile(model): what torch.compile(..., "
            'backend="dit_cache") compiles cannot be saved'
        )
    return target


def _here() -> dict[str, str]:
    """What code that was compiled here may depend on, besides the model."""
    found = {
        "dit_compile": VERSION,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "Triton": triton_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "CPU": torch.backends.cpu.get_cpu_capability(),
        "GPU": "none",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found["GPU"] = f"{properties.name}, capability {properties.major}.{properties.minor}"
    return found


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        first, payload = file.readline(), file.read()
    try:
        header = json.loads(first.removeprefix(_BEGIN)) if first.startswith(_BEGIN) else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} is no file of dit_compile.save")
    made_for, here = header.get("made for", {}), _here()
    if header.get("format") != _FORMAT:
        raise ArtifactError(f"{path} has a format of another version of dit_compile. Save it again")
    for name in here:
        if made_for.get(name) != here[name]:
            raise ArtifactError(
                f"{path} was made for another {name}: {made_for.get(name)}, and here is {here[name]}. Save it again "
                "in this environment"
            )
    if hashlib.sha256(payload).hexdigest() != header.get("digest"):
        raise ArtifactError(f"{path} is damaged: its content is not what was written. Save it again")
    try:
        return pickle.loads(payload)
    except Exception as error:  # a module that is not installed here, for example
        raise ArtifactError(f"{path} cannot be read: {error}. Save it again in this environment") from error


def _write(path: Path, content: bytes) -> None:
    """Replaces ``path`` as a whole: a process that reads it meanwhile gets the old content or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
