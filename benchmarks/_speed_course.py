"""Runs the contestants of speed.py on one size: starts one after the other, then generations in turn."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _speed_sums import start_row, steps_row
from _speed_ways import CACHE_DIT, FIRST_BLOCK_CACHE
from _speed_worker import Worker, WorkerFailed

PARITY = Path(__file__).resolve().parents[1] / "tests" / "parity"


@dataclass
class Course:
    """A contestant that fails gets a row with its ``error`` and takes no further part.

    Attributes:
        rows: takes the figures of each contestant.
        folder: for compile caches, logs, and a cache-dit that has to be installed; a folder per size and contestant.
        tell: called with what a reader has to know, such as a failure.
        advance: called for each piece of work that is done or given up, with the number of pieces.
        save: called when rows have changed.
        starts: cold starts, and warm starts, per contestant.
        limit: seconds that one start or generation may take.
    """

    size: str
    rows: dict[str, dict[str, Any]]
    folder: Path
    tell: Callable[[str], object]
    advance: Callable[[int], object]
    save: Callable[[], object]
    device: str
    starts: int
    repeats: int
    threads: int
    limit: float
    _left: dict[str, int] = field(default_factory=dict)
    _workers: dict[str, Worker] = field(default_factory=dict)

    def pieces(self) -> int:
        """Of work, per contestant."""
        return 2 * self.starts + self.repeats

    def run(self, names: Sequence[str], together: int) -> None:
        for begin in range(0, len(names), together):
            group = names[begin : begin + together]
            try:
                self._group(group)
            finally:
                for name in list(self._workers):
                    self._close(name)
                self.save()

    def _group(self, names: Sequence[str]) -> None:
        for name in names:
            self._left[name] = self.pieces()
            self.rows[name] = {"load": os.getloadavg()[0]}
            with self._judged(name):
                self._start(name)
            self.save()
        drawn: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(self.repeats):
            for name, worker in list(self._workers.items()):
                with self._judged(name):
                    drawn[name].append(worker.generate())
                    self._step(name)
        for name in self._workers:
            self.rows[name] |= steps_row(drawn[name])

    @contextmanager
    def _judged(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as problem:  # the other contestants are worth having
            kind = "" if isinstance(problem, WorkerFailed) else f"{type(problem).__name__}: "
            self.rows[name]["error"] = f"{kind}{problem}"
            self.tell(f"[red]{self.size}, {name} failed:[/red] {kind}{problem}")
            self._close(name)
            self.advance(self._left.pop(name))

    def _step(self, name: str) -> None:
        self._left[name] -= 1
        self.advance(1)

    def _close(self, name: str) -> None:
        if worker := self._workers.pop(name, None):
            worker.close()

    def _start(self, name: str) -> None:
        """Cold starts, then warm starts. The last process stays."""
        place = self.folder / self.size / "".join(letter if letter.isalnum() else "_" for letter in name)
        shutil.rmtree(place, ignore_errors=True)  # left by a run that was interrupted
        place.mkdir(parents=True)
        row, paths = self.rows[name], self._package_path(name)
        job = {
            "name": name, "size": self.size, "device": self.device, "threads": self.threads, "folder": str(place),
            "threshold": 0.0, "calibrate": False,
        }  # fmt: skip
        if name == FIRST_BLOCK_CACHE:
            self._workers[name] = self._worker({**job, "warm": False, "calibrate": True}, place, 0, paths)
            row |= (found := self._workers[name].answer())
            self._close(name)
            job["threshold"] = found["threshold"]
            self.tell(f"{self.size}: {name} reuses {found['reused']} steps with threshold {found['threshold']:.4g}")
        for phase in ("cold", "warm"):
            figures = []
            for start in range(self.starts):
                self._close(name)
                cache = start if phase == "cold" else 0
                self._workers[name] = self._worker({**job, "warm": phase == "warm"}, place, cache, paths)
                answer = self._workers[name].answer()
                figures.append(answer["start"])
                self._step(name)
            row[phase] = start_row(figures)
        if answer["version"]:
            row["version"] = answer["version"]

    def _worker(self, job: dict[str, Any], place: Path, cache: int, paths: Sequence[str]) -> Worker:
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(place / f"inductor{cache}"),
            "TRITON_CACHE_DIR": str(place / f"triton{cache}"),
            "CACHE_DIT_LOG_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])),
        }
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return Worker(job, environment, place / "log", self.limit)

    def _package_path(self, name: str) -> list[str]:
        """Where the version of cache-dit lies that a contestant needs.

        Raises:
            PeerUnavailable: it is not here and cannot be installed.
        """
        if name not in CACHE_DIT:
            return []
        if str(PARITY) not in sys.path:
            sys.path.append(str(PARITY))
        from parity_support.peer import package_path

        return package_path(CACHE_DIT[name], self.folder / CACHE_DIT[name])
