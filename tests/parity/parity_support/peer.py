"""cache-dit of a chosen version, run beside us: installs what is missing and asks ``peer_worker`` for traces."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from parity_support.config import Knobs, Trace

Job = tuple[Knobs, int]  # knobs and the number of CFG branches


class PeerUnavailable(Exception):
    """The peer cannot be run here; the message says why and is the reason of the skip."""


class Peer:
    """One version of cache-dit. All jobs that were announced run in one process, since importing it takes seconds."""

    def __init__(self, version: str, folder: Path, jobs: Iterable[Job], show_progress: bool = False) -> None:
        self.version, self.folder, self._show_progress = version, folder, show_progress
        self._jobs = list(dict.fromkeys(jobs))
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._answer: Future[dict[str, Any]] | None = None

    def start(self) -> None:
        """Begin in the background, once."""
        if self._answer is None:
            self._answer = self._worker.submit(self._run)

    def trace(self, knobs: Knobs, branches: int) -> Trace:
        traces: dict[Job, Trace] = self._reply()["traces"]
        return traces[knobs, branches]

    def foca(self) -> list[float]:
        """Its FoCa's forecasts for ``FOCA_SCHEDULE`` on a straight line."""
        forecasts: list[float] = self._reply()["foca"]
        return forecasts

    def _reply(self) -> dict[str, Any]:
        self.start()
        assert self._answer is not None
        return self._answer.result()

    def _run(self) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        answer = self.folder / "answer.pt"
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of pytest-xdist share the folder and what lies in it
            if not answer.exists():
                self._ask(answer)
        reply = torch.load(answer, weights_only=False)
        if reply["version"] != self.version:
            raise RuntimeError(f"asked for cache-dit {self.version}, ran {reply['version']}")
        return {**reply, "traces": dict(zip(self._jobs, reply["traces"], strict=True))}

    def _ask(self, answer: Path) -> None:
        request = self.folder / "request.pt"
        torch.save(self._jobs, request)
        ask(self.version, self.folder, "parity_support.peer_worker", request, answer, show_progress=self._show_progress)


def ask(version: str, folder: Path, worker: str, *arguments: Path, show_progress: bool = False) -> None:
    """Runs the module ``worker`` in a process of its own, with cache-dit ``version`` and what lies in tests/helpers.

    Raises:
        PeerUnavailable: that version is not here and cannot be installed into ``folder``.
        RuntimeError: the worker failed.
    """
    tests = Path(__file__).parents[2]
    paths = [*package_path(version, folder), str(tests / "parity"), str(tests / "helpers")]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    result = subprocess.run(
        [sys.executable, "-m", worker, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CACHE_DIT_LOG_LEVEL": "ERROR"},
        stdout=None if show_progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"cache-dit {version} failed:\n{result.stderr[-4000:]}")


def package_path(version: str, folder: Path) -> list[str]:
    """Where to find what the environment lacks: nothing, or a folder inside ``folder`` into which it was installed."""
    missing = [f"cache-dit=={version}"] if installed_version() != version else []
    if version.startswith("1.0."):
        # It imports accelerate without declaring it, and accelerate imports psutil.
        missing += [package for package in ("accelerate", "psutil") if importlib.util.find_spec(package) is None]
    if not missing:
        return []
    target = folder / "site"
    # --no-deps: torch, diffusers, transformers, packaging and pyyaml are there already.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run(
        [*command, "--retries", "1", "--target", str(target), *missing], capture_output=True, text=True
    )
    if result.returncode:
        problem = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise PeerUnavailable(f"{', '.join(missing)} could not be installed (no network?): {problem}")
    return [str(target)]


def installed_version() -> str | None:
    """The version of cache-dit in this environment."""
    try:
        return importlib.metadata.version("cache-dit")
    except importlib.metadata.PackageNotFoundError:
        return None
