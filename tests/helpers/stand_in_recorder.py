"""Stands in for CUDA graphs where there is no GPU, and shows every read of memory that a replay may have overwritten.

What is recorded is run again at each replay, on the operands of the recording and nothing else. What CUDA graphs of one
pool may overwrite is overwritten: a replay poisons all outputs of recordings that were made later than its own, and of
its own those that share no memory with an operand, before it writes them.
"""

from typing import ClassVar

import torch
from torch import Tensor

from dit_compile.runtime import recorder as recorders


class Elapsed:
    """A timer of a device that takes ``seconds`` for everything."""

    def __init__(self, seconds):
        self._seconds = seconds

    def stop(self):
        pass

    def ready(self):
        return True

    def seconds(self):
        return self._seconds


class Recording:
    def __init__(self, recorder, run):
        self._recorder, self._run = recorder, run
        self.replays = 0
        given = {address(one) for one in run.args if isinstance(one, Tensor)}
        self.outputs = run()
        self._made = [one for one in self.outputs if isinstance(one, Tensor) and address(one) not in given]
        self.poison()

    def replay(self):
        self.replays += 1
        self._recorder.replayed.append(self)
        results = [
            result.clone() if isinstance(result, Tensor) and address(result) != address(output) else result
            for result, output in zip(self._run(), self.outputs, strict=True)
        ]
        for later in self._recorder.recordings[self._recorder.recordings.index(self) :]:
            later.poison()
        for result, output in zip(results, self.outputs, strict=True):
            if isinstance(result, Tensor) and result is not output and address(result) != address(output):
                output.data.copy_(result)  # a replay counts as no write

    def poison(self):
        for tensor in self._made:
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else 1)


class StandIn:
    """A recorder for the CPU. ``made`` are all of a test, in the order of their making."""

    made: ClassVar[list["StandIn"]] = []
    device_seconds = 0.0  # of every segment
    fails = None  # an error that recording raises

    def __init__(self, device):
        self.device = torch.device(device)
        self.recordings, self.replayed = [], []
        StandIn.made.append(self)

    def enter(self):
        return True

    def record(self, run):
        if StandIn.fails is not None:
            raise StandIn.fails
        recording = Recording(self, run)
        self.recordings.append(recording)
        return recording

    def timer(self):
        return Elapsed(StandIn.device_seconds)


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def install(monkeypatch):
    """Records on the CPU from now on, until the test ends. Returns StandIn."""
    monkeypatch.setitem(recorders.RECORDERS, "cpu", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn
