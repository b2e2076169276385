"""One process of speed.py: a contestant with its model. ``Worker`` is its end in the parent.

Run as a program: the job as JSON is the argument; a line of JSON is written when the model has started, and one for
each line that is read. A contestant that raises answers {"error": ...} and ends.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[float, float]  # seconds: wall, CPU


class WorkerFailed(Exception):
    """The process gave no answer; the message says why."""


class Worker:
    """A process for one contestant, started at once.

    Args:
        job: arguments of ``serve``.
        environment: added to that of this process.
        log: the file that takes what the process prints.
        limit: seconds that one answer may take.
    """

    def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str], log: Path, limit: float) -> None:
        self._log, self._limit = log, limit
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(job)],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def answer(self) -> dict[str, Any]:
        """The next line.

        Raises:
            WorkerFailed: the contestant failed, or took longer than ``limit``.
        """
        try:
            line = self._lines.get(timeout=self._limit)
        except queue.Empty:
            raise WorkerFailed(f"no answer within {self._limit:.0f} s") from None
        if not line:
            last = (self._log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkerFailed(f"the process ended with code {self._process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def generate(self) -> dict[str, Any]:
        """One generation: ``whole``, ``steps``, ``computed`` and ``peak_bytes`` (see ``steps_row``)."""
        assert self._process.stdin is not None
        try:
            print("generate", file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerFailed(f"the process ended with code {self._process.wait()}") from None
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def cpu_seconds() -> float:
    """CPU seconds of this process and all its descendants: compilers run in processes of their own."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    if not Path("/proc/self/stat").exists():
        return total
    figures: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                values = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            figures[int(entry.name)] = (int(values[1]), sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK"))
    family = {os.getpid()}
    while more := {pid for pid, (parent, _) in figures.items() if parent in family} - family:
        family |= more
    return total + sum(figures[pid][1] for pid in family - {os.getpid()})


@dataclass
class Loop:
    """Denoising loops of one contestant."""

    model: Any
    way: Any
    inputs: list[dict[str, Any]]
    device: str

    def wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def run(self, each_step: bool, clock: Callable[[], float] = time.process_time) -> tuple[Pair, list[Pair]]:
        """Seconds of a generation and, with ``each_step``, of its steps, each of which then waits for the device."""
        from _speed_ways import end_generation, step_context

        steps: list[Pair] = []

        def loop() -> None:
            for inputs in self.inputs:
                begin = time.perf_counter(), clock()
                with step_context(self.model):
                    self.way.call(**inputs)
                if each_step:
                    self.wait()
                    steps.append((time.perf_counter() - begin[0], clock() - begin[1]))
            self.wait()

        begin = time.perf_counter(), clock()
        self.way.generation(loop)
        whole = time.perf_counter() - begin[0], clock() - begin[1]
        self.computed = self.way.computed()
        end_generation(self.model)
        return whole, steps

    def generation(self) -> dict[str, Any]:
        whole, steps = self.run(each_step=True)
        computed = self.computed
        if self.device == "cuda":
            whole, _ = self.run(each_step=False)  # the host runs ahead of the device
        return {"whole": whole, "steps": steps, "computed": computed}


class Peak:
    """Bytes at the peak since construction: of the GPU's allocator, else of this process."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif (clear := Path("/proc/self/clear_refs")).exists():
            clear.write_text("5")  # resets VmHWM

    def bytes(self) -> int:
        if self._device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        if (status := Path("/proc/self/status")).exists():
            (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(
    name: str, size: str, device: str, threads: int, warm: bool, folder: str, threshold: float, calibrate: bool
) -> None:
    """Starts the contestant and answers until the input ends; with ``calibrate`` it only looks for a threshold."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not come between answers

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    try:
        import torch

        if threads:
            torch.set_num_threads(threads)
        with torch.no_grad():
            _serve(answer, name, size, device, warm, Path(folder), threshold, calibrate)
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}")


def _serve(
    answer: Callable[..., None], name: str, size_name: str, device: str, warm: bool, folder: Path, threshold: float,
    calibrate: bool,
) -> None:  # fmt: skip
    importlib.import_module("torch._inductor.compile_fx")  # before the clock starts, as cache-dit's import does
    from _speed_models import SIZES, generation_inputs
    from _speed_sums import IN_A_ROW, WARMUP, nearest_threshold, step_mask
    from _speed_ways import CACHE_DIT, FIRST_BLOCK_CACHE, WAYS, Job, first_block_cache

    size = SIZES[size_name]
    version = None
    if name in CACHE_DIT:
        import cache_dit

        version = cache_dit.__version__
        if version != CACHE_DIT[name]:
            raise RuntimeError(f"wanted {name}, found {version}")
    model = size.build(device)
    inputs = generation_inputs(size, size.inputs(model, device))
    job = Job(step_mask(size.steps), WARMUP, IN_A_ROW, folder, warm, threshold)
    if calibrate:
        loop = Loop(model, first_block_cache(model, job, compiled=False), inputs, device)

        def reused(threshold: float) -> int:
            job.threshold = threshold
            loop.run(each_step=False)
            return loop.computed.count(False)

        threshold = nearest_threshold(reused, job.mask.count("0"))
        answer(threshold=threshold, reused=reused(threshold))
        return
    begin = time.perf_counter(), cpu_seconds()
    loop = Loop(model, WAYS[name](model, job), inputs, device)
    prepared = time.perf_counter() - begin[0], cpu_seconds() - begin[1]
    whole, steps = loop.run(each_step=True, clock=cpu_seconds)
    start = {
        f"{part}_{clock}": seconds
        for part, pair in (("first_call", steps[0]), ("first_generation", whole))
        for clock, seconds in zip(("wall", "cpu"), map(sum, zip(prepared, pair, strict=True)), strict=True)
    }
    if not warm:
        loop.way.keep()
    answer(start=start, version=version)
    settled = False
    for _ in sys.stdin:
        if not settled:
            loop.run(each_step=False)  # what is compiled or allocated at a second generation
            settled = True
        peak = Peak(device)
        generation = loop.generation()
        if not all(loop.computed) and name != FIRST_BLOCK_CACHE and loop.computed != [one == "1" for one in job.mask]:
            raise RuntimeError("it has reused other steps than the mask says")
        answer(**generation, peak_bytes=peak.bytes())


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
