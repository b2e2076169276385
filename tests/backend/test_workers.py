"""Inductor's worker processes are started early where there is a GPU, and only there."""

import multiprocessing

import pytest
import torch
import torch._inductor.async_compile as async_compile

from dit_compile.compat import workers


@pytest.fixture
def started(monkeypatch):
    """Calls of torch's function, in a process that uses a GPU."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(async_compile, "maybe_warm_pool", lambda: calls.append(1))
    return calls


def test_with_a_gpu(started):
    assert workers.start_workers() and started == [1]


def test_without_a_gpu(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not workers.start_workers() and not started


def test_in_a_forked_process(started, monkeypatch):
    monkeypatch.setattr(workers, "_of_process", -1)
    assert not workers.start_workers() and not started


def test_in_a_data_loader(started, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert not workers.start_workers() and not started


def test_in_an_older_torch(started, monkeypatch):
    monkeypatch.delattr(async_compile, "maybe_warm_pool")
    assert not workers.start_workers()
